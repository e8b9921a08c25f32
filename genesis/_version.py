"""The version of genesis, which also stands in every file it writes."""

__version__ = "0.1.0"
