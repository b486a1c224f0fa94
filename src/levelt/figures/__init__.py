"""One module per figure and one shared style; figures read tables, never models."""
