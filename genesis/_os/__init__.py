"""What the operating system is asked for: files, locks among processes, memory and threads.

Each system call of a save or a load is made here, and so is each choice between platforms. Nothing
here knows of pickles, checkpoints or saves.
"""
