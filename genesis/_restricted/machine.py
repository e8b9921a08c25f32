"""A virtual machine for pickle streams, over bytes that nobody has vouched for.

It moves values between a stack, a memo and a `World`, which alone decides what a name means and
what a call makes. It imports, calls and hashes nothing, and allocates no more than the input pays
for.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, Protocol

MAX_OPERATIONS: Final = 1 << 26
MAX_STACK: Final = 1 << 24
MAX_MEMO: Final = 1 << 24


class MalformedError(Exception):
    """The stream is no pickle."""


class RefusedError(Exception):
    """The stream asks for something that a reader does not do.

    Attributes:
        names: the globals or opcodes asked for.
        hint: the cure, where it is another than trust.
    """

    def __init__(self, problem: str, *names: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.names = names
        self.hint = hint


class World(Protocol):
    """What a pickle can reach beyond the stack. Each method may raise `RefusedError`."""

    opcodes: frozenset[str]
    """The closed set of what the machine does; any other opcode is refused."""
    strict: bool
    """Whether a stream must be one that CPython's pickler could have written."""

    def named(self, module: str, name: str) -> object:
        """What stands for a global."""

    def call(self, function: Any, arguments: Any) -> object:
        """REDUCE."""

    def new(self, cls: Any, arguments: Any, keywords: Any) -> object:
        """NEWOBJ and NEWOBJ_EX, and in protocols 0 and 1 INST and OBJ."""

    def build(self, thing: Any, state: Any) -> object:
        """BUILD; returns what takes the thing's place."""

    def append(self, target: Any, items: list[Any]) -> None:
        """APPEND and APPENDS."""

    def put(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        """SETITEM and SETITEMS, DICT and EMPTY_DICT's filling."""

    def add(self, target: Any, items: list[Any]) -> None:
        """ADDITEMS."""

    def frozen(self, items: list[Any]) -> object:
        """FROZENSET."""

    def outside(self, what: str) -> object:
        """What stands for a thing that is not in the stream: a persistent id, an extension."""


class Machine:
    """One run over one stream.

    Attributes:
        start: offset of the opcode at hand, for messages.
    """

    def __init__(
        self, code: bytes | memoryview, world: World, memo: Mapping[int, object] | None = None
    ) -> None:
        self.world = world
        self.start = 0
        self.stack: list[Any] = []
        self.memo: dict[int, object] = dict(memo or {})
        self._code = memoryview(code).cast("B")
        self._next = 0
        self._frame_end = 0
        self._marked: list[list[Any]] = []
        self._below = 0

    def run(self) -> object:
        """Execute up to STOP; return the value.

        Raises:
            MalformedError, RefusedError: at `start`.
        """
        code, size, table = self._code, len(self._code), _table(self.world.opcodes)
        if self.world.strict and bytes(code[:1]) != pickle.PROTO:
            raise MalformedError("the stream does not begin with a protocol of 2 or later")
        try:
            for _ in range(MAX_OPERATIONS):
                self.start = start = self._next
                if start == size:
                    raise MalformedError("the stream ends without STOP")
                self._next = start + 1
                opcode = code[start]
                if opcode == _STOP:
                    return self._finish()
                table[opcode](self)
                if len(self.stack) + self._below > MAX_STACK:
                    raise RefusedError(f"the stack grows beyond {MAX_STACK:,} values")
        except IndexError as exc:
            raise MalformedError("the stream takes from an empty stack") from exc
        raise RefusedError(f"the stream has more than {MAX_OPERATIONS:,} operations")

    def _finish(self) -> object:
        if self._marked or len(self.stack) != 1:
            raise MalformedError("the stream stops with more or less than one value")
        return self.stack.pop()

    @property
    def left(self) -> int:
        """Bytes that were not read."""
        return len(self._code) - self._next

    def take(self, size: int) -> memoryview:
        """The next bytes of the stream. The length is checked before anything is made of them."""
        start, stop = self._next, self._next + size
        if stop > len(self._code):
            raise MalformedError(f"{size:,} bytes are announced, {len(self._code) - start:,} left")
        self._next = stop
        return self._code[start:stop]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def text(self, size: int) -> str:
        try:
            return str(self.take(size), "utf-8", "surrogatepass")
        except UnicodeDecodeError as exc:
            raise MalformedError("a string is not UTF-8") from exc

    def line(self) -> bytes:
        """The bytes up to the next newline, which is skipped."""
        start = self._next
        for low in range(start, len(self._code), _WINDOW):
            size = bytes(self._code[low : low + _WINDOW]).find(b"\n")
            if size >= 0:
                self._next = low + size + 1
                return bytes(self._code[start : low + size])
        raise MalformedError("a line of text has no end")

    def mark(self) -> None:
        self._marked.append(self.stack)
        self._below += len(self.stack) + 1
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """Everything above the last mark."""
        if not self._marked:
            raise MalformedError("the stream takes from an empty stack")
        items, self.stack = self.stack, self._marked.pop()
        self._below -= len(self.stack) + 1
        return items

    def pop_or_unmark(self) -> None:
        if self.stack or not self._marked:
            self.stack.pop()
        else:
            self.pop_mark()

    def memoize(self, index: int) -> None:
        if self.world.strict and index != len(self.memo):
            raise RefusedError(f"memo entry {index:,} is set out of turn", "PUT")
        if len(self.memo) >= MAX_MEMO:
            raise RefusedError(f"the memo grows beyond {MAX_MEMO:,} values")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise MalformedError(f"memo entry {index:,} was never set")
        self.stack.append(self.memo[index])

    def protocol(self, version: int) -> None:
        if version > pickle.HIGHEST_PROTOCOL or (self.world.strict and version < 2):
            raise MalformedError(f"pickle protocol {version} is not known")

    def frame(self, size: int) -> None:
        """Frames are a hint for reading ahead; what is checked is that they do not lie."""
        if self._next < self._frame_end or size > len(self._code) - self._next:
            raise MalformedError("a frame is longer than what it frames")
        self._frame_end = self._next + size

    def find(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise MalformedError("a global is named by something that is no string")
        self.stack.append(self.world.named(module, name))


_Handler = Callable[[Machine], object]
_WINDOW: Final = 1 << 16
_HANDLERS: Final[dict[str, _Handler]] = {}
_STOP: Final = pickle.STOP[0]
_NAMES: Final = {
    value[0]: name
    for name, value in vars(pickle).items()
    if name.isupper() and type(value) is bytes and len(value) == 1
}


def _opcode(*names: str) -> Callable[[_Handler], _Handler]:
    def register(handler: _Handler) -> _Handler:
        _HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


@lru_cache(maxsize=4)
def _table(opcodes: frozenset[str]) -> list[_Handler]:
    return [_handler(byte, opcodes) for byte in range(256)]


def _handler(byte: int, opcodes: frozenset[str]) -> _Handler:
    name = _NAMES.get(byte, "")
    return _HANDLERS[name] if name in opcodes else _Refusal(byte, name)


class _Refusal:
    def __init__(self, byte: int, name: str) -> None:
        self._byte, self._name = byte, name

    def __call__(self, machine: Machine) -> None:
        if not self._name:
            raise MalformedError(f"{self._byte:#04x} is no opcode")
        raise RefusedError(f"opcode {self._name} is not allowed", self._name)


# Scalars ------------------------------------------------------------------------------------


def _constant(name: str, value: object) -> None:
    _HANDLERS[name] = lambda m: m.stack.append(value)


_constant("NONE", None)
_constant("NEWTRUE", True)
_constant("NEWFALSE", False)


@_opcode("BININT")
def _signed(m: Machine) -> None:
    m.stack.append(int.from_bytes(m.take(4), "little", signed=True))


def _sized(name: str, width: int, read: Callable[[Machine, int], object]) -> None:
    """A value that follows the `width` bytes of its length, or is those bytes."""
    _HANDLERS[name] = lambda m: m.stack.append(read(m, m.number(width)))


def _long(m: Machine, size: int) -> int:
    return int.from_bytes(m.take(size), "little", signed=True)


_sized("BININT1", 1, lambda _, value: value)
_sized("BININT2", 2, lambda _, value: value)
_sized("LONG1", 1, _long)
_sized("LONG4", 4, _long)
_sized("SHORT_BINUNICODE", 1, Machine.text)
_sized("BINUNICODE", 4, Machine.text)
_sized("BINUNICODE8", 8, Machine.text)
_sized("SHORT_BINBYTES", 1, lambda m, size: bytes(m.take(size)))
_sized("BINBYTES", 4, lambda m, size: bytes(m.take(size)))
_sized("BINBYTES8", 8, lambda m, size: bytes(m.take(size)))
_sized("BYTEARRAY8", 8, lambda m, size: bytearray(m.take(size)))
_sized("SHORT_BINSTRING", 1, lambda m, size: str(m.take(size), "latin-1"))
_sized("BINSTRING", 4, lambda m, size: str(m.take(size), "latin-1"))


@_opcode("BINFLOAT")
def _binfloat(m: Machine) -> None:
    m.stack.append(struct.unpack(">d", m.take(8))[0])


# Containers ---------------------------------------------------------------------------------

_HANDLERS["MARK"] = Machine.mark
_HANDLERS["POP"] = Machine.pop_or_unmark
_HANDLERS["POP_MARK"] = Machine.pop_mark
_HANDLERS["EMPTY_TUPLE"] = lambda m: m.stack.append(())
_HANDLERS["EMPTY_LIST"] = lambda m: m.stack.append([])
_HANDLERS["EMPTY_DICT"] = lambda m: m.stack.append({})
_HANDLERS["EMPTY_SET"] = lambda m: m.stack.append(set())
_HANDLERS["DUP"] = lambda m: m.stack.append(m.stack[-1])


def _popping(name: str, count: int) -> None:
    """A tuple of the last `count` values."""

    def pop(m: Machine) -> None:
        if len(m.stack) < count:
            raise MalformedError("the stream takes from an empty stack")
        m.stack[-count:] = [tuple(m.stack[-count:])]

    _HANDLERS[name] = pop


_popping("TUPLE1", 1)
_popping("TUPLE2", 2)
_popping("TUPLE3", 3)


def _gathering(name: str, make: Callable[[Machine, list[Any]], object]) -> None:
    """A value of everything above the mark."""

    def gather(m: Machine) -> None:
        items = m.pop_mark()
        m.stack.append(make(m, items))

    _HANDLERS[name] = gather


_gathering("TUPLE", lambda _, items: tuple(items))
_gathering("LIST", lambda _, items: items)
_gathering("FROZENSET", lambda m, items: m.world.frozen(items))


@_opcode("DICT")
def _dict(m: Machine) -> None:
    items = m.pop_mark()
    m.stack.append({})
    _put(m, items)


@_opcode("APPEND")
def _append(m: Machine) -> None:
    item = m.stack.pop()
    m.world.append(m.stack[-1], [item])


@_opcode("APPENDS")
def _appends(m: Machine) -> None:
    items = m.pop_mark()
    m.world.append(m.stack[-1], items)


@_opcode("ADDITEMS")
def _additems(m: Machine) -> None:
    items = m.pop_mark()
    m.world.add(m.stack[-1], items)


@_opcode("SETITEM")
def _setitem(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.world.put(m.stack[-1], [key], [value])


@_opcode("SETITEMS")
def _setitems(m: Machine) -> None:
    _put(m, m.pop_mark())


def _put(m: Machine, items: list[Any]) -> None:
    if len(items) % 2:
        raise MalformedError("a dict has a key without a value")
    m.world.put(m.stack[-1], items[::2], items[1::2])


# Memo, protocol, frames ---------------------------------------------------------------------

_HANDLERS["MEMOIZE"] = lambda m: m.memoize(len(m.memo))
_HANDLERS["BINPUT"] = lambda m: m.memoize(m.number(1))
_HANDLERS["LONG_BINPUT"] = lambda m: m.memoize(m.number(4))
_HANDLERS["BINGET"] = lambda m: m.recall(m.number(1))
_HANDLERS["LONG_BINGET"] = lambda m: m.recall(m.number(4))
_HANDLERS["PROTO"] = lambda m: m.protocol(m.number(1))
_HANDLERS["FRAME"] = lambda m: m.frame(m.number(8))


# Names and what is made of them -------------------------------------------------------------


@_opcode("GLOBAL")
def _global(m: Machine) -> None:
    try:
        module, name = str(m.line(), "utf-8"), str(m.line(), "utf-8")
    except UnicodeDecodeError as exc:
        raise MalformedError("the name of a global is not UTF-8") from exc
    m.find(module, name)


@_opcode("STACK_GLOBAL")
def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.find(module, name)


@_opcode("REDUCE")
def _reduce(m: Machine) -> None:
    arguments, function = m.stack.pop(), m.stack.pop()
    m.stack.append(m.world.call(function, arguments))


@_opcode("BUILD")
def _build(m: Machine) -> None:
    state = m.stack.pop()
    m.stack[-1] = m.world.build(m.stack[-1], state)


@_opcode("NEWOBJ")
def _newobj(m: Machine) -> None:
    arguments, cls = m.stack.pop(), m.stack.pop()
    m.stack.append(m.world.new(cls, arguments, {}))


@_opcode("NEWOBJ_EX")
def _newobj_ex(m: Machine) -> None:
    keywords, arguments, cls = m.stack.pop(), m.stack.pop(), m.stack.pop()
    m.stack.append(m.world.new(cls, arguments, keywords))


# What CPython's pickler has not written since protocol 2, or never for a file: for outlines only --


@_opcode("INST")
def _inst(m: Machine) -> None:
    arguments = m.pop_mark()
    _global(m)
    m.stack.append(m.world.new(m.stack.pop(), tuple(arguments), {}))


@_opcode("OBJ")
def _obj(m: Machine) -> None:
    cls, *arguments = m.pop_mark() or [None]
    m.stack.append(m.world.new(cls, tuple(arguments), {}))


def _outside(name: str, what: str, skip: Callable[[Machine], object]) -> None:
    def push(m: Machine) -> None:
        skip(m)
        m.stack.append(m.world.outside(what))

    _HANDLERS[name] = push


_outside("PERSID", "persistent id", Machine.line)
_outside("BINPERSID", "persistent id", lambda m: m.stack.pop())
_outside("EXT1", "extension code", lambda m: m.take(1))
_outside("EXT2", "extension code", lambda m: m.take(2))
_outside("EXT4", "extension code", lambda m: m.take(4))
_outside("NEXT_BUFFER", "out-of-band buffer", lambda m: None)
_HANDLERS["READONLY_BUFFER"] = lambda m: m.stack[-1]


def _written(name: str, parse: Callable[[bytes], object]) -> None:
    """A value of protocol 0, a line of text."""

    def push(m: Machine) -> None:
        try:
            m.stack.append(parse(m.line()))
        except ValueError as exc:
            raise MalformedError(f"{name} cannot be read") from exc

    _HANDLERS[name] = push


def _int(line: bytes) -> int:
    return {b"00": False, b"01": True}.get(line) or int(line.removesuffix(b"L"))


_written("INT", _int)
_written("LONG", _int)
_written("FLOAT", float)
_written("STRING", lambda line: str(line[1:-1], "latin-1"))
_written("UNICODE", lambda line: str(line, "raw-unicode-escape"))
_HANDLERS["PUT"] = lambda m: m.memoize(_index(m))
_HANDLERS["GET"] = lambda m: m.recall(_index(m))


def _index(m: Machine) -> int:
    line = m.line()
    if not line.isdigit() or len(line) > 10:
        raise MalformedError("a memo entry has no number")
    return int(line)


EVERY_OPCODE: Final = frozenset(_HANDLERS)
PLAIN_OPCODES: Final = EVERY_OPCODE - {
    *("DUP", "LIST", "DICT", "INST", "OBJ", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"),
    *("NEXT_BUFFER", "READONLY_BUFFER", "INT", "LONG", "FLOAT", "STRING", "UNICODE"),
    *("PUT", "GET", "SHORT_BINSTRING", "BINSTRING"),
}
"""What CPython's picklers write for plain data in protocols 2 to 5, and for objects."""
