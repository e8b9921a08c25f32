"""A virtual machine for pickle streams, over bytes that nobody has vouched for.

It moves values between a stack, a memo and a `World`, which alone decides what a name means and
what a call makes. It imports and calls nothing, and allocates no more than the input pays for.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable
from itertools import repeat
from struct import error as struct_error
from struct import unpack_from
from typing import Any, Final, Protocol

MAX_STACK: Final = 1 << 24
MAX_MEMO: Final = 1 << 24
MAX_NAME: Final = 500
"""Characters of the name of a global: five bytes name two memoised strings of a megabyte."""
MAX_GAP: Final = 1 << 16
"""Memo entries that an outline lets a stream skip."""

CHECK_EVERY: Final = 1 << 16
"""Operations between two looks at the size of stack and memo."""


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

    strict: bool
    """Whether a stream must be one that CPython's pickler writes in protocols 2 to 5."""

    def named(self, module: str, name: str) -> object:
        """What stands for a global."""

    def call(self, function: Any, arguments: Any) -> object:
        """REDUCE."""

    def new(self, cls: Any, arguments: Any, keywords: Any) -> object:
        """NEWOBJ and NEWOBJ_EX, and in protocols 0 and 1 INST and OBJ."""

    def build(self, thing: Any, state: Any) -> object:
        """BUILD; returns what takes the thing's place."""

    def append(self, target: Any, items: list[Any]) -> None:
        """APPEND and APPENDS, to what is no list."""

    def put(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        """SETITEM and SETITEMS, where the target is no dict or a key no string."""

    def add(self, target: Any, items: list[Any]) -> None:
        """ADDITEMS."""

    def frozen(self, items: list[Any]) -> object:
        """FROZENSET."""

    def outside(self, what: str) -> object:
        """What stands for a thing that is not in the stream: a persistent id, an extension."""


_NAMES: Final = {
    value[0]: name
    for name, value in vars(pickle).items()
    if name.isupper() and type(value) is bytes and len(value) == 1
}
_ONLY_TEXT: Final = frozenset((str,))
_NUMBERS: Final = re.compile(rb"(?:K.|M..|J....|G........|[N\x88\x89])*+", re.DOTALL)
"""Whole opcodes of numbers and constants, as many as there are."""
_NUMERIC: Final = frozenset(b"KMJGN\x88\x89")
_MANY: Final = 64
"""Bytes of such opcodes from which on it pays to hand them to pickle."""


_INTEGER: Final = rb"K.|M..|J....|\x8a\x04....|\x8a\x05.....|\x8a\x06......"
_ROW: Final = rb"\(((?:K.|M..|J....)*+)t"
_TENSOR: Final = re.compile(
    rb"h(.)\(h(.)h(.)\(h(.)h(.)(%(n)b)(%(n)b)h(.)tRh(.)\x86R(%(n)b)%(row)b%(row)b([\x88\x89])NtR\x940"
    % {b"n": _INTEGER, b"row": _ROW},
    re.DOTALL,
)
"""The opcodes of one of the many plain tensors that a skeleton of genesis begins with: three calls
in each other, and the result into the memo."""


def _integer(row: bytes) -> int:
    """The value of a `_INTEGER`."""
    low = 2 if row[0] == 0x8A else 1
    return int.from_bytes(row[low:], "little", signed=row[0] in b"J\x8a")


def _end_of_numbers(code: bytes, i: int) -> int:
    """Where a long row of numbers ends that begins at `i`, or `i`."""
    match = _NUMBERS.match(code, i, i + 2 * CHECK_EVERY)
    assert match is not None
    return match.end() if match.end() - i >= _MANY else i


def _numbers(row: bytes) -> list[Any]:
    """The values of a row. pickle itself may read this much: it holds no name, no call, no memo,
    no length, no container."""
    values: list[Any] = pickle.loads(b"(" + row + b"l.")
    return values


def _text(encoded: bytes) -> str:
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded.decode("utf-8", "surrogatepass")


def _span(code: bytes, i: int, form: str, width: int) -> tuple[int, int]:
    """Where the bytes end and begin whose length stands at `i`: they are there."""
    (length,) = unpack_from(form, code, i)
    low = i + width
    if length > len(code) - low:
        raise _announced(length, len(code) - low)
    return low + length, low


def _announced(length: int, left: int) -> MalformedError:
    return MalformedError(f"{length:,} bytes are announced, {left:,} left")


def _put(world: World, target: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise MalformedError("a dict has a key without a value")
    keys, values = items[::2], items[1::2]
    if type(target) is dict and _ONLY_TEXT.issuperset(map(type, keys)):
        target.update(zip(keys, values, strict=True))
    else:
        world.put(target, keys, values)


class Machine:
    """One run over one stream.

    Args:
        code: the stream.
        memo: its first entries.

    Attributes:
        start: offset of the opcode at hand, for messages.
    """

    def __init__(self, code: bytes | memoryview, world: World, memo: Iterable[object] = ()) -> None:
        self.world = world
        self.start = 0
        self._code = bytes(code)  # no copy where it is bytes already
        self._next = 0
        self._memo = list(memo)
        self._marked: list[list[Any]] = []
        self._rows: dict[bytes, tuple[Any, ...]] = {}
        """Shapes and strides, by their opcodes."""

    @property
    def left(self) -> int:
        """Bytes that were not read."""
        return len(self._code) - self._next

    def run(self) -> object:
        """Execute up to STOP; return the value.

        Raises:
            MalformedError, RefusedError: at `start`.
        """
        if self.world.strict and self._code[:1] != pickle.PROTO:
            raise MalformedError("the stream does not begin with a protocol of 2 or later")
        try:
            return self._run()
        except struct_error as exc:
            raise MalformedError(f"bytes are announced, {self.left:,} left") from exc
        except IndexError as exc:
            if self._next >= len(self._code):
                raise MalformedError("the stream ends without STOP") from exc
            if self._code[self.start] in b"hj":
                raise MalformedError("the stream recalls a memo entry that was never set") from exc
            raise MalformedError("the stream takes from an empty stack") from exc
        except UnicodeDecodeError as exc:
            raise MalformedError("a string is not UTF-8") from exc

    def _run(self) -> object:  # noqa: C901
        """One loop over local variables, the frequent opcodes first: a call for each opcode would
        take several times as long. What only an outline reads is in `_rare`.

        An opcode that takes more bytes than there are fails where these are used, or is compared
        with `size` before: a slice is short without an error.
        """
        code, size, world = self._code, len(self._code), self.world
        memo, marked = self._memo, self._marked
        remember = memo.append
        stack: list[Any] = []
        push = stack.append
        frame_end = start = 0
        i = self._next
        try:
            while True:
                for _ in repeat(None, CHECK_EVERY):
                    start = i
                    op = code[i]
                    i += 1
                    if op > 0x80:
                        if op == 0x8C:  # SHORT_BINUNICODE
                            j = i + 1 + code[i]
                            if j > size:
                                raise _announced(code[i], size - i - 1)
                            push(_text(code[i + 1 : j]))
                            i = j
                        elif op == 0x94:  # MEMOIZE
                            remember(stack[-1])
                        elif op == 0x86:  # TUPLE2
                            last = stack.pop()
                            stack[-1] = stack[-1], last
                        elif op == 0x85:  # TUPLE1
                            stack[-1] = (stack[-1],)
                        elif op == 0x87:  # TUPLE3
                            last, middle = stack.pop(), stack.pop()
                            stack[-1] = stack[-1], middle, last
                        elif op == 0x88:  # NEWTRUE
                            push(True)
                        elif op == 0x89:  # NEWFALSE
                            push(False)
                        elif op == 0x93:  # STACK_GLOBAL
                            name, module = stack.pop(), stack.pop()
                            push(self.find(module, name))
                        elif op == 0x81:  # NEWOBJ
                            arguments, cls = stack.pop(), stack.pop()
                            push(world.new(cls, arguments, {}))
                        elif op == 0x8A:  # LONG1
                            j = i + 1 + code[i]
                            if j > size:
                                raise _announced(code[i], size - i - 1)
                            push(int.from_bytes(code[i + 1 : j], "little", signed=True))
                            i = j
                        elif op == 0x95:  # FRAME
                            (length,) = unpack_from("<Q", code, i)
                            i += 8
                            # A hint for reading ahead; what is checked is that it does not lie.
                            if start < frame_end or length > size - i:
                                raise MalformedError("a frame is longer than what it frames")
                            frame_end = i + length
                            if code[i] in _NUMERIC and (j := _end_of_numbers(code, i)) > i:
                                stack.extend(_numbers(code[i:j]))
                                i = j
                        elif op == 0x8B:  # LONG4
                            i, low = _span(code, i, "<I", 4)
                            push(int.from_bytes(code[low:i], "little", signed=True))
                        elif op == 0x8D:  # BINUNICODE8
                            i, low = _span(code, i, "<Q", 8)
                            push(_text(code[low:i]))
                        elif op == 0x8E:  # BINBYTES8
                            i, low = _span(code, i, "<Q", 8)
                            push(code[low:i])
                        elif op == 0x96:  # BYTEARRAY8
                            i, low = _span(code, i, "<Q", 8)
                            push(bytearray(memoryview(code)[low:i]))
                        elif op == 0x8F:  # EMPTY_SET
                            push(set())
                        elif op == 0x90:  # ADDITEMS
                            items, stack = stack, marked.pop()
                            push = stack.append
                            world.add(stack[-1], items)
                        elif op == 0x91:  # FROZENSET
                            items, stack = stack, marked.pop()
                            push = stack.append
                            push(world.frozen(items))
                        elif op == 0x92:  # NEWOBJ_EX
                            keywords, arguments, cls = stack.pop(), stack.pop(), stack.pop()
                            push(world.new(cls, arguments, keywords))
                        else:
                            i = self._rare(op, i, stack)
                    elif op == 0x68:  # BINGET
                        push(memo[code[i]])
                        i += 1
                    elif op == 0x4B:  # BININT1
                        push(code[i])
                        i += 1
                    elif op == 0x6A:  # LONG_BINGET
                        push(memo[unpack_from("<I", code, i)[0]])
                        i += 4
                    elif op == 0x28:  # MARK
                        marked.append(stack)
                        stack = []
                        if code[i] in _NUMERIC and (j := _end_of_numbers(code, i)) > i:
                            stack = _numbers(code[i:j])
                            i = j
                        push = stack.append
                    elif op == 0x74:  # TUPLE
                        items, stack = stack, marked.pop()
                        push = stack.append
                        push(tuple(items))
                    elif op == 0x4D:  # BININT2
                        push(code[i] | code[i + 1] << 8)
                        i += 2
                    elif op == 0x4E:  # NONE
                        push(None)
                    elif op == 0x47:  # BINFLOAT
                        push(unpack_from(">d", code, i)[0])
                        i += 8
                    elif op == 0x4A:  # BININT
                        push(unpack_from("<i", code, i)[0])
                        i += 4
                    elif op == 0x52:  # REDUCE
                        arguments, function = stack.pop(), stack.pop()
                        push(world.call(function, arguments))
                    elif op == 0x29:  # EMPTY_TUPLE
                        push(())
                    elif op == 0x7D:  # EMPTY_DICT
                        push({})
                    elif op == 0x5D:  # EMPTY_LIST
                        push([])
                    elif op == 0x75:  # SETITEMS
                        items, stack = stack, marked.pop()
                        push = stack.append
                        _put(world, stack[-1], items)
                    elif op == 0x65:  # APPENDS
                        items, stack = stack, marked.pop()
                        push = stack.append
                        target = stack[-1]
                        if type(target) is list:
                            target.extend(items)
                        else:
                            world.append(target, items)
                    elif op == 0x62:  # BUILD
                        state = stack.pop()
                        stack[-1] = world.build(stack[-1], state)
                    elif op == 0x61:  # APPEND
                        item = stack.pop()
                        target = stack[-1]
                        if type(target) is list:
                            target.append(item)
                        else:
                            world.append(target, [item])
                    elif op == 0x73:  # SETITEM
                        value, key = stack.pop(), stack.pop()
                        target = stack[-1]
                        if type(key) is str and type(target) is dict:
                            target[key] = value
                        else:
                            world.put(target, [key], [value])
                    elif op == 0x58:  # BINUNICODE
                        i, low = _span(code, i, "<I", 4)
                        push(_text(code[low:i]))
                    elif op == 0x43:  # SHORT_BINBYTES
                        j = i + 1 + code[i]
                        if j > size:
                            raise _announced(code[i], size - i - 1)
                        push(code[i + 1 : j])
                        i = j
                    elif op == 0x42:  # BINBYTES
                        i, low = _span(code, i, "<I", 4)
                        push(code[low:i])
                    elif op == 0x71:  # BINPUT
                        self.put(code[i], stack[-1])
                        i += 1
                    elif op == 0x72:  # LONG_BINPUT
                        self.put(unpack_from("<I", code, i)[0], stack[-1])
                        i += 4
                    elif op == 0x63:  # GLOBAL
                        i, module, name = self.two_lines(i)
                        push(self.find(module, name))
                    elif op == 0x30:  # POP
                        if stack or not marked:
                            stack.pop()
                        else:
                            stack = marked.pop()
                            push = stack.append
                        while (tensor := _TENSOR.match(code, i)) is not None:
                            start = i
                            self._tensor(*tensor.groups())
                            i = tensor.end()
                    elif op == 0x31:  # POP_MARK
                        stack = marked.pop()
                        push = stack.append
                    elif op == 0x2E:  # STOP
                        if marked or len(stack) != 1:
                            raise MalformedError(
                                "the stream stops with more or less than one value"
                            )
                        return stack.pop()
                    elif op == 0x80:  # PROTO
                        if code[i] > pickle.HIGHEST_PROTOCOL or (world.strict and code[i] < 2):
                            raise MalformedError(f"pickle protocol {code[i]} is not known")
                        i += 1
                    else:
                        i = self._rare(op, i, stack)
                self._check_room(stack)
        finally:
            self.start, self._next = start, i

    def _tensor(
        self,
        make: bytes,
        type_: bytes,
        view: bytes,
        data: bytes,
        order: bytes,
        size: bytes,
        offset: bytes,
        item: bytes,
        dtype: bytes,
        first: bytes,
        shape: bytes,
        strides: bytes,
        grad: bytes,
    ) -> None:
        """What the opcodes of a `_TENSOR` do, one after the other, in a tenth of their time."""
        memo, call = self._memo, self.world.call
        place = memo[data[0]], memo[order[0]], _integer(size), _integer(offset), memo[item[0]]
        storage = call(memo[type_[0]], (call(memo[view[0]], place), memo[dtype[0]]))
        look = self._row(shape), self._row(strides), grad == b"\x88", None
        memo.append(call(memo[make[0]], (storage, _integer(first), *look)))
        if not len(memo) % CHECK_EVERY:
            self._check_room([])

    def _row(self, row: bytes) -> tuple[Any, ...]:
        found = self._rows.get(row)
        if found is None:
            found = self._rows[row] = tuple(_numbers(row))
        return found

    def _check_room(self, stack: list[Any]) -> None:
        if len(stack) + sum(map(len, self._marked)) + len(self._marked) > MAX_STACK:
            raise RefusedError(f"the stack grows beyond {MAX_STACK:,} values")
        if len(self._memo) > MAX_MEMO:
            raise RefusedError(f"the memo grows beyond {MAX_MEMO:,} values")

    def find(self, module: object, name: object) -> object:
        if type(module) is not str or type(name) is not str:
            raise MalformedError("a global is named by something that is no string")
        if len(module) + len(name) > MAX_NAME:
            raise RefusedError(f"a global has a name of {len(module) + len(name):,} characters")
        return self.world.named(module, name)

    def two_lines(self, i: int) -> tuple[int, str, str]:
        """Where the second line ends, and both."""
        middle = self._code.find(b"\n", i)
        end = self._code.find(b"\n", middle + 1)
        if middle < 0 or end < 0:
            raise MalformedError("a line of text has no end")
        if end - i > 4 * MAX_NAME:
            raise RefusedError(f"a global has a name of {end - i:,} bytes")
        try:
            return (
                end + 1,
                str(self._code[i:middle], "utf-8"),
                str(self._code[middle + 1 : end], "utf-8"),
            )
        except UnicodeDecodeError as exc:
            raise MalformedError("the name of a global is not UTF-8") from exc

    def put(self, index: int, value: object) -> None:
        """PUT. An outline may leave gaps, or replace what it put."""
        memo = self._memo
        if index == len(memo):
            memo.append(value)
            return
        if self.world.strict or index > len(memo) + MAX_GAP:
            raise RefusedError(f"memo entry {index:,} is set out of turn", "PUT")
        unset = self.world.outside("a memo entry that was never set")
        memo.extend(repeat(unset, index + 1 - len(memo)))
        memo[index] = value

    # What CPython's pickler has not written since protocol 2, or never for a file: for outlines ---

    def _rare(self, op: int, i: int, stack: list[Any]) -> int:
        """Do an opcode that only an outline reads; return where the next one begins."""
        name = _NAMES.get(op, "")
        if not name:
            raise MalformedError(f"{op:#04x} is no opcode")
        if self.world.strict or name not in _RARE:
            raise RefusedError(f"opcode {name} is not allowed", name)
        return _RARE[name](self, i, stack)

    def line(self, i: int) -> tuple[int, bytes]:
        """Where a line of text ends, and the line."""
        end = self._code.find(b"\n", i)
        if end < 0:
            raise MalformedError("a line of text has no end")
        return end + 1, self._code[i:end]

    def sized(self, i: int, form: str, width: int) -> tuple[int, bytes]:
        """Where bytes end whose length stands at `i`, and the bytes."""
        end, low = _span(self._code, i, form, width)
        return end, self._code[low:end]

    def take(self, i: int, size: int) -> tuple[int, bytes]:
        """Where `size` bytes end, and the bytes."""
        if size > len(self._code) - i:
            raise _announced(size, len(self._code) - i)
        return i + size, self._code[i : i + size]

    def pop_mark(self, stack: list[Any]) -> list[Any]:
        """Everything above the last mark."""
        items = stack.copy()
        stack[:] = self._marked.pop()
        return items

    def recall(self, index: int) -> object:
        if index >= len(self._memo):
            raise MalformedError(f"memo entry {index:,} was never set")
        return self._memo[index]


_Rare = Callable[[Machine, int, list[Any]], int]


def _list(m: Machine, i: int, stack: list[Any]) -> int:
    stack.append(m.pop_mark(stack))
    return i


def _dict(m: Machine, i: int, stack: list[Any]) -> int:
    items = m.pop_mark(stack)
    stack.append({})
    _put(m.world, stack[-1], items)
    return i


def _inst(m: Machine, i: int, stack: list[Any]) -> int:
    arguments = m.pop_mark(stack)
    i, module, name = m.two_lines(i)
    stack.append(m.world.new(m.find(module, name), tuple(arguments), {}))
    return i


def _obj(m: Machine, i: int, stack: list[Any]) -> int:
    cls, *arguments = m.pop_mark(stack) or [None]
    stack.append(m.world.new(cls, tuple(arguments), {}))
    return i


def _dup(m: Machine, i: int, stack: list[Any]) -> int:
    stack.append(stack[-1])
    return i


def _nothing(m: Machine, i: int, stack: list[Any]) -> int:
    stack[-1]  # or the stream takes from an empty stack
    return i


def _persistent(m: Machine, i: int, stack: list[Any]) -> int:
    stack[-1] = m.world.outside("persistent id")
    return i


def _outside(what: str, width: int) -> _Rare:
    def push(m: Machine, i: int, stack: list[Any]) -> int:
        i, _ = m.take(i, width)
        stack.append(m.world.outside(what))
        return i

    return push


def _string(form: str, width: int) -> _Rare:
    """A string of Python 2."""

    def push(m: Machine, i: int, stack: list[Any]) -> int:
        i, encoded = m.sized(i, form, width)
        stack.append(str(encoded, "latin-1"))
        return i

    return push


def _line(parse: Callable[[bytes], object]) -> _Rare:
    """A value of protocol 0, a line of text."""

    def push(m: Machine, i: int, stack: list[Any]) -> int:
        i, line = m.line(i)
        try:
            stack.append(parse(line))
        except ValueError as exc:
            raise MalformedError("a number or a text cannot be read") from exc
        return i

    return push


def _int(line: bytes) -> int:
    return {b"00": False, b"01": True}.get(line) or int(line.removesuffix(b"L"))


def _put_line(m: Machine, i: int, stack: list[Any]) -> int:
    i, line = m.line(i)
    m.put(_index(line), stack[-1])
    return i


def _get_line(m: Machine, i: int, stack: list[Any]) -> int:
    i, line = m.line(i)
    stack.append(m.recall(_index(line)))
    return i


def _index(line: bytes) -> int:
    if not line.isdigit() or len(line) > 10:
        raise MalformedError("a memo entry has no number")
    return int(line)


def _persistent_line(m: Machine, i: int, stack: list[Any]) -> int:
    i, _ = m.line(i)
    stack.append(m.world.outside("persistent id"))
    return i


_RARE: Final[dict[str, _Rare]] = {
    "DICT": _dict,
    "LIST": _list,
    "INST": _inst,
    "OBJ": _obj,
    "DUP": _dup,
    "PERSID": _persistent_line,
    "BINPERSID": _persistent,
    "EXT1": _outside("extension code", 1),
    "EXT2": _outside("extension code", 2),
    "EXT4": _outside("extension code", 4),
    "NEXT_BUFFER": _outside("out-of-band buffer", 0),
    "READONLY_BUFFER": _nothing,
    "SHORT_BINSTRING": _string("<B", 1),
    "BINSTRING": _string("<I", 4),
    "INT": _line(_int),
    "LONG": _line(_int),
    "FLOAT": _line(float),
    "STRING": _line(lambda line: str(line[1:-1], "latin-1")),
    "UNICODE": _line(lambda line: str(line, "raw-unicode-escape")),
    "PUT": _put_line,
    "GET": _get_line,
}
