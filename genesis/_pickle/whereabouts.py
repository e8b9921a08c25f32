"""Finds the place in a state whose building failed, from the pickle and from how far it was read.

A pickle is gone through once more, by its opcodes alone: nothing of it is called or imported. What
is found serves a message, so where a pickle cannot be followed there is no place, and no error.
"""

from __future__ import annotations

import pickletools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

MAX_SIZE = 16 << 20
"""Bytes of the pickles that are looked at: the search takes some hundred bytes for each object, and
of a larger pickle, what was read is gone by then."""

_MAX_STEPS = 40

_READERS = ("genesis", "dill", "contextlib")
"""Packages whose frames stand between a load and what an object does."""


class Whereabouts(NamedTuple):
    """Where building failed."""

    place: str = ""
    """As one would index the state; ``""`` for the state itself."""
    name: str = ""
    """The global that was looked up, called or filled: ``"module.Class"``."""
    offset: int | None = None
    """Of the opcode, in bytes from the start of the pickle."""


class Node:
    """A thing of the pickle: what it is called or its value, and its parts, each with its step."""

    __slots__ = ("elements", "kind", "parts", "value")

    def __init__(self, kind: str, value: Any = None) -> None:
        self.kind = kind
        self.value = value
        self.elements = 0
        """That were appended."""
        self.parts: list[tuple[Any, Node]] = []


def find(skeleton: Any, memo_size: int, memo_before: int, error: BaseException) -> Whereabouts:
    """Where an unpickler was when it raised `error`.

    Args:
        skeleton: the pickle.
        memo_size: how many entries the unpickler's memo had by then.
        memo_before: how many it had when the pickle began.
    """
    if len(skeleton) > MAX_SIZE:
        return Whereabouts()
    machine = _Machine(memo_before)
    events: list[tuple[str, Node, int]] = []
    try:
        for opcode, argument, position in pickletools.genops(bytes(skeleton)):
            before = len(machine.memo)
            node = machine.step(opcode, argument)
            if before == memo_size and node is not None:
                events.append((opcode.name, node, position or 0))
    except Exception:  # not an error of the load: that one is being reported
        return Whereabouts()
    if not events:
        return Whereabouts()
    opname, node, offset = _pick(events, error)
    name = _name_of(node)
    if opname == "BUILD" and name == "builtins.getattr":
        name = ""  # that got a class which was saved by value, not what is filled
    return Whereabouts(_place_of(machine.root, node), name, offset)


_FILLS = {
    "__setstate__": ("BUILD",),
    "__setitem__": ("SETITEM", "SETITEMS"),
    "append": ("APPEND", "APPENDS"),
    "extend": ("APPENDS",),
    "add": ("ADDITEMS",),
}
"""A method that an unpickler calls on what it has made -> the opcodes that do."""


def is_of_unpickler(error: BaseException) -> bool:
    """Whether no code but the unpickler's own was running when it raised."""
    return not _first_frame(error)


def _pick(events: list[tuple[str, Node, int]], error: BaseException) -> tuple[str, Node, int]:
    """The event that raised: between two entries of the memo there are several at times."""
    code = _first_frame(error)
    wanted = _FILLS.get(code.rpartition(".")[2])
    for event in events:
        if wanted is None or (event[0] in wanted and _name_of(event[1]).endswith(_class_of(code))):
            return event
    # What fills has its class's name nowhere where that was saved by value.
    return next((event for event in events if event[0] in (wanted or ())), events[0])


def _class_of(qualified: str) -> str:
    return qualified.rpartition(".")[0]


def _first_frame(error: BaseException) -> str:
    """The qualified name of the first function that is not of genesis, ``""`` where C raised."""
    trace = error.__traceback__
    while trace is not None:
        code, module = trace.tb_frame.f_code, trace.tb_frame.f_globals.get("__name__", "")
        if module == f"{__package__}.outside" or module.partition(".")[0] not in _READERS:
            return code.co_qualname
        trace = trace.tb_next
    return ""


def _name_of(node: Node) -> str:
    return node.value if node.kind in ("global", "object") and isinstance(node.value, str) else ""


def _place_of(root: Node | None, wanted: Node) -> str:
    """The shortest way from the root to a thing."""
    waiting: deque[tuple[Node, Any]] = deque([(root, None)] if root else [])
    met: set[int] = set()
    while waiting:
        node, way = waiting.popleft()
        if node is wanted:
            return _text(way)
        if id(node) not in met:
            met.add(id(node))
            waiting.extend((part, (way, step)) for step, part in node.parts)
    return ""


def _text(way: Any) -> str:
    steps: list[str] = []
    while way is not None:
        way, step = way
        steps.append(step if isinstance(step, str) else f"[{_short(step)}]")
    steps.reverse()
    if len(steps) > _MAX_STEPS:
        steps[_MAX_STEPS // 2 : -_MAX_STEPS // 2] = [" ... "]
    return "".join(steps)


def _short(key: Any) -> str:
    value = key.value if isinstance(key, Node) else key
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value.bit_length() < 200 else "<int>"
    if isinstance(value, str | bytes | float | bool) or value is None:
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:60]}..."
    return "<key>"


