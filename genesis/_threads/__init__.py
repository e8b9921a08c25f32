"""Threads and what waits for them, made so that a signal handler may interrupt anywhere.

Futures without locks, threads for one call, a pool whose threads end. Nothing here opens a file or
knows of saves.
"""
