"""The OpenAI-compatible server: an HTTP process and a model process that it watches over."""
