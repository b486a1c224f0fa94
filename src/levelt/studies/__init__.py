"""Each study turns raw results into tables and the numbers of the report."""
