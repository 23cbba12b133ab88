"""The version of the package; knows nothing else, so that builds can read it without torch."""

__version__ = "0.1.0"
