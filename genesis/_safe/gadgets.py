"""Names that run code of the file's choice, whatever they are registered for.

Registering one is refused, and no message proposes it. A list can only hold what is known: it
guards a person who follows a message, not the reader, which calls nothing that was not registered.
"""

from __future__ import annotations

from typing import Final

_MODULES: Final = frozenset(
    """
    _io _operator _pickle _thread aifc asyncio atexit bdb builtins __builtin__ cProfile
    cloudpickle code codecs codeop commands concurrent copyreg copy_reg ctypes _ctypes dill
    distutils doctest ensurepip fileinput ftplib functools gc genesis glob imp importlib
    inspect io itertools joblib linecache logging marshal mmap multiprocessing nt ntpath
    operator os pdb pickle pip pkgutil platform posix posixpath profile pty py_compile
    pydoc queue resource runpy sched setuptools shelve shutil signal site smtplib socket
    socketserver sqlite3 ssl subprocess sys sysconfig telnetlib tempfile test threading
    timeit trace tracemalloc turtle types typing unittest urllib venv weakref webbrowser
    wsgiref xmlrpc zipfile zipimport
    """.split()  # noqa: SIM905
)
_HARMLESS: Final = frozenset(
    """
    builtins.object builtins.bytes builtins.bytearray builtins.complex builtins.dict
    builtins.float builtins.frozenset builtins.int builtins.list builtins.range
    builtins.set builtins.slice builtins.str builtins.tuple builtins.bool
    types.SimpleNamespace
    """.split()  # noqa: SIM905
)
_PACKAGES: Final = {
    "torch": "_C _dynamo _functorch _inductor _jit_internal _ops _tensor _utils _utils_internal "
    "_weights_only_unpickler compile cpp distributed from_file fx hub jit library load onnx ops "
    "package save serialization storage testing utils",
    "numpy": "_core core ctypeslib distutils f2py fromfile lib load loadtxt ma memmap random save "
    "savetxt savez testing vectorize",
    "jax": "_src experimental ffi interpreters jit lib load numpy.load pure_callback",
}
"""Parts of packages that hold such names, by the root."""
_PARTS: Final = {root: tuple(parts.split()) for root, parts in _PACKAGES.items()}


def is_gadget(path: str) -> bool:
    """Whether a global, ``"module.name"``, is known to run code or to open files."""
    if path in _HARMLESS:
        return False
    root, _, rest = path.partition(".")
    if "__" in rest and any(part.startswith("__") for part in rest.split(".")):
        return True
    if root in _PARTS:
        return any(rest == part or rest.startswith(f"{part}.") for part in _PARTS[root])
    return root in _MODULES
