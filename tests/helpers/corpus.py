"""One of every kind of object that a training state may hold, made fresh by a call.

Importable, so that its classes and functions are saved by name; what `__main__` defines is
test_objects' business.
"""

from __future__ import annotations

import abc
import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import logging
import operator
import pathlib
import random
import re
import types
import typing
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from optional import nn, torch


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Flags(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Config:
    rate: float = 0.1
    layers: list[int] = dataclasses.field(default_factory=lambda: [1, 2])
    weights: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    name: str = "a"
    sizes: tuple[int, ...] = (1, 2)


class Point(typing.NamedTuple):
    x: int
    y: Any = None


Pair = collections.namedtuple("Pair", "left right")


class Slots:
    __slots__ = ("a", "b", "unset")

    def __init__(self) -> None:
        self.a, self.b = 1, [2]


class Node:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def method(self) -> Any:
        return vars(self)

    @classmethod
    def make(cls) -> Node:
        return cls()


class Named(dict[str, Any]):
    """A dict with an attribute."""


class Items(list[Any]):
    pass


class Meta(type):
    pass


class WithMeta(metaclass=Meta):
    pass


class Abstract(abc.ABC):
    @abc.abstractmethod
    def answer(self) -> int: ...


class Concrete(Abstract):
    def answer(self) -> int:
        return 42


class StateError(Exception):
    def __init__(self, code: int, detail: str) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


class Reduced:
    """Pickles itself by a call with state, items and pairs."""

    def __init__(self, seed: int) -> None:
        self.seed, self.more = seed, 1
        self.items: list[Any] = []
        self.pairs: dict[str, Any] = {}

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs[key] = value

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            Reduced,
            (self.seed,),
            {"more": self.more},
            iter(self.items),
            iter(self.pairs.items()),
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.more = state["more"]


class Renamed:
    def __getstate__(self) -> dict[str, Any]:
        return {"kept": vars(self)["kept"]}


class Net(nn.Module if nn else object):  # type: ignore[misc]
    def __init__(self) -> None:
        torch.manual_seed(2)
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 3)
        self.head.weight = nn.Parameter(self.body[0].weight.t().detach().contiguous())
        self.tied = self.body[0].weight
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("cache", torch.ones(2), persistent=False)


def function(x: int, *, by: int = 2) -> int:
    return x * by


def _shared() -> Any:
    inner = [1, {"deep": (1, 2)}]
    return {"a": inner, "b": inner, "c": (inner, inner[1]), "d": Node(ref=inner)}


def _cycles() -> Any:
    loop: list[Any] = [1]
    loop.append(loop)
    table: dict[str, Any] = {"loop": loop}
    table["self"] = table
    node = Node(table=table)
    node.me = node
    pair: tuple[list[Any]] = ([],)
    pair[0].append(pair)
    return [loop, table, node, pair]


def _shared_arrays() -> Any:
    array, tensor = np.arange(5.0), torch.arange(6.0)
    return {"a": [array, array], "t": (tensor, tensor), "n": Node(array=array, tensor=tensor)}


def _trained() -> Any:
    torch.manual_seed(1)
    net = Net()
    net.eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, amsgrad=True)
    for _ in range(3):
        optimizer.zero_grad()
        net.head(net.body(torch.ones(2, 3))).sum().backward()
        optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    return net.state_dict(), optimizer.state_dict(), scheduler.state_dict()


def _with_attribute(thing: Any) -> Any:
    thing.kept = [1]
    return thing


def _reduced() -> Any:
    made = Reduced(3)
    made.more, made.items, made.pairs = 2, [1, 2], {"k": [3]}
    return made


