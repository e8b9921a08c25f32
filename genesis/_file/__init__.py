"""docs/format.md as code: the layout of a file, how one is written and read.

It takes a temporary file from `storage` and the stream of a state from `_pickle`. It knows no
queue, no future and no thread that outlives a call: those are `_engine`'s.
"""
