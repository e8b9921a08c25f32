"""Where a file is put so that it is there whole or not at all: today the local file system.

It moves bytes, and asks others what they mean. Names, temporary files, backups and the order of a
commit belong here.
"""
