"""The web page: conversations with a model, in a browser, by Streamlit."""
