"""What stands for something outside of a state, a file say, is refused when it is saved.

A class is asked about once for each save, by name, so that nothing is imported for the question;
nothing here looks into an object's attributes.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

Reducer = Callable[[Any], Any]

_KINDS = {
    "an open or closed file": """
        _io.FileIO _io.BufferedReader _io.BufferedWriter _io.BufferedRandom _io.BufferedRWPair
        _io.TextIOWrapper _io._WindowsConsoleIO _pyio.FileIO _pyio.BufferedReader
        _pyio.BufferedWriter _pyio.BufferedRandom _pyio.BufferedRWPair _pyio.TextIOWrapper
        mmap.mmap gzip.GzipFile bz2.BZ2File lzma.LZMAFile zipfile.ZipFile tarfile.TarFile
        os._wrap_close codecs.StreamReaderWriter fsspec.spec.AbstractBufferedFile
        numpy.lib.npyio.NpzFile numpy.lib._npyio_impl.NpzFile h5py._hl.base.HLObject
        builtins.safe_open posix.ScandirIterator posix.DirEntry nt.ScandirIterator nt.DirEntry
        logging.Handler torch.utils.tensorboard.writer.SummaryWriter tqdm.std.tqdm
        torch.utils.tensorboard.writer.FileWriter tensorboardX.writer.SummaryWriter
    """,
    "a temporary file or directory": """
        tempfile._TemporaryFileWrapper tempfile._TemporaryFileCloser tempfile.TemporaryDirectory
        tempfile.SpooledTemporaryFile
    """,
    "a lock or a means to wait": """
        _thread.lock _thread.RLock threading._RLock threading.Condition threading.Semaphore
        threading.Event threading.Barrier queue.Queue _queue.SimpleQueue queue._PySimpleQueue
        asyncio.locks.Lock asyncio.locks.Event asyncio.locks.Condition asyncio.locks.Semaphore
        asyncio.locks.Barrier asyncio.queues.Queue
        multiprocessing.synchronize.SemLock multiprocessing.synchronize.Condition
        multiprocessing.synchronize.Event multiprocessing.queues.Queue
        multiprocessing.queues.SimpleQueue
        trio._sync._LockImpl trio.Event trio.Semaphore trio.CapacityLimiter trio.Condition
        trio.MemorySendChannel trio.MemoryReceiveChannel trio.lowlevel.ParkingLot trio.CancelScope
        anyio.Lock anyio.Event anyio.Semaphore anyio.CapacityLimiter anyio.Condition
        anyio.CancelScope anyio.streams.memory.MemoryObjectSendStream
        anyio.streams.memory.MemoryObjectReceiveStream filelock._api.BaseFileLock
        filelock._core._lock.BaseFileLock
    """,
    "a thread or what belongs to one": """
        threading.Thread _thread._ThreadHandle _thread._local _threading_local.local
        concurrent.futures._base.Executor multiprocessing.pool.Pool _contextvars.Token
    """,
    "another process or a connection to one": """
        subprocess.Popen multiprocessing.process.BaseProcess multiprocessing.connection.Connection
        multiprocessing.connection._ConnectionBase multiprocessing.connection.Listener
        multiprocessing.managers.BaseProxy multiprocessing.managers.BaseManager
        asyncio.subprocess.Process
    """,
    "memory that processes share": """
        multiprocessing.shared_memory.SharedMemory multiprocessing.shared_memory.ShareableList
    """,
    "a network connection": """
        socket.socket _socket.socket ssl.SSLSocket ssl.SSLObject selectors.BaseSelector select.epoll
        select.poll asyncio.streams.StreamReader asyncio.streams.StreamWriter
        asyncio.transports.BaseTransport socketserver.BaseServer
    """,
    "a connection to a database": "sqlite3.Connection sqlite3.Cursor dbm.dumb._Database",
    "a result that is still to come": """
        concurrent.futures._base.Future _asyncio.Future _asyncio.Task asyncio.futures.Future
        asyncio.tasks.Task torch.futures.Future torch._C.Future
    """,
    "code that is running": """
        builtins.generator builtins.coroutine builtins.async_generator
        builtins.coroutine_wrapper builtins.frame builtins.traceback
        asyncio.events.AbstractEventLoop asyncio.events.Handle trio.lowlevel.Task
    """,
    "memory of this process, by its address": """
        builtins.PyCapsule types.CapsuleType ctypes.CDLL _ctypes.CFuncPtr _ctypes._Pointer
    """,
    "an action at the end of an object": "weakref.finalize",
    "a collection that keeps nothing alive": """
        weakref.WeakValueDictionary weakref.WeakKeyDictionary _weakrefset.WeakSet weakref.KeyedRef
    """,
}
"""What each kind is called in a message -> the classes of that kind, by module and name. Their
subclasses are of the kind too, unless they say themselves how they are pickled."""

_KIND_OF = {
    _name.replace("multiprocessing", package): kind
    for kind, names in _KINDS.items()
    for _name in names.split()
    for package in ("multiprocessing", "multiprocess")
}

_OWN_PICKLING = ("__reduce_ex__", "__reduce__", "__getstate__")


class OutsideError(pickle.PicklingError):
    """An object that stands for something outside of the state.

    Attributes:
        hint: what to do about it.
    """

    default_hint = (
        "leave it out of the state, or give the class that holds it a __getstate__ that leaves it "
        "out and a __setstate__ that makes it anew"
    )

    def __init__(self, problem: str, hint: str | None = None) -> None:
        self.hint = hint or self.default_hint
        super().__init__(problem)


def reducer_for(cls: type) -> Reducer | None:
    """The reducer that refuses a class's instances, ``None`` where nothing speaks against them."""
    for base in cls.__mro__:
        if kind := _KIND_OF.get(f"{base.__module__}.{base.__qualname__}"):
            return _refuser(kind)
        if any(name in vars(base) for name in _OWN_PICKLING):
            return None
    return None


