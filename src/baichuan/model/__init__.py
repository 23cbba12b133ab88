"""Configuration, tokenizer, prompt and network."""
