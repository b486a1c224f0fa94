"""One module per `levelt` command: read paths, call one function, write files atomically."""
