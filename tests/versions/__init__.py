"""The versions of Python and of the libraries that the tests are run with, and the running of them.

`make versions` runs every column of `matrix`; `.ci/run` runs what needs no large download.
"""
