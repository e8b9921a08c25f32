"""When a save runs and on which thread: the scheduler, the queue of each path, futures.

What a save does is `_file`'s and `storage`'s part. What happens at exit and after a fork is decided
here.
"""