def _deep(levels: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return inner


def _numbers() -> Any:
    floats = [0.0, -0.0, 1e308, 5e-324, float("inf"), float("nan"), 0.1]
    integers = [0, -1, 255, 256, 65536, 2**31, -(2**31), 2**63, -(2**63) - 1, 1 << 5000]
    return floats, integers, 1 + 2j, complex(float("nan"), -0.0), True, None


def _structures() -> Any:
    return {
        "ordered": collections.OrderedDict(z=1, a=[2]),
        "default": collections.defaultdict(list, a=[1]),
        "counter": collections.Counter("aab"),
        "deque": collections.deque([1, [2]], maxlen=5),
        "set": {1, "a", (2, 3)},
        "frozenset": frozenset({1, None}),
        "range": range(3, 9, 2),
        "slice": slice(1, None, 2),
        "bytearray": bytearray(b"ab"),
        (1, "tuple", None): "key",
        1.5: -1,
        None: ...,
    }


PLAIN: dict[str, Callable[[], Any]] = {
    "numbers": _numbers,
    "strings": lambda: ["", "a", "ünï", "\U0001f600", "\ud800", "x" * 300, "y" * 70_000],
    "bytes": lambda: [b"", b"a", bytes(range(256)), b"z" * 70_000, bytearray(b"w" * 70_000)],
    "structures": _structures,
    "empty": lambda: [{}, [], (), set(), frozenset(), "", b"", collections.OrderedDict()],
    "shared references": _shared,
    "cycles": _cycles,
    "long list": lambda: list(range(3000)),
    "large dict": lambda: {str(n): n for n in range(3000)},
    "deep": lambda: _deep(100),
    "enums": lambda: [Color.RED, Color.BLUE, Flags.READ | Flags.WRITE, Level.LOW, {Color.RED: 1}],
    "dataclasses": lambda: [Config(weights=np.ones(2)), Frozen()],
    "named tuples": lambda: [Point(1, [2]), Pair(1, 2), Point(Pair(3, 4))],
    "slots": Slots,
    "instances": lambda: Node(a=Node(b=[Node()]), c=Concrete(), d=WithMeta()),
    "subclasses of containers": lambda: [_with_attribute(Named(a=1)), Items([1, 2])],
    "reduce of five parts": _reduced,
    "getstate": lambda: _with_attribute(Renamed()),
    "exceptions": lambda: [ValueError("a", 1), StateError(3, "why"), KeyError("k")],
    "classes": lambda: [Node, Meta, WithMeta, Color, int, dict, type(None), type(...)],
    "functions": lambda: [function, len, operator.add, Node.make, np.add],
    "methods": lambda: [(node := Node(a=1)), node.method, [3, 4].index],
    "partial": lambda: functools.partial(function, 3, by=5),
    "getters": lambda: [operator.itemgetter(1, 2), operator.attrgetter("a.b")],
    "dates": lambda: [
        datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC),
        datetime.timedelta(days=1, microseconds=5),
        datetime.date(2026, 1, 2),
    ],
    "exact numbers": lambda: [decimal.Decimal("1.10"), fractions.Fraction(1, 3)],
    "identifiers": lambda: [uuid.UUID(int=5), pathlib.PurePosixPath("/a/b")],
    "addresses": lambda: ipaddress.ip_network("10.0.0.0/8"),
    "patterns": lambda: re.compile("a+", re.IGNORECASE),
    "namespace": lambda: types.SimpleNamespace(a=1, b=[2]),
    "generic aliases": lambda: [list[int], int | str, typing.Optional[int]],  # noqa: UP045
    "array module": lambda: array.array("d", [1.0, 2.0]),
    "singletons": lambda: [..., NotImplemented, logging.getLogger("genesis.tests")],
    "random states": lambda: [random.Random(3).getstate(), np.random.RandomState(3).get_state()],
    "torch random state": lambda: torch.Generator().manual_seed(5).get_state(),
    "numpy arrays": lambda: [np.arange(3), np.eye(2, dtype="f4"), np.float32(1.5), np.array("a")],
    "numpy objects": lambda: np.array([1, "a", None, [2]], dtype=object),
    "numpy structures": lambda: np.zeros(2, dtype=[("a", "i4"), ("b", "f8", (2,))]),
    "torch tensors": lambda: [torch.ones(2, 3), torch.tensor(1), torch.empty(0), torch.ones(2) > 0],
    "torch values": lambda: [
        *(torch.float32, torch.device("cpu"), torch.Size([1, 2]), torch.strided, torch.add)
    ],
    "parameters": lambda: [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), False)],
    "shared arrays": _shared_arrays,
    "modules": Net,
    "trained": _trained,
}
"""What the C pickler saves."""