def _refuser(kind: str) -> Reducer:
    def refuse(obj: object) -> NoReturn:
        cls = type(obj)
        raise OutsideError(f"{cls.__module__}.{cls.__qualname__} is {kind}{_named(obj)}")

    return refuse


def _named(obj: Any) -> str:
    """The name and mode of a file, for the message."""
    found = []
    for attribute in ("name", "mode"):
        value = getattr(obj, attribute, None) if type(obj).__module__ in ("_io", "tempfile") else 0
        if value and isinstance(value, str):
            found.append(f"{attribute} {value[:200]!r}")
    return f" ({', '.join(found)})" if found else ""


# --- Loading --------------------------------------------------------------------------------------


def constructor(module: str, name: str) -> Callable[..., Any] | None:
    """What a reader calls in place of a function of dill that reaches outside, ``None`` for every
    other function."""
    return _STAND_INS.get(name) if module in ("dill._dill", "dill.dill") else None


def _standard_stream(name: str, mode: str, *_: object) -> Any:
    """dill's way to open a file again at load: mode ``w`` would empty it. The standard streams are
    there already."""
    if name in ("<stdin>", "<stdout>", "<stderr>"):
        return getattr(sys, name.strip("<>"))
    raise pickle.UnpicklingError(
        f"the pickle would open the file {name!r} with mode {mode!r}, which may empty it"
    )


def _no_capsule(*_: object) -> NoReturn:
    raise pickle.UnpicklingError("the pickle holds an address of another process (a PyCapsule)")


_STAND_INS: dict[str, Callable[..., Any]] = {
    # free, whatever they were: nobody here would ever let go of one that came back held
    "_create_lock": lambda *_: threading.Lock(),
    "_create_rlock": lambda *_: threading.RLock(),
    "_create_filehandle": _standard_stream,
    "_create_capsule": _no_capsule,
}
