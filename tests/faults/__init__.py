"""Fault tests: kills, errors, real faults and power cuts at every file-system call of a save."""