def _counter() -> Any:
    count = 0

    def add() -> int:
        nonlocal count
        count += 1
        return count

    def get() -> int:
        return count

    return add, get


def _check_counter(functions: Any) -> None:
    add, get = functions
    assert (add(), add(), get()) == (1, 2, 2)


def _factorial() -> Any:
    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    return factorial


def _decorated() -> Any:
    @functools.wraps(function)
    def inner(x: int) -> int:
        return function(x) + 1

    return inner


def _inside_and_outside(array: Any) -> Any:
    return array, lambda: array


def _check_inside_and_outside(pair: Any) -> None:
    assert pair[0] is pair[1]()


def _tied_inside() -> Any:
    weight = torch.arange(6.0).reshape(2, 3)
    return weight, lambda: weight.t()


def _check_tied_inside(pair: Any) -> None:
    pair[0][0, 2] = 9
    assert pair[1]()[2, 0] == 9


def _local_class() -> Any:
    class Base:
        def name(self) -> str:
            return "base"

    class Derived(Base):
        def name(self) -> str:
            return "derived from " + super().name()

    return Derived(), Derived


def _check_local_class(pair: Any) -> None:
    assert pair[0].name() == "derived from base"
    assert type(pair[0]) is pair[1]


def _scheduler() -> Any:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    weight.sum().backward()
    optimizer.step()
    scheduler.step()
    return weight, optimizer, scheduler


def _check_scheduler(parts: Any) -> None:
    weight, optimizer, scheduler = parts
    assert isinstance(optimizer, torch.optim.AdamW)
    assert scheduler.optimizer is optimizer
    assert optimizer.param_groups[0]["params"][0] is weight
    assert scheduler.get_last_lr() == [0.25]
    weight.sum().backward()
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.125]


def _hooked() -> Any:
    net = nn.Linear(2, 2)
    net.register_forward_hook(lambda module, args, output: output * 0)
    return net


def _check_hooked(net: Any) -> None:
    assert net(torch.ones(2)).tolist() == [0, 0]


def _defaults() -> Any:
    return collections.defaultdict(lambda: collections.defaultdict(lambda: [5]))


def _check_defaults(table: Any) -> None:
    assert table["a"]["b"] == [5]
    assert list(table) == ["a"]


def _is(expected: Any) -> Callable[[Any], None]:
    def check(result: Any) -> None:
        assert result == expected

    return check


def _calls(*arguments: Any, to: Any) -> Callable[[Any], None]:
    def check(function: Any) -> None:
        assert function(*arguments) == to

    return check


NEEDS_DILL: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "lambda": (lambda: lambda x, *, y=(1, 2): (x, y), _calls(3, to=(3, (1, 2)))),
    "closures over one variable": (_counter, _check_counter),
    "recursive function": (_factorial, _calls(5, to=120)),
    "decorated function": (_decorated, _calls(5, to=11)),
    "array in a closure": (lambda: _inside_and_outside(np.ones(2)), _check_inside_and_outside),
    "tensor in a closure": (lambda: _inside_and_outside(torch.ones(2)), _check_inside_and_outside),
    "tied tensor in a closure": (_tied_inside, _check_tied_inside),
    "defaultdict of defaultdicts": (_defaults, _check_defaults),
    "classes of a function": (_local_class, _check_local_class),
    "partial of a lambda": (lambda: functools.partial(lambda a, b: a - b, 1), _calls(3, to=-2)),
    "scheduler of a lambda": (_scheduler, _check_scheduler),
    "forward hook": (_hooked, _check_hooked),
    "property": (lambda: property(lambda self: 5), lambda made: _is(5)(made.fget(None))),
    "lru cache": (lambda: functools.lru_cache(lambda x: x + 1), _calls(1, to=2)),
    "code": (lambda: (lambda: 1).__code__, lambda code: _is("<lambda>")(code.co_name)),
    "read-only mapping": (lambda: types.MappingProxyType({1: 2}), lambda view: _is({1: 2})(view)),
}
"""What only dill saves, each with a check of what it does."""
