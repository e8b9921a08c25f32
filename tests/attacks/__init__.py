"""Hostile files: what they would do, and that genesis does none of it."""
