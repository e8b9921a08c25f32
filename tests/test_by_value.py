"""Functions and classes that only the program that saves has: by value, or else by name.

Each case is a program of its own, as what it is about is ``__main__``. Its first part defines, and
is run by whoever resumes; the second saves.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from second_reader import read_index

LOADS = "genesis.load(PATH)", "dill.load(open(PATH, 'rb'))"
HEAD = "import sys, genesis, dill, pickle\nPATH = sys.argv[1]"


def run(*parts: str, path: Path, fails: bool = False) -> str:
    """Run a program made of parts; return what it prints, or its errors."""
    code = "\n".join([HEAD, *map(textwrap.dedent, parts)])
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode != 0) is fails, done.stderr
    return done.stderr if fails else done.stdout


# --- The classes of the program that loads --------------------------------------------------------

CONFIG = """
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Config:
        rate: float = 0.5
        def doubled(self):
            return 2 * self.rate

    class Outer:
        class Inner:
            pass

    def scale(x):
        return 3 * x
"""

SAVES_CONFIG = """
    state = {"config": Config(), "table": {Config(2.0): 1}, "class": Config, "scale": scale,
             "inner": Outer.Inner(), "partial": __import__("functools").partial(scale, 2)}
    genesis.save(state, PATH, clear=False)
"""

USES_OWN = """
    assert type(state["config"]) is Config is state["class"]
    assert state["config"] == Config()
    assert state["table"][Config(2.0)] == 1
    assert type(state["inner"]) is Outer.Inner
    assert state["scale"] is scale
