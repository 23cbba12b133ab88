"""Files in: from a name or a directory to a model and its tokenizer."""
