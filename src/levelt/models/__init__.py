"""Loading any supported decoder, and where its parts are."""