"""


@pytest.mark.parametrize("load", LOADS)
def test_a_class_that_the_program_has_is_that_class(load: str, path: Path) -> None:
    run(CONFIG, SAVES_CONFIG, f"state = {load}", USES_OWN, path=path)
    run(CONFIG, f"state = {load}", USES_OWN, path=path)


def test_after_an_edit_the_new_code_runs(path: Path) -> None:
    run(CONFIG, SAVES_CONFIG, path=path)
    edited = CONFIG.replace("2 * self", "10 * self").replace("3 * x", "4 * x")
    checks = """
        state = genesis.load(PATH)
        assert state["config"].doubled() == 5
        assert state["partial"]() == 8
    """
    run(edited, checks, path=path)


@pytest.mark.parametrize("load", LOADS)
def test_another_program_has_the_class_from_the_file(load: str, path: Path) -> None:
    run(CONFIG, SAVES_CONFIG, path=path)
    checks = f"""
        state = {load}
        assert state["config"].doubled() == 1
        assert state["table"][state["class"](2.0)] == 1
        assert (state["class"].__module__, state["class"].__qualname__) == ("__main__", "Config")
        assert type(state["inner"]).__qualname__ == "Outer.Inner"
        assert state["partial"]() == 6
    """
    run(checks, path=path)


def test_loading_leaves_no_second_class_behind(path: Path) -> None:
    code = """
        class Base: pass
        class Child(Base): pass
        genesis.save([Child(), Base()], PATH)
        genesis.load(PATH)
        assert Base.__subclasses__() == [Child], Base.__subclasses__()
    """
    run(code, path=path)


# --- Classes that are hard to make again ----------------------------------------------------------

HARD = {
    "keywords of a base's hook": (
        """
        class Base:
            def __init_subclass__(cls, *, key, **more):
                super().__init_subclass__(**more)
                cls.key = key
        class Child(Base, key=5):
            def answer(self):
                return self.key
        """,
        "Child()",
        "thing.answer() == 5",
    ),
    "a registry that refuses names it has": (
        """
        class Base:
            registry = {}
            def __init_subclass__(cls):
                assert cls.__name__ not in Base.registry, "registered twice"
                Base.registry[cls.__name__] = cls
        class Child(Base):
            pass
        """,
        "Child()",
        "type(thing).registry['Child'] is type(thing)",
    ),
    "keywords of a metaclass": (
        """
        class Meta(type):
            def __new__(meta, name, bases, names, *, key):
                return super().__new__(meta, name, bases, {**names, "key": key})
            def __init__(cls, name, bases, names, *, key):
                super().__init__(name, bases, names)
        class Thing(metaclass=Meta, key=5):
            pass
        """,
        "Thing()",
        "(type(thing).key, type(type(thing)).__name__) == (5, 'Meta')",
    ),
    "a metaclass whose classes cannot be changed": (
        """
        class Meta(type):
            def __setattr__(cls, name, value):
                raise AttributeError("frozen")
        class Thing(metaclass=Meta):
            key = 5
        """,
        "Thing()",
        "thing.key == 5",
    ),
    "mangled slots": (
        """
        class Thing:
            __slots__ = ("__x", "y", "__weakref__")
            def __init__(self):
                self.__x, self.y = 5, 6
            def answer(self):
                return self.__x
        """,
        "Thing()",
        "(thing.answer(), thing.y, hasattr(thing, '__dict__')) == (5, 6, False)",
    ),
    "slots of a base with a hook": (
        """
        class Base:
            __slots__ = ("a",)
            def __init_subclass__(cls, key): pass
        class Thing(Base, key=1):
            __slots__ = ("b",)
        made = Thing()
        made.a, made.b = 5, 6
        """,
        "made",
        "(thing.a, thing.b, hasattr(thing, '__dict__')) == (5, 6, False)",
    ),
    "abstract classes": (
        """
        import abc
        class Shape(abc.ABC):
            @abc.abstractmethod
            def area(self): ...
        class Square(Shape):
            def area(self):
                return 4
        class Alien: pass
        Shape.register(Alien)
        """,
        "(Square(), Shape, Alien())",
        (
            "(thing[0].area(), isinstance(thing[2], thing[1]), thing[1].__abstractmethods__) "
            "== (4, True, {'area'})"
        ),
    ),
    "generic classes": (
        """
        import typing
        T = typing.TypeVar("T", bound=int)
        class Box(typing.Generic[T]):
            def __init__(self, value: T):
                self.value = value
        class Boxes(Box[int]):
            kind: typing.ClassVar[type] = T
        """,
        "Boxes(5)",
        (
            "(thing.value, type(thing).kind.__bound__, type(thing).__orig_bases__[0].__args__) "
            "== (5, int, (int,))"
        ),
    ),
    "protocols": (
        """
        import typing
        @typing.runtime_checkable
        class Sized(typing.Protocol):
            def size(self) -> int: ...
        class Thing:
            def size(self) -> int: return 3
        """,
        "(Thing(), Sized)",
        "isinstance(thing[0], thing[1]) and not isinstance(3, thing[1])",
    ),
    "named tuples": (
        """
        import typing
        class Point(typing.NamedTuple):
            x: int
            y: int = 7
            def sum(self):
                return self.x + self.y
        """,
        "Point(1)",
        "(thing, thing.sum(), thing.y, type(thing)(2)) == ((1, 7), 8, 7, (2, 7))",
    ),
    "data classes with slots": (
        """
        import dataclasses
        @dataclasses.dataclass(slots=True, order=True)
        class Thing:
            x: int = 1
            y: list = dataclasses.field(default_factory=list)
        """,
        "Thing(2)",
        (
            "(thing.x, thing.y, thing < type(thing)(3), hasattr(thing, '__dict__')) "
            "== (2, [], True, False)"
        ),
    ),
    "properties and methods of every kind": (
        """
        import functools
        class Thing:
            made = 0
            @property
            def a(self): return 1
            @a.setter
            def a(self, value): self.made = value
            @staticmethod
            def b(): return 2
            @classmethod
            def c(cls): return cls.__name__
            @functools.cached_property
            def d(self): return 4
            @functools.lru_cache
            def e(self): return 5
        """,
        "Thing()",
        (
            "(setattr(thing, 'a', 9), thing.made, thing.a, thing.b()) == (None, 9, 1, 2) and "
            "(thing.c(), thing.d, thing.e()) == ('Thing', 4, 5)"
        ),
    ),
    "descriptors that want to know their name": (
        """
        class Field:
            def __set_name__(self, owner, name): self.name = name
            def __get__(self, obj, owner): return self.name
        class Thing:
            x = Field()
        """,
        "Thing()",
        "thing.x == 'x'",
    ),
    "subclasses of what C made": (
        """
        class Names(dict): pass
        class Stop(Exception):
            def code(self): return 5
        class Number(int): pass
        """,
        "(Names(a=1), Stop('x'), Number(3))",
        "(thing[0], thing[1].code(), thing[2] + 1) == ({'a': 1}, 5, 4)",
    ),
    "classes that refer to each other and to themselves": (
        """
        class A:
            def other(self): return B()
            @classmethod
            def make(cls): return __class__()
        class B(A):
            def name(self): return super().make()
        A.child, A.itself = B, A
        """,
        "B()",
        "(type(thing).itself.child is type(thing), type(thing.name()).__name__) == (True, 'A')",
    ),
    "a method that is a bound lambda": (
        """
        import types
        class Thing: pass
        made = Thing()
        made.answer = types.MethodType(lambda self: 5, made)
        """,
        "made",
        "thing.answer() == 5",
    ),
    "__setstate__ of instances": (
        """
        class Thing:
            def __getstate__(self): return {"x": 5}
            def __setstate__(self, state): self.x = state["x"] + 1
        """,
        "Thing()",
        "thing.x == 6",
    ),
    "a local class with a metaclass of a library": (
        """
        import enum
        def make():
            class Meta(type): pass
            class Local(metaclass=Meta):
                x = 5
            return Local()
        """,
        "make()",
        "thing.x == 5",
    ),
}


@pytest.mark.parametrize("name", HARD)
def test_a_class_that_is_hard_to_make_again(name: str, path: Path) -> None:
    define, thing, check = HARD[name]
    run(define, f"genesis.save({{'x': {thing}}}, PATH)", path=path)
    assert read_index(path)["pickler"] == "dill"
    checks = "\n".join(f"thing = {load}['x']\nassert {check}" for load in LOADS)
    run(checks, path=path)
    run(define, checks, path=path)


# --- Classes that cannot be saved by value --------------------------------------------------------

BY_NAME = {
    "thread-local data": "import threading\nclass Net:\n    x = threading.local()",
    "a context variable": "import contextvars\nclass Net:\n    x = contextvars.ContextVar('x')",
    "a generator": "class Net:\n    x = (n for n in [1])",
    "an enum": "import enum\nclass Net(enum.Enum):\n    A = 1\n    def __call__(self): return self",
}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_class_that_cannot_be_saved_by_value_is_saved_by_name(name: str, path: Path) -> None:
    define = textwrap.dedent(BY_NAME[name])
    thing = "Net.A" if name == "an enum" else "Net()"
    run(define, f"genesis.save({{'net': {thing}, 'f': lambda: 5}}, PATH)", path=path)
    check = "assert type(state['net']) is Net and state['f']() == 5"
    run(define, *(f"state = {load}\n{check}" for load in LOADS), path=path)
    assert "Net" in run("genesis.load(PATH)", path=path, fails=True)


def test_what_stands_beside_such_a_class_is_saved_by_value(path: Path) -> None:
    define = "import threading\nclass Net:\n    x = threading.local()\nclass Config:\n    y = 5"
    run(define, "genesis.save([Config(), Net()], PATH)", path=path)
    partner = "class Net: pass\nassert genesis.load(PATH)[0].y == 5"
    run(partner, path=path)


# --- Spawned children -----------------------------------------------------------------------------


def test_what_a_spawned_child_saves_is_loaded_by_any_program(path: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import enum, multiprocessing, sys
        import genesis

        class Config:
            x = 5

        class Color(enum.Enum):
            RED = 1

        def scale(x):
            return 3 * x

        def save():
            assert Config.__module__ == "__mp_main__"
            genesis.save({"config": Config(), "scale": scale}, sys.argv[1])
            genesis.save(Color.RED, sys.argv[1] + "-enum")

        if __name__ == "__main__":
            child = multiprocessing.get_context("spawn").Process(target=save)
            child.start()
            child.join()
            assert child.exitcode == 0
            state = genesis.load(sys.argv[1])
            assert type(state["config"]) is Config and state["scale"] is scale
            assert genesis.load(sys.argv[1] + "-enum") is Color.RED
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script), str(path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    run("s = genesis.load(PATH)\nassert (s['config'].x, s['scale'](2)) == (5, 6)", path=path)
    run(f"s = {LOADS[1]}\nassert s['config'].x == 5", path=path)


CLASS_WITH_FUNCTIONS = """
    class Trainer:
        def step(self):
            return 1
        @staticmethod
        def loss(x):
            return x + 1

    class Later(Trainer):
        def step(self):
            return super().step() + 10
