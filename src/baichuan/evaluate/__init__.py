"""C-Eval, MMLU and CMMLU by their official schemes; perplexity and distance from an original."""
