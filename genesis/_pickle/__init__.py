"""Objects to a skeleton and buffers, and back: what Python's pickle module leaves to us.

`dumping` and `loading` do the two ways; `arrays` finds the module that knows a framework's arrays.
No array is copied before `buffers` is told to, and no file is opened.
"""
