"""Model organisms: tokenizer, architectures, instruction data and training."""