"""


def test_a_function_of_a_class_is_the_one_that_the_program_has(tmp_path: Path) -> None:
    run(
        CLASS_WITH_FUNCTIONS,
        """
        state = {"loss": Trainer.loss, "step": Later.step, "class": Later}
        genesis.save(state, PATH, clear=False)
        loaded = genesis.load(PATH)
        assert all(loaded[key] is state[key] for key in state)
        """,
        path=tmp_path / "p",
    )


@pytest.mark.parametrize("load", LOADS)
def test_a_function_of_a_class_comes_from_the_file_elsewhere(load: str, tmp_path: Path) -> None:
    run(
        CLASS_WITH_FUNCTIONS,
        "genesis.save({'loss': Trainer.loss, 'step': Later.step, 'class': Later}, PATH)",
        path=tmp_path / "p",
    )
    run(
        f"""
        state = {load}
        assert state["loss"](1) == 2
        assert state["step"] is state["class"].step
        assert state["class"]().step() == 11
        """,
        path=tmp_path / "p",
    )


def test_a_name_that_no_other_program_may_have_is_logged_once(tmp_path: Path) -> None:
    printed = run(
        """
        import logging, threading
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        class Local:
            data = threading.local()
        for _ in range(2):
            genesis.save({"x": Local()}, PATH)
        """,
        path=tmp_path / "p",
    )
    assert printed.count("\n") == 1
    assert "saved by name" in printed
    assert "__main__.Local" in printed
