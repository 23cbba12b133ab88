"""Configuration, tokenizer, prompt and network."""

# Before any module of this package: importing transformers registers our classes, which imports
# those modules, and must not meet one that is half imported.
import transformers  # noqa: F401