class _Machine:
    """Follows a pickle's stack and memo with things that only know their parts."""

    def __init__(self, memo_before: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Node] = {number: Node("buffer") for number in range(memo_before)}
        self.root: Node | None = None
        self._steps: dict[str, Callable[[], Node | None]] = {
            "STACK_GLOBAL": self._stack_global,
            "REDUCE": self._call,
            "NEWOBJ": self._call,
            "NEWOBJ_EX": self._call_with_keywords,
            "OBJ": self._obj,
            "BUILD": self._build,
            "APPEND": lambda: self._append([self.stack.pop()]),
            "APPENDS": lambda: self._append(self._since_mark()),
            "ADDITEMS": lambda: self._append(self._since_mark()),
            "SETITEM": lambda: self._set([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda: self._set(self._since_mark()),
            "DICT": self._dict,
            "DUP": lambda: self._push(self.stack[-1]),
            "POP": self._drop,
            "POP_MARK": self._drop_to_mark,
            "STOP": self._stop,
        }

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> Node | None:
        """Follow one opcode; return the thing whose building it is, if it may call something."""
        name = opcode.name
        if name == "MARK":
            self.stack.append(None)
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name.endswith("PUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name.endswith("GET"):
            self.stack.append(self.memo[int(argument)])
        elif name in ("GLOBAL", "INST"):
            return self._named(name, str(argument))
        elif name in self._steps:
            return self._steps[name]()
        else:
            self._other(opcode, argument)
        return None

    def _since_mark(self) -> list[Node]:
        mark = len(self.stack) - 1
        while self.stack[mark] is not None:
            mark -= 1
        items = self.stack[mark + 1 :]
        del self.stack[mark:]
        return items

    def _push(self, node: Node) -> None:
        self.stack.append(node)

    def _drop(self) -> None:
        self.stack.pop()

    def _drop_to_mark(self) -> None:
        self._since_mark()

    def _stop(self) -> None:
        self.root = self.stack[-1]

    def _other(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Atoms, tuples, lists and sets: what takes things from the stack holds them."""
        taken: list[Node] = []
        if pickletools.markobject in opcode.stack_before:
            taken = self._since_mark()
        elif opcode.stack_before:
            taken = self.stack[-len(opcode.stack_before) :]
            del self.stack[-len(opcode.stack_before) :]
        if opcode.stack_after:
            node = Node(opcode.stack_after[0].name, _CONSTANTS.get(opcode.name, argument))
            node.parts = list(enumerate(taken))
            node.elements = len(taken)
            self.stack.append(node)

    def _dict(self) -> None:
        items = self._since_mark()
        self.stack.append(Node("dict"))
        self._set(items)

    def _named(self, opcode: str, argument: str) -> Node:
        args = self._since_mark() if opcode == "INST" else []
        node = Node("object" if opcode == "INST" else "global", argument.replace(" ", "."))
        node.parts = [(f".__reduce_ex__(5)[1][{n}]", part) for n, part in enumerate(args)]
        self.stack.append(node)
        return node

    def _stack_global(self) -> Node:
        name, module = self.stack.pop(), self.stack.pop()
        return self._named("GLOBAL", f"{module.value} {name.value}")

    def _call(self) -> Node:
        return self._made([self.stack.pop()])

    def _call_with_keywords(self) -> Node:
        return self._made([self.stack.pop(), self.stack.pop()])

    def _made(self, args: list[Node]) -> Node:
        function = self.stack.pop()
        node = Node("object", function.value)
        node.parts = [
            (f".__reduce_ex__(5)[1]{_text((None, step))}", part)
            for each in args
            for step, part in each.parts
        ]
        node.parts.append((".__reduce_ex__(5)[0]", function))
        self.stack.append(node)
        return node

    def _obj(self) -> Node:
        cls, *args = self._since_mark()
        node = Node("object", cls.value)
        node.parts = [(f".__reduce_ex__(5)[1][{n}]", part) for n, part in enumerate(args)]
        self.stack.append(node)
        return node

    def _build(self) -> Node:
        state = self.stack.pop()
        node: Node = self.stack[-1]
        node.parts.extend(_attributes(state))
        return node

    def _append(self, items: list[Node]) -> Node:
        node: Node = self.stack[-1]
        node.parts.extend(enumerate(items, node.elements))
        node.elements += len(items)
        return node

    def _set(self, items: list[Node]) -> Node:
        node: Node = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            node.parts.append((key, value))
            node.parts.append((" (a key)", key))
        return node


_CONSTANTS: dict[str, Any] = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None}


def _attributes(state: Node) -> Iterator[tuple[Any, Node]]:
    """The parts of a BUILD's state: attributes of a dict, of slots, or whatever it is."""
    halves = [part for step, part in state.parts if isinstance(step, int)]
    if state.kind == "dict":
        for step, part in state.parts:
            if isinstance(step, Node) and isinstance(step.value, str):
                yield f".{step.value}", part
    elif halves and all(half.kind in ("dict", "None") for half in halves):
        for half in halves:
            yield from _attributes(half)
    else:
        yield ".__getstate__()", state
