"""What was made from what: code closure, stages and records. Looks at files, never at science."""
