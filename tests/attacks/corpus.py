"""The hostile corpus: skeletons that attack whoever unpickles them, one technique each.

They go for code of the attacker's, for memory that is not the file's, for all memory, for all time,
or for the interpreter's stack. This module only writes them down.
"""

from __future__ import annotations

import marshal
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from assembler import (
    FROM_BUFFER,
    REGION,
    Code,
    array,
    build,
    call,
    dictionary,
    dtype,
    floats,
    integers,
    name,
    new,
    quantized,
    sparse,
    storage,
    stream,
    tensor,
    text_name,
    typed,
    value,
)

DATA = bytes(192) + struct.pack("<8q", 5, -1, 1 << 40, 1 << 62, 0, 2, 1, 0)
"""The data region that comes with each: zeros, then integers that are no good as indices."""

DATA_SIZE = len(DATA)

EXTENSION_CODES = {
    0x7B: ("os", "system"),
    0x7B01: ("posix", "system"),
    0x7B0102: ("subprocess", "getoutput"),
}
"""Registered in the process that runs the corpus."""

CANARY_MODULE = "genesis_canary"
"""What an attack leaves in ``sys.modules`` that has no command to run."""

NOT_LISTED = "a global that is not on the list"
NOT_ALLOWED = "opcode .* is not allowed"
HUGE = 2**62


@dataclass(frozen=True)
class Attack:
    """One hostile skeleton.

    Attributes:
        name: its group, and what is special about it.
        tries: what its group is after, a line.
        match: a regular expression for the reason that it has to be refused for; empty where it
            gives a value that harms nobody.
        executes: it leaves its mark when plain `pickle.loads` reads it.
    """

    name: str
    skeleton: bytes
    tries: str
    match: str
    executes: bool = False


Named = Iterator[tuple[str, Code]]


def attacks(canary: str) -> list[Attack]:
    """The corpus. What it executes creates the file `canary`."""
    run = f"touch {canary}"
    return [
        *_all("calls", _calls, f"{NOT_LISTED}|{NOT_ALLOWED}", run, executes=True),
        *_all("gadgets", _gadgets, NOT_LISTED, run, canary, executes=True),
        *_all("old names", _old_names, NOT_LISTED, run, executes=True, protocol=2),
        *_all("late gadgets", _late_gadgets, NOT_LISTED, run),
        *_all("names", _names, NOT_LISTED),
        *_all("listed names", _misused_names, "is a tuple|stands in the place|a call of|argument"),
        *_all("opcodes", _opcodes, NOT_ALLOWED),
        *_malformed(),
        *_lies(),
        *_all("expansion", _expansions, "many times over"),
        *_all("depth", _depths, "deep"),
        *_all(
            "nested calls", _nested_calls, f"{NOT_LISTED}|place of a function|argument|in a Param"
        ),
        *_all("long names", _long_names, "has a name of"),
        *_all("attributes", _attributes, "attribute|in the place of|as the class of|a Parameter"),
        *_all("methods", _methods, NOT_LISTED),
        *_all(
            "nested tensors", _nested_tensors, "nested|jagged|ends at|is no size|as a part|copied"
        ),
        *_all(
            "records", _records, f"{NOT_LISTED}|FrozenDict|time zone|other parts|deque|another way"
        ),
        *_all("copies", _copies, "copied"),
        *_all("keys", _keys, "a key is|keys were chosen|huge number|copied"),
        *_all("state", _states, "BUILD|NEWOBJ|SETITEMS|APPENDS|ADDITEMS"),
        *_all("numpy", _arrays, "numpy"),
        *_all("numpy's own", _unfinished, "numpy|the state of a"),
        *_all("torch", _tensors, "torch"),
        *_all("plain", _plain, "builtins|collections|_codecs|dill"),
        *_all("harmless", _harmless, ""),
    ]


def _all(
    group: str,
    make: Callable[..., Named],
    match: str,
    *arguments: str,
    executes: bool = False,
    protocol: int = 5,
) -> Iterator[Attack]:
    tries = str(make.__doc__).partition("\n")[0]
    for what, code in make(*arguments):
        yield Attack(f"{group}: {what}", stream(code, protocol), tries, match, executes)


def _calls(run: str) -> Named:
    """Every way a pickle has to call something."""
    system = name("os", "system")
    to_list = name("builtins", "list")
    mapping = name("builtins", "map")
    partial = call(name("functools", "partial"), name("builtins", "print"))
    yield "REDUCE", call(system, run)
    yield "REDUCE of a name in text", call(text_name("os", "system"), run)
    yield "REDUCE of the module behind it", call(name("posix", "system"), run)
    yield "REDUCE of a dotted name", call(name("shutil", "os.system"), run)
    yield "REDUCE of a name below an allowed module", call(name("torch", "os.system"), run)
    yield "REDUCE in a key", dictionary((call(system, run), 1))
    yield "REDUCE, dropped", Code(call(system, run) + b"0N")
    yield "REDUCE, only memoized", Code(call(system, run) + b"\x940N")
    yield "INST", Code(b"(" + value(run) + b"ios\nsystem\n")
    yield "OBJ", call(to_list, Code(b"(" + mapping + system + value([run]) + b"o"))
    yield "NEWOBJ", call(to_list, new(mapping, system, [run]))
    yield "NEWOBJ_EX", call(to_list, Code(mapping + value((system, [run])) + value({}) + b"\x92"))
    newobj = name("copyreg", "__newobj__")
    yield "copyreg's NEWOBJ", call(to_list, call(newobj, mapping, system, [run]))
    yield (
        "REDUCE in the state of a dict",
        build(call(name("collections", "OrderedDict")), {"_metadata": call(system, run)}),
    )
    yield "REDUCE in the shape of an array", array((call(system, run),))
    yield "REDUCE in a name", Code(value("collections") + call(system, run) + b"\x93")
    yield "REDUCE between marks that are dropped", Code(b"((" + call(system, run) + b"11N")
    yield "BUILD", call(build(partial, (system, (run,), {}, {})))
    for opcode, form, code in zip((0x82, 0x83, 0x84), "BHi", EXTENSION_CODES, strict=True):
        extension = Code(bytes((opcode,)) + struct.pack(f"<{form}", code))
        yield f"EXT{struct.calcsize(form)}", call(extension, run)
    yield "SETITEM into sys.modules", Code(name("sys", "modules") + value(CANARY_MODULE) + b"Ns")
    yield (
        "SETITEMS into sys.modules",
        Code(name("sys", "modules") + b"(" + value(CANARY_MODULE) + b"Nu"),
    )


def _gadgets(run: str, canary: str) -> Named:
    """Functions that do the attacker's work under a harmless name."""
    os_module, python = name("shutil", "os"), f"__import__('os').system({run!r})"
    inner = stream(call(name("os", "system"), run))
    simple: list[tuple[str, str, tuple[object, ...]]] = [
        ("builtins", "eval", (python,)),
        ("builtins", "exec", (python,)),
        ("builtins", "open", (canary, "w")),
        ("io", "FileIO", (canary, "w")),
        ("shutil", "copyfile", ("/dev/null", canary)),
        ("subprocess", "getoutput", (run,)),
        ("subprocess", "check_call", (run.split(),)),
        ("timeit", "timeit", ("pass", python)),
        ("cProfile", "run", (python,)),
        ("profile", "run", (python,)),
        ("runpy", "_run_code", (python, {})),
        ("pydoc", "pipepager", ("", run)),
        ("numpy.testing._private.utils", "runstring", (python, {})),
        ("posix", "system", (run,)),
        ("pickle", "loads", (inner,)),
        ("_pickle", "loads", (inner,)),
        ("dill", "loads", (inner,)),
        ("dill._dill", "_eval_repr", (python,)),
        ("torch.storage", "_load_from_bytes", (inner,)),
        ("torch", "UntypedStorage.from_file", (canary, True, 64)),
        ("numpy", "memmap", (canary, "u1", "w+", 0, (4,))),
    ]
    for module, qualname, arguments in simple:
        yield f"{module}.{qualname}", call(name(module, qualname), *arguments)
    getattr_ = name("builtins", "getattr")
    imported = call(name("importlib", "import_module"), "os")
    yield "getattr", call(call(getattr_, os_module, "system"), run)
    yield "import_module", call(call(getattr_, imported, "system"), run)
    yield (
        "__import__",
        call(call(getattr_, call(name("builtins", "__import__"), "os"), "system"), run),
    )
    yield "attrgetter", call(call(call(name("operator", "attrgetter"), "system"), os_module), run)
    yield "methodcaller", call(call(name("operator", "methodcaller"), "system", run), os_module)
    yield "partial", call(call(name("functools", "partial"), name("os", "system"), run))
    yield "Path.touch", call(name("pathlib", "Path.touch"), call(name("pathlib", "Path"), canary))
    yield "operator.call", call(name("operator", "call"), name("os", "system"), run)
    code = marshal.dumps(compile(python, "canary", "eval"))
    made = call(name("types", "FunctionType"), call(name("marshal", "loads"), code), {})
    yield "marshal and FunctionType", call(made)
    printer = call(name("code", "InteractiveInterpreter"))
    yield "runsource", call(call(name("operator", "methodcaller"), "runsource", python), printer)
    yield (
        "starmap",
        call(
            name("builtins", "list"),
            call(name("itertools", "starmap"), name("os", "system"), [(run,)]),
        ),
    )
    yield (
        "filter",
        call(
            name("builtins", "list"), call(name("builtins", "filter"), name("os", "system"), [run])
        ),
    )


def _old_names(run: str) -> Named:
    """Names of Python 2, which pickle translates in protocols below 3."""
    python = f"__import__('os').system({run!r})"
    yield "__builtin__ eval", call(text_name("__builtin__", "eval"), python)
    yield "commands", call(text_name("commands", "getoutput"), run)
    yield (
        "copy_reg",
        call(
            text_name("__builtin__", "list"),
            call(
                text_name("copy_reg", "__newobj__"),
                text_name("itertools", "imap"),
                text_name("os", "system"),
                [run],
            ),
        ),
    )


def _late_gadgets(run: str) -> Named:
    """Calls that run when the interpreter ends, a thread starts or memory is freed."""
    system = name("os", "system")
    yield "atexit", call(name("atexit", "register"), system, run)
    yield "finalize", call(name("weakref", "finalize"), name("collections", "Counter"), system, run)
    yield "a thread", call(name("_thread", "start_new_thread"), system, (run,))
    yield "a timer", call(name("threading", "Timer"), 0.1, system, (run,))
    yield "a signal", call(name("signal", "signal"), 14, system)
    yield "an audit hook", call(name("sys", "addaudithook"), system)
    yield "a codec", call(name("codecs", "register"), system)
    yield "another library", call(name("ctypes", "CDLL"), "libc.so.6")
    yield "a library of torch", call(name("torch.ops", "load_library"), "libc.so.6")
    yield "a model of the hub", call(name("torch.hub", "load"), "somebody/something", "model")


def _names() -> Named:
    """Names that are nearly on the list."""
    for module, qualname in (
        ("collections", "OrderedDict\nos system"),
        ("collections ", "OrderedDict"),
        ("", "collections OrderedDict"),
        ("collections OrderedDict", ""),
        ("collections", "OrderedDict.__class__"),
        ("collections", "OrderedDict.fromkeys.__self__.__subclasses__"),
        ("Collections", "OrderedDict"),
        ("collections", "\uff2frderedDict"),
        ("c\u043ellections", "OrderedDict"),
        ("collections\u200b", "OrderedDict"),
        ("\u202ecollections", "OrderedDict"),
        ("collections", "Ordered\u0130ict"),
        ("collections", "OrderedDict\ud800"),
        ("collections", ".OrderedDict"),
        ("collections", "OrderedDict."),
        ("collections.", "OrderedDict"),
        (".collections", "OrderedDict"),
        ("collections/__init__", "OrderedDict"),
        ("../collections", "OrderedDict"),
        ("collections:OrderedDict", ""),
        ("__main__", "OrderedDict"),
        ("torch", "UntypedStorage.from_buffer.__self__"),
        ("torch UntypedStorage", "from_buffer"),
        ("torch.storage", "_StorageBase.cuda.__globals__"),
        ("torch.serialization", "_get_layout.cache"),
        ("numpy", "dtype.type"),
        ("genesis._safe.site", "REGISTRY.update"),
        ("collections", "OrderedDict\0"),
        ("collections.abc", "OrderedDict"),
        ("torch", "load"),
        ("torch", "float32.__class__"),
        ("torch._utils", "torch.load"),
        ("torch._utils", "torch.channels_last.__class__"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch._utils", "_set_obj_state"),
        ("optax", "adam"),
        ("flax.core.frozen_dict", "freeze"),
        ("jax._src.array", "make_array_from_callback"),
        ("datetime", "datetime.strptime"),
        ("torch.fx.graph_module", "reduce_graph_module"),
        ("torch.storage", "_StorageBase.from_file"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "load"),
        ("numpy.ma.core", "_mareconstruct"),
        ("ml_dtypes", "np"),
        ("jax.numpy", "load"),
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("copyreg", "_reconstructor"),
        ("genesis", "load"),
        ("genesis._safe", "add_safe_globals"),
    ):
        yield f"{module!r} {qualname!r}", call(name(module, qualname))
    yield "text with a carriage return", call(text_name("collections\r", "OrderedDict"))
    yield "text with a name of two lines", Code(b"ccollections\n\nOrderedDict\n.")


def _misused_names() -> Named:
    """Names from the list, where they have no business."""
    ordered = name("collections", "OrderedDict")
    yield "a class as a value", Code(value([]) + ordered + b"a")
    yield "a class as the whole", ordered
    yield "the data region as a value", value({"all of it": REGION})
    yield "the data region called", call(REGION)
    yield "the storage constructor as a value", value((FROM_BUFFER,))
    yield "a plain type called", call(name("builtins", "list"), [1])
    yield "a dtype called", call(name("torch", "float32"))
    yield "a value called", call(value("os.system"), "true")
    yield "arguments too many", call(ordered, [("a", 1)])
    yield "arguments in a list", Code(ordered + value([]) + b"R")
    yield "a dtype's class called", call(name("numpy", "record"), 1)
    yield "a class of NumPy as a value", value([name("numpy", "record")])
    yield "a class of an extension as a value", value([name("ml_dtypes", "bfloat16")])
    yield "a class in a tuple in a list", value([((ordered,),)])
    yield "a class in an attribute", build(call(ordered), {"_metadata": ordered})


def _opcodes() -> Named:
    """What no pickler writes for plain data."""
    yield "DUP", Code(b"N2\x86")
    yield "a bomb of DUPs", Code(b"N" + b"2\x86" * 5_000)
    yield "PERSID", Code(b"Pwho\n")
    yield "BINPERSID", Code(b"NQ")
    yield "NEXT_BUFFER", Code(b"\x97")
    yield "READONLY_BUFFER", Code(value(bytearray_()) + b"\x98")
    yield "INT", Code(b"I1\n")
    yield "LONG", Code(b"L" + b"9" * 10_000_000 + b"L\n")
    yield "FLOAT", Code(b"F1e5\n")
    yield "STRING", Code(b"S'a'\n")
    yield "UNICODE", Code(b"Va\n")
    yield "LIST", Code(b"(Nl")
    yield "DICT", Code(b"(NNd")
    yield "PUT", Code(b"Np99999999999\n")
    yield "GET", Code(b"Ng0\n")
    yield "BINSTRING", Code(b"T\x01\x00\x00\x00a")


def bytearray_() -> Code:
    return Code(b"\x96" + struct.pack("<Q", 1) + b"a")


def _malformed() -> Iterator[Attack]:
    """Streams that are no pickles."""
    for what, skeleton, match in (
        ("empty", b"", "begin with a protocol"),
        ("a protocol and nothing", b"\x80\x05", "ends without STOP"),
        ("no protocol", b"N.", "begin with a protocol"),
        ("protocol 1", b"\x80\x01N.", "protocol 1"),
        ("protocol 6", b"\x80\x06N.", "protocol 6"),
        ("no STOP", b"\x80\x05N", "ends without STOP"),
        ("no value", b"\x80\x05.", "one value"),
        ("two values", b"\x80\x05NN.", "one value"),
        ("an open mark", b"\x80\x05(N.", "one value"),
        ("more after STOP", b"\x80\x05N.N.", "goes on after STOP"),
        ("an unknown opcode", b"\x80\x05\xff.", "0xff is no opcode"),
        ("a byte of zero", b"\x80\x05\x00.", "0x00 is no opcode"),
        ("POP of nothing", b"\x80\x050.", "empty stack"),
        ("MEMOIZE of nothing", b"\x80\x05\x94.", "empty stack"),
        ("TUPLE3 of two", b"\x80\x05NN\x87.", "empty stack"),
        ("TUPLE without a mark", b"\x80\x05Nt.", "empty stack"),
        ("POP_MARK without a mark", b"\x80\x05N1.", "empty stack"),
        ("a mark that POP took away", b"\x80\x05](0e.", "empty stack"),
        ("an item for what is below the mark", b"\x80\x05](Na.", "empty stack"),
        (
            "STOP within a frame that goes on",
            b"\x80\x05\x95\x10" + bytes(7) + b"N.",
            "a frame is longer",
        ),
        (
            "a second pickle in the frame",
            b"\x80\x05\x95\x06" + bytes(7) + b"N.\x80\x05N.",
            "goes on after STOP",
        ),
        (
            "a name of a name of no string",
            b"\x80\x05" + b"\x8c\x01a" * 2 + b"\x93\x8c\x01a\x93.",
            "no string|not on the list",
        ),
        ("APPENDS below a mark", b"\x80\x05(Ne.", "empty stack"),
        ("REDUCE of one", b"\x80\x05)R.", "empty stack"),
        ("SETITEMS of an odd number", b"\x80\x05}(NNNu.", "without a value"),
        ("a name of no string", b"\x80\x05NN\x93.", "no string"),
        ("a name of no UTF-8", b"\x80\x05c\xff\n\xff\n.", "not UTF-8"),
        ("a name without end", b"\x80\x05ccollections\nOrdered", "no end"),
        ("a string of no UTF-8", b"\x80\x05\x8c\x02\xff\xff.", "not UTF-8"),
        ("a memo entry that is not", b"\x80\x05h\x09.", "never set"),
        ("a far memo entry that is not", b"\x80\x05j\xff\xff\xff\xff.", "never set"),
    ):
        yield Attack(f"malformed: {what}", skeleton, "Streams that are no pickles.", match)


def _lies() -> Iterator[Attack]:
    """Lengths and indices that ask for memory the file does not have."""
    tries = "Lengths and indices that ask for memory the file does not have."
    announced = "announced"
    frame = b"\x95"
    for what, code, match in (
        ("BINBYTES", b"B\xff\xff\xff\xff", announced),
        ("BINBYTES8", b"\x8e" + struct.pack("<Q", 1 << 40), announced),
        ("BINBYTES8 of all", b"\x8e" + b"\xff" * 8, announced),
        ("BYTEARRAY8", b"\x96" + struct.pack("<Q", HUGE), announced),
        ("BINUNICODE", b"X\xff\xff\xff\xff", announced),
        ("BINUNICODE8", b"\x8d" + struct.pack("<Q", 1 << 40), announced),
        ("LONG4", b"\x8b\xff\xff\xff\x7f", announced),
        ("LONG4 below zero", b"\x8b\x00\x00\x00\x80", announced),
        ("SHORT_BINBYTES", b"C\xff", announced),
        ("BINFLOAT", b"G\x00", announced),
        ("SHORT_BINUNICODE", b"\x8c\xff", announced),
        ("LONG1", b"\x8a\xff", announced),
        ("BINUNICODE8 of half of all", b"\x8d" + struct.pack("<Q", 1 << 63), announced),
        ("FRAME", frame + struct.pack("<Q", 1 << 40) + b"N", "a frame is longer"),
        ("FRAME of all", frame + b"\xff" * 8 + b"N", "a frame is longer"),
        ("FRAME in a FRAME", (frame + struct.pack("<Q", 10)) * 2 + b"N", "a frame is longer"),
        ("FRAME cut short", frame + b"\x01", announced),
        ("LONG_BINPUT", b"Nr\xff\xff\xff\xff", "out of turn"),
        ("LONG_BINPUT, twice the size each time", b"Nr\x02\0\0\0r\x04\0\0\0", "out of turn"),
        ("BINPUT over the data region", b"Nq\x00", "out of turn"),
    ):
        yield Attack(f"lies: {what}", stream(code), tries, match)


def _nested(count: int, begin: bytes, end: bytes) -> Code:
    return Code(begin * count + b"N" + end * count)


def _expansions() -> Named:
    """A billion laughs: small in memory, endless for whoever walks or prints them."""
    memo = [b"j" + struct.pack("<I", index) for index in range(2, 60)]
    for what, begin, end in (("lists", b"](", b"e"), ("tuples", b"(", b"t")):
        code = begin + b"N" * 8 + end + b"\x94"
        for each in memo[:30]:
            code += b"0" + begin + each * 8 + end + b"\x94"
        yield what, Code(code)
    code = b"}\x94"
    for each in memo[:50]:
        code += b"0}(" + value("a") + each + value("b") + each + b"u\x94"
    yield "dicts", Code(code)
    code = b"N\x94"
    for each in memo[:50]:
        code += b"0" + each + each + b"\x86\x94"
    yield "pairs", Code(code)


def _depths() -> Named:
    """Nests that overflow the stack of whoever hashes, prints, copies or frees them."""
    ordered, default = name("collections", "OrderedDict"), name("collections", "defaultdict")
    yield "lists", _nested(50_000, b"](", b"e")
    yield "lists, one item each", _nested(50_000, b"]", b"a")
    yield "tuples", _nested(100_000, b"", b"\x85")
    yield "dicts", _nested(50_000, b"}N", b"s")
    make = ordered + b"\x94)\x940"
    yield "OrderedDicts", Code(make + b"0" + _nested(50_000, b"h\x02h\x03RN", b"s"))
    make = default + b"\x94)\x940"
    yield "defaultdicts", Code(make + b"0" + _nested(100_000, b"h\x02h\x03RN", b"s"))
    make = name("collections", "deque") + b"\x94)\x940"
    yield "deques", Code(make + b"0" + _nested(100_000, b"h\x02h\x03R", b"a"))
    attribute = b"}" + value("_metadata")
    make = ordered + b"\x94)\x940"
    yield "attributes", Code(make + b"0" + _nested(50_000, b"h\x02h\x03R" + attribute, b"sb"))
    # Built from the inside: the walk from the outside meets every list at a depth of two.
    inside_out = b"](]\x94" + b"".join(
        b"](j" + struct.pack("<I", index) + b"e\x94" for index in range(2, 3000)
    )
    yield "lists that are all at hand", Code(inside_out + b"e")


def _nested_calls() -> Named:
    """Calls in the arguments of calls: whoever reads them by recursion runs out of stack."""
    count = 20_000
    function = name("torch._tensor", "_rebuild_from_type_v2")
    subclasses = b"h\x02N" * count + b")" + b"\x87" * count
    yield "of a subclass", Code(function + b"\x940" + b"h\x02" + subclasses + b"R")
    parameter = name("torch._utils", "_rebuild_parameter_with_state")
    yield "of a parameter", Code(parameter + b"\x940" + b"h\x02" * count + b"N" + b"\x85R" * count)
    yield (
        "of an unknown function",
        Code(b"cos\nsystem\n\x940" + b"h\x02" * count + b"N" + b"\x85R" * count),
    )


def _long_names() -> Named:
    """Names of globals that take as much memory as the file has, at a few bytes each."""
    long = value("a" * 500_000) + b"\x94"
    named = long + long + b"](" + b"h\x02h\x03\x93" * 50_000 + b"e"
    yield "memoized strings", Code(named)
    yield "memoized strings, dropped", Code(long + b"0" + b"h\x02h\x02\x930" * 50_000 + b"N")
    yield "a module", name("a" * 1_000_000, "b")
    yield "a line of text", text_name("a" * 1_000_000, "b")


def _attributes() -> Named:
    """Attributes of tensors that hide what a tensor is, and classes that are none of theirs."""
    rebuild = name("torch._tensor", "_rebuild_from_type_v2")
    dense, kind = name("torch._utils", "_rebuild_tensor_v2"), name("torch", "Tensor")
    parts = value((typed(storage(0, 64)), 0, (4,), (1,), False, None))

    def made(
        state: object, function: Code = dense, cls: object = kind, given: Code = parts
    ) -> Code:
        return call(rebuild, function, cls, given, state)

    for attribute in (
        *("data", "grad", "_backward_hooks", "__class__", "__dict__", "clone"),
        *(
            "__torch_function__",
            "__reduce_ex__",
            "__array__",
            "requires_grad",
            "is_sparse",
            "a b",
            "",
        ),
    ):
        yield f"named {attribute!r}", made({attribute: 1})
    yield "named by a number", made({1: 1})
    yield "in slots", made((None, {"data": 1}))
    yield "that are a list", made([1])
    yield (
        "of a parameter",
        call(
            name("torch._utils", "_rebuild_parameter_with_state"), floats(), True, None, {"data": 1}
        ),
    )
    yield (
        "of a parameter that is a list",
        call(name("torch._utils", "_rebuild_parameter_with_state"), [1], True, None, {}),
    )
    yield "of a class that is a string", made({}, cls="torch.Tensor")
    yield "of a class that is a function", made({}, cls=name("torch._utils", "_rebuild_parameter"))
    yield (
        "of a nested tensor that is none",
        made({}, cls=name("torch.nested._internal.nested_tensor", "NestedTensor")),
    )
    yield "by a function of another kind", made({}, function=name("builtins", "set"))
    yield "by itself", made({}, function=rebuild)
    yield "by a string", made({}, function=value("torch.load"))


def _methods() -> Named:
    """What pickle names by a call of getattr."""
    getattr_ = name("builtins", "getattr")
    ordered = name("collections", "OrderedDict")
    yield "of a listed class", call(getattr_, ordered, "fromkeys")
    yield "of a listed class, called", call(call(getattr_, ordered, "__subclasses__"))
    yield "of a value", call(getattr_, [1], "append")
    yield "of a tensor", call(getattr_, floats(), "data")
    yield "of text", call(getattr_, "os", "system")
    yield "of a name of no text", call(getattr_, ordered, 1)
    yield "with a default", call(getattr_, ordered, "a", 1)
    yield "of nothing", call(getattr_)
    yield "with a long name", call(getattr_, ordered, "a" * 1_000_000)


def _nested_tensors() -> Named:
    """Nested tensors whose parts lie beyond their memory."""
    rebuild = name("torch._utils", "_rebuild_nested_tensor")
    buffer, longs = floats((16,)), typed(storage(192, 64), "int64")
    # The region holds 5, -1, 2**40, 2**62, 0, 2, 1, 0 from byte 192 on.
    yield (
        "a part beyond",
        call(
            rebuild,
            buffer,
            tensor(longs, (1, 1), (1, 1), offset=2),
            tensor(longs, (1, 1), (1, 1), offset=5),
            integers(1),
        ),
    )
    yield (
        "a part that begins beyond",
        call(
            rebuild,
            buffer,
            tensor(longs, (1, 1), (1, 1), offset=5),
            tensor(longs, (1, 1), (1, 1), offset=6),
            tensor(longs, (1,), offset=3),
        ),
    )
    yield (
        "a part of a negative length",
        call(rebuild, buffer, tensor(longs, (1, 1), (1, 1), offset=1), integers(1, 1), integers(1)),
    )
    yield "parts of no numbers", call(rebuild, buffer, floats((1, 1), (1, 1)), [1], integers(1))
    yield (
        "floats as sizes",
        call(rebuild, buffer, floats((1, 1), (1, 1)), floats((1, 1), (1, 1)), integers(1)),
    )
    yield (
        "more sizes than places",
        call(rebuild, buffer, integers(2, 2), integers(2, 2), integers(1)),
    )
    yield (
        "a buffer with gaps",
        call(rebuild, floats((4,), (2,)), integers(1, 1), integers(1, 1), integers(1)),
    )
    jagged = name("torch.nested._internal.nested_tensor", "_rebuild_njt")
    njt = name("torch.nested._internal.nested_tensor", "NestedTensor")
    outer = name("torch._tensor", "_rebuild_from_type_v2")

    def ragged(**parts: object) -> Code:
        return call(outer, jagged, njt, (parts,), {})

    rows = floats((4, 2), (2, 1))
    yield "offsets beyond", ragged(values=rows, offsets=tensor(longs, (2,), offset=0))
    yield "offsets that fall", ragged(values=rows, offsets=tensor(longs, (2,), offset=5))
    yield "offsets of text", ragged(values=rows, offsets="0, 1")
    yield "offsets of floats", ragged(values=rows, offsets=floats((2,)))
    yield "no offsets", ragged(values=rows, offsets=None)
    yield "no values", ragged(values=None, offsets=integers(2))
    yield "an axis beyond", ragged(values=rows, offsets=integers(2), _ragged_idx=3)
    yield (
        "lengths beyond",
        ragged(values=rows, offsets=integers(2), lengths=tensor(longs, (1,), offset=0)),
    )
    yield "more lengths", ragged(values=rows, offsets=integers(2), lengths=integers(3))
    yield "another part", ragged(values=rows, offsets=integers(2), device="cpu")
    yield "parts of no dict", call(outer, jagged, njt, ([1],), {})


def _records() -> Named:
    """Constructors of libraries and of times, with arguments that are none of theirs."""
    yield "a function of optax", new(name("optax._src.base", "init_empty_state"))
    yield "a module of optax", new(name("optax", "os"))
    yield "a library that is not", new(name("optax.not_there", "State"))
    yield "a FrozenDict of a list", call(name("flax.core.frozen_dict", "FrozenDict"), [1])
    yield "a date of text", call(name("datetime", "date"), "2020")
    yield "a date of too few bytes", call(name("datetime", "date"), b"12")
    yield "a time in a zone that is text", call(name("datetime", "time"), bytes(6), "UTC")
    yield "a zone of text", call(name("datetime", "timezone"), "UTC")
    yield "a deque of a list", call(name("collections", "deque"), [1])
    yield "a JAX array of a list", call(
        name("jax._src.array", "_reconstruct_array"),
        name("builtins", "list"), (), [1], {},
    )  # fmt: skip
    yield "a generator of JAX of other parts", new(name("jax._src.random.prng", "PRNGImpl"), 1)


def _copies() -> Named:
    """Copies of one large thing, at a few bytes of the file each."""
    many = 20_000
    for what, make, argument in (
        ("sets", name("builtins", "set"), value(list(range(50_000)))),
        ("frozensets", name("builtins", "frozenset"), value(list(range(50_000)))),
        ("bytearrays", name("builtins", "bytearray"), value(bytes(1_000_000))),
        ("bytes", name("_codecs", "encode"), value("a" * 1_000_000)),
    ):
        arguments = argument + (value("latin1") + b"\x86" if what == "bytes" else b"\x85")
        code = make + b"\x940" + arguments + b"\x940" + b"](" + b"h\x02h\x03R" * many + b"e"
        yield what, Code(code)
    arguments = value((REGION, "little", DATA_SIZE, 0, name("torch", "uint8")))
    code = arguments + b"\x940" + b"](" + (FROM_BUFFER + b"h\x02R") * many + b"e"
    yield "storages", Code(code)


def colliding_tuples(count: int) -> list[tuple[int, int]]:
    """Pairs of integers that CPython gives one hash: its tuple hash, run backwards."""
    mask, prime_1, prime_2, prime_5 = (
        2**64 - 1,
        11400714785074694791,
        14029467366897019727,
        2870177450012600261,
    )
    inverse = pow(prime_2, -1, 2**64)
    pairs: list[tuple[int, int]] = []
    first = 0
    while len(pairs) < count:
        first += 1
        state = (prime_5 + first * prime_2) & mask
        state = ((state << 31 | state >> 33) * prime_1) & mask
        second = (0x1234567 - state) * inverse & mask
        second -= (second >> 63) << 64
        if abs(second) < 2**61 - 1 and second != -1:
            pairs.append((first, second))
    return pairs


def _keys() -> Named:
    """Keys that cannot be hashed, crash when they are, or are all alike."""
    deep = _nested(300_000, b"", b"\x85")
    nested = value((((1,),),))
    same = [number * (2**61 - 1) for number in range(5000)]
    pairs = [value(pair) for pair in colliding_tuples(2000)]
    large = value(1 << 4_000_000)
    yield "a deep tuple", dictionary((deep, 1))
    yield "nested tuples in a set", Code(b"\x8f(" + nested + b"\x90")
    yield "nested tuples in a frozenset", Code(b"(" + nested + b"\x91")
    yield (
        "nested tuples in a set of a list",
        call(name("builtins", "set"), Code(b"]" + nested + b"a")),
    )
    yield "a tuple in a tuple", dictionary((((1,),), 1))
    yield "a list", dictionary(([1], 1))
    yield "a dict", dictionary(({}, 1))
    yield "a set in a set", Code(b"\x8f(" + b"\x8f" + b"\x90")
    yield "a tensor", dictionary((floats(), 1))
    yield "a class", dictionary((name("collections", "OrderedDict"), 1))
    yield "the dict itself", Code(b"}\x94h\x02Ns")
    yield "a tuple of the dict itself", Code(b"}\x94h\x02\x85Ns")
    yield "integers of one hash", dictionary(*((number, 1) for number in same))
    yield (
        "integers of one hash, one by one",
        Code(b"}" + b"".join(value(number) + b"Ns" for number in same)),
    )
    yield "integers of one hash in a set", value(set(same))
    yield "integers of one hash in a frozenset", Code(b"(" + b"".join(map(value, same)) + b"\x91")
    yield "pairs of one hash", dictionary(*((pair, 1) for pair in pairs))
    yield "a huge integer, again and again", Code(large + b"\x940}" + b"h\x02Ns" * 20_000)
    yield (
        "a long tuple, again and again",
        Code(value(tuple(range(100_000))) + b"\x940}" + b"h\x02Ns" * 20_000),
    )
    opposite = name("builtins", "complex")
    yield (
        "complex numbers of one hash",
        dictionary(*((call(opposite, -1000003.0 * n, float(n)), 1) for n in range(1, 2000))),
    )
    yield (
        "a NumPy structure",
        dictionary((_scalar(_structure(["a"], [dtype("|u1")], [0], 1), b"1"), 1)),
    )
    parts = value(tuple(range(256))) + b"\x94"
    yield "a tuple of 256, again and again", Code(parts + b"0}" + b"h\x02Ns" * 100_000)
    yield "a tuple of 256, in dicts of its own", Code(parts + b"0](" + b"}h\x02Ns" * 100_000 + b"e")
    yield "an array", dictionary((array((4,)), 1))
    yield (
        "a NumPy scalar of one hash",
        dictionary(
            *(
                (_scalar(dtype("<f8"), struct.pack("<d", n * (2.0**61 - 2**9))), 1)
                for n in range(1, 3)
            ),
            *((pair, 1) for pair in pairs),
        ),
    )
    yield "in a Counter", call(name("collections", "Counter"), dictionary(*((k, 1) for k in same)))


def _states() -> Named:
    """BUILD, NEWOBJ and friends, on what is allowed to exist."""
    ordered = call(name("collections", "OrderedDict"))
    yield "__class__", build(ordered, {"__class__": 1})
    yield "_metadata and more", build(ordered, {"_metadata": {}, "move_to_end": 1})
    yield "slots", build(ordered, (None, {"_metadata": {}}))
    yield "a dict", build(value({}), {"_metadata": {}})
    yield "a list", build(value([]), {"a": 1})
    yield "a class", build(name("collections", "OrderedDict"), {"_metadata": {}})
    yield "a defaultdict", build(call(name("collections", "defaultdict")), {"default_factory": 1})
    yield "a tensor", build(floats(), {"_backward_hooks": {}})
    yield (
        "a parameter",
        build(call(name("torch._utils", "_rebuild_parameter"), floats(), True, None), {"data": 1}),
    )
    yield "an array", build(array((4,)), (1, (4,), dtype("<f4"), False, b""))
    yield "a dtype that all share", build(dtype("<f4"), (3, "<", None, None, None, -1, -1, 63))
    yield "a class of the list", new(name("collections", "OrderedDict"))
    yield "a tensor's class", new(name("torch", "UntypedStorage"), HUGE)
    yield "NEWOBJ_EX", Code(name("collections", "OrderedDict") + b")}\x92")
    yield "SETITEM in a list", Code(b"]" + value(0) + b"Ns")
    yield "SETITEM in a tensor", Code(floats() + value(0) + b"Ns")
    yield "SETITEM in a class", Code(name("collections", "OrderedDict") + value("a") + b"Ns")
    yield "APPEND to a dict", Code(b"}Na")
    yield "APPEND to a bytearray", Code(bytearray_() + value(1) + b"a")
    yield "APPENDS to a class", Code(name("builtins", "list") + b"(Ne")
    yield "ADDITEMS to a list", Code(b"](N\x90")
    yield "ADDITEMS to a frozenset", Code(b"(\x91(N\x90")


def _scalar(kind: Code, content: bytes) -> Code:
    return call(name("numpy._core.multiarray", "scalar"), kind, content)


def _structure(names: list[str], formats: list[object], offsets: list[int], size: object) -> Code:
    spec = {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
    return dtype(spec, False)


def _deep_structure(levels: int, width: int) -> Code:
    """Structures of structures: `width` fields each, all of them one shared dtype."""
    code = Code(name("numpy", "dtype") + b"\x940" + dtype("|u1") + b"\x94")
    names = [f"f{number}" for number in range(width)]
    for level in range(levels):
        below = Code(b"j" + struct.pack("<I", 3 + level))
        spec = {"names": names, "formats": [below] * width, "offsets": [0] * width, "itemsize": 1}
        code = Code(code + b"0" + call(Code(b"h\x02"), spec, False) + b"\x94")
    return code


def _arrays() -> Named:
    """Arrays over memory that is not the file's, and dtypes that are pointers."""
    for spec in (
        "O",
        "|O8",
        "f4,O",
        "(2,2)O",
        "<f4,<f4",
        "<U99999999999",
        "<V4294967296",
        "<V2147483648",
        "<U1073741824",
        "T16",
        "",
    ):
        yield f"dtype {spec!r}", dtype(spec)
    yield "dtype of a function", dtype(name("torch._utils", "_rebuild_tensor_v2"))
    yield "dtype of a class", dtype(name("builtins", "int"))
    yield "dtype of a list", dtype([("a", "O")])
    yield "dtype of a tuple", dtype(("O", 1))
    yield "a field of objects", _structure(["a"], ["O"], [0], 8)
    yield "a field beyond the item", _structure(["a"], [dtype("<f8")], [8], 8)
    yield "a field before the item", _structure(["a"], [dtype("<f8")], [-8], 8)
    yield "a field of two names", _structure(["a", "a"], [dtype("|u1")] * 2, [0, 1], 2)
    yield "an item of 4 GiB", _structure(["a"], [dtype("|u1")], [0], 1 << 32)
    yield "an item without end", _structure(["a"], [dtype("|u1")], [0], 1 << 80)
    yield "a field of a huge shape", _structure(["a"], [(dtype("|u1"), (1 << 40, 1 << 40))], [0], 1)
    yield "more names than fields", _structure(["a", "b"], [dtype("|u1")], [0], 2)
    yield (
        "a name that is no string",
        dtype({"names": [1], "formats": [dtype("|u1")], "offsets": [0], "itemsize": 1}, False),
    )
    yield (
        "an unknown key",
        dtype({"names": [], "formats": [], "offsets": [], "itemsize": 1, "a": 1}),
    )
    yield "an array of an array as one element", dtype((dtype("|u1"), (1 << 40,)))
    yield (
        "an array of many arrays of arrays",
        dtype((dtype((dtype("|u1"), (1 << 16,))), (1 << 16,))),
    )
    yield "elements that are arrays", array((4,), dtype((dtype("|u1"), (4,))))
    yield "records of no structure", dtype((name("numpy", "record"), dtype("<f4")))
    yield "records of text", dtype((name("numpy", "record"), "f4,O"))
    yield "a class of records as a dtype", dtype(name("numpy", "record"))
    yield "metadata that is deep", dtype("<f4", False, False, {"a": [[1]]})
    yield "metadata that is a class", dtype("<f4", False, False, {"a": name("torch", "float32")})
    yield "metadata that is text", dtype("<f4", False, False, "a")
    yield "an alignment that is text", dtype("<f4", "yes")
    yield "a unit that is code", dtype("<M8[__import__('os')]")
    yield "a length of 5,000 digits", dtype("<S" + "9" * 5_000)
    yield "deep structures", _deep_structure(5000, 1)
    yield "wide structures of wide structures", _deep_structure(12, 50)
    yield "too long", array((65,))
    yield "too far", array((4,), offset=DATA_SIZE - 8)
    yield "before the start", array((4,), offset=-4)
    yield "backwards", array((4,), offset=12, strides=(-4,))
    yield "a stride too far", array((4,), strides=(1 << 60,))
    yield "no stride", array((1 << 40,), strides=(0,))
    yield "a stride of nothing", array((2, 2))
    yield "a product beyond 64 bits", array((1 << 33, 1 << 33), strides=(4, 4))
    yield "a product beyond 64 bits, of nothing", array((0, HUGE, HUGE), strides=(1, 1, 1))
    yield "a negative length", array((-4,))
    yield "a length that is true", array((True,))
    yield "a length that is a float", array((4.0,))
    yield "a length of a million bits", array((1 << 1_000_000,))
    yield "an offset of a million bits", array((4,), offset=1 << 1_000_000)
    yield "a length that is NaN", array((float("nan"),))
    yield "very many axes", array((1,) * 65, strides=(4,) * 65)
    yield "memory of its own", array((4,), region=bytes(16))
    yield "a tensor's memory", array((4,), region=floats())
    yield "no memory", call(name("numpy", "ndarray"), (1 << 40,), dtype("<f4"))
    yield "a dtype that is text", call(name("numpy", "ndarray"), (4,), "O", REGION, 0, (4,))
    yield "a scalar of objects", call(name("numpy.core.multiarray", "scalar"), dtype("O"), bytes(8))
    yield "a scalar too short", call(name("numpy.core.multiarray", "scalar"), dtype("<f8"), b"1")
    yield "a scalar without dtype", call(name("numpy._core.multiarray", "scalar"), "O", bytes(8))
    yield "a JAX array of a list", call(name("jax.numpy", "asarray"), [1])


def _begun(spec: str) -> Code:
    """A dtype as NumPy's own reduction begins it."""
    return dtype(spec, False, True)


def _finished(names: object, fields: object, size: object = 8, *, spec: str = "V8") -> Code:
    return build(_begun(spec), (3, "|", None, names, fields, size, 1, 16))


def _unfinished() -> Named:
    """States that make NumPy believe in fields, sizes and bytes that are not there."""
    byte, number = dtype("|u1"), dtype("<f8")
    begin = call(
        name("numpy._core.multiarray", "_reconstruct"), name("numpy", "ndarray"), (0,), b"b"
    )
    yield "a field beyond the item", _finished(("a",), {"a": (number, 8)})
    yield "a field before the item", _finished(("a",), {"a": (number, -8)})
    yield "an item of another size", _finished(("a",), {"a": (number, 0)}, 1 << 30)
    yield "a field that is missing", _finished(("a", "b"), {"a": (byte, 0)})
    yield "a field of objects", _finished(("a",), {"a": (_begun("O8"), 0)})
    yield "a field named by a deep tuple", _finished((_nested(100_000, b"", b"\x85"),), {"a": 1})
    yield "fields of no dict", _finished(("a",), [("a", byte)])
    itself = Code(_begun("V8") + b"\x940")
    state = value((3, "|", None, ("a",), {"a": (Code(b"h\x02"), 0)}, 8, 1, 16))
    yield "a field that is itself", Code(itself + b"h\x02" + state + b"b")
    around = _structure(["b"], [Code(b"h\x02")], [0], 8)
    state = value((3, "|", None, ("a",), {"a": (around, 0)}, 8, 1, 16))
    yield "a field of what it is a field of", Code(itself + b"h\x02" + state + b"b")
    yield (
        "an element that is itself",
        Code(
            itself + b"h\x02" + value((3, "|", (Code(b"h\x02"), (1,)), None, None, 8, 1, 16)) + b"b"
        ),
    )
    yield (
        "an array of elements larger than it",
        build(_begun("V8"), (3, "|", (number, (1 << 20,)), None, None, 8, 1, 16)),
    )
    yield (
        "a number that becomes a structure",
        build(_begun("<f8"), (3, "<", None, ("a",), {"a": (number, 0)}, 8, 1, 16)),
    )
    yield (
        "a state set twice",
        Code(itself + (b"h\x02" + value((3, "|", None, None, None, -1, -1, 0)) + b"b") * 2),
    )
    yield (
        "an order of bytes that is none",
        build(_begun("<f8"), (3, "O", None, None, None, -1, -1, 0)),
    )
    time = ({}, (b"s][O", 1, 1, 1))
    yield "a unit that is code", build(_begun("<M8"), (4, "<", None, None, None, -1, -1, 0, time))
    time = ({}, (b"s", 1 << 70, 1, 1))
    yield "a number of units", build(_begun("<M8"), (4, "<", None, None, None, -1, -1, 0, time))
    yield "metadata", build(_begun("<f8"), (3, "<", None, None, None, -1, -1, 0, {"a": 1}))
    yield "too few parts", build(_begun("<f8"), (3, "<"))
    yield "a list of parts", build(_begun("<f8"), [3, "<", None, None, None, -1, -1, 0])
    yield "a dtype that is used before it is finished", array((1,), _begun("V8"), 0, (8,))
    yield (
        "an array of a list",
        call(name("numpy._core.multiarray", "_reconstruct"), name("builtins", "list"), (0,), b"b"),
    )
    yield (
        "an array begun large",
        call(
            name("numpy._core.multiarray", "_reconstruct"),
            name("numpy", "ndarray"),
            (1 << 40,),
            b"b",
        ),
    )
    yield "an array of fewer bytes", build(begin, (1, (1 << 20,), number, False, bytes(8)))
    yield "an array of no bytes", build(begin, (1, (1 << 40,), number, False, b""))
    yield "an array of objects", build(begin, (1, (1,), _begun("O8"), False, [1]))
    yield "an array of pointers", build(begin, (1, (1,), "O", False, bytes(8)))
    yield "an array of a list of bytes", build(begin, (1, (1,), byte, False, [1]))
    yield (
        "an array with a product beyond 64 bits",
        build(begin, (1, (1 << 62, 4), number, False, b"")),
    )
    buffer = name("numpy._core.numeric", "_frombuffer")
    yield "a buffer that is too short", call(buffer, bytes(8), number, (2,), "C")
    yield "a buffer that is a list", call(buffer, [1], byte, (1,), "C")
    yield "a buffer that is the data region", call(buffer, REGION, byte, (1,), "C")
    yield "a buffer of objects", call(buffer, bytes(8), "O", (1,), "C")
    yield "a buffer in an order that is none", call(buffer, bytes(8), number, (1,), "K")


def _tensors() -> Named:
    """Tensors over memory that is not the file's; torch itself checks little of this."""
    yield from _storages()
    yield from _views()
    yield from _sparse_tensors()
    yield from _quantized_tensors()
    yield "a Size below zero", call(name("torch", "Size"), (-1,))
    yield "a Size of a list", call(name("torch", "Size"), [1])
    yield "a device of no name", call(name("torch", "device"), "cpu; import os")
    yield "a device of a huge number", call(name("torch", "device"), "cuda", HUGE)
    yield "a layout by another name", call(name("torch.serialization", "_get_layout"), "torch.load")
    yield "a parameter of a list", call(name("torch._utils", "_rebuild_parameter"), [1], True, None)
    yield "a huge meta tensor", call(
        name("torch._utils", "_rebuild_meta_tensor_no_storage"),
        name("torch", "float32"), (HUGE, HUGE), (1, 1), False,
    )  # fmt: skip


def _storages() -> Named:
    yield "a storage of a million bits", storage(0, 1 << 1_000_000)
    yield "a storage of NaN bytes", storage(0, float("nan"))
    yield "a storage too long", storage(0, DATA_SIZE + 1)
    yield "a storage too far", storage(DATA_SIZE, 64)
    yield "a storage before the start", storage(-64, 64)
    yield "a storage of negative length", storage(64, -64)
    yield "a storage beyond 64 bits", storage((1 << 64) - 64, 128)
    yield "a storage askew", storage(1, 64)
    yield (
        "a storage of floats",
        call(FROM_BUFFER, REGION, "little", 64, 0, name("torch", "float32")),
    )
    yield "a storage in another order", storage(0, 64, order="big")
    yield "a storage over bytes", storage(0, 64, region=bytes(64))
    yield "a storage by attribute", call(FROM_BUFFER, REGION, "little", 64, 0)
    yield "a storage of 4 TiB without data", call(name("torch", "UntypedStorage"), 1 << 42)
    yield "a storage of a list", call(name("torch.storage", "UntypedStorage"), [1, 2])
    yield "a typed storage over a list", typed([1])
    yield (
        "a typed storage of no dtype",
        call(
            name("torch.multiprocessing.reductions", "rebuild_typed_storage"),
            storage(0, 64),
            "float32",
        ),
    )
    cuda = name("torch.storage", "_StorageBase.cuda")
    yield "a list on a device", call(cuda, [1], 0)
    yield "a storage on device -1", call(cuda, storage(0, 64), -1)
    yield "a storage on device 2**62", call(cuda, storage(0, 64), HUGE)


def _views() -> Named:
    yield "a tensor too long", floats((17,))
    yield "a tensor too far", floats(offset=13)
    yield "a tensor beyond its storage, within the region", floats((8,), offset=12)
    yield "a tensor before the start", floats(offset=-1)
    yield "a tensor with a negative stride", floats((4,), (-1,), offset=3)
    yield "a tensor with a huge stride", floats((2,), (HUGE,))
    yield "a tensor with a product beyond 64 bits", floats((HUGE, 4), (0, 0))
    yield "an empty tensor beyond 64 bits", floats((0, HUGE, HUGE), (1, 1, 1))
    yield "an empty tensor at the end of memory", floats((0,), offset=HUGE)
    yield "a tensor of a length of a million bits", floats((1 << 1_000_000,), (0,))
    yield "a tensor of strides of a million bits", floats((1,), (1 << 1_000_000,))
    yield "a tensor of a dtype of no tensor", tensor(typed(storage(0, 64), "per_tensor_affine"))
    yield (
        "a tensor of integers that pretend to be quantized",
        tensor(typed(storage(0, 64), "qint8")),
    )
    yield "a tensor that pretends to be quantized by its dtype", call(
        name("torch._utils", "_rebuild_tensor_v3"),
        typed(storage(0, 64), "uint8"), 0, (4,), (1,), False, None, name("torch", "quint8"),
    )  # fmt: skip
    yield "a tensor of a negative length", floats((-4,))
    yield "a tensor of true length", floats((True,))
    yield "a tensor of a length beyond 64 bits", floats((1 << 64,), (0,))
    yield "a tensor with fewer strides", floats((2, 2), (1,))
    yield "a tensor of a list", floats([4], [1])
    yield "a tensor with very many axes", floats((1,) * 65, (1,) * 65)
    yield "a tensor over a storage without dtype", tensor(storage(0, 64))
    yield "a tensor over the region", tensor(REGION)
    yield "a tensor that reads wider items", call(
        name("torch._utils", "_rebuild_tensor_v3"),
        typed(storage(0, 64), "uint8"), 0, (16,), (1,), False, None, name("torch", "float64"),
    )  # fmt: skip
    hooks = Code(call(name("collections", "OrderedDict")) + value(0) + value(1) + b"s")
    yield "a tensor with hooks", floats(hooks=hooks)
    yield "a tensor with hooks in a dict", floats(hooks={})
    yield "a tensor with metadata that is a pickle", floats(metadata=pickle.dumps([1]))
    yield "a tensor with metadata of other names", floats(metadata={"__class__": True})
    yield "a tensor with metadata of other values", floats(metadata={"neg": [1]})
    yield "a conjugated tensor of floats", floats(metadata={"conj": True})
    yield (
        "a negated tensor of integers",
        tensor(typed(storage(0, 64), "int64"), (8,), metadata={"neg": True}),
    )
    yield "a tensor with a gradient of 1", floats(requires_grad=1)
    yield (
        "a tensor of integers with a gradient",
        tensor(typed(storage(0, 64), "int64"), (8,), requires_grad=True),
    )


def _indices(place: int, *shape: int) -> Code:
    """Integers of the data region that are no good as indices, from the `place`-th on."""
    strides = (shape[-1], 1)[-len(shape) :]
    return tensor(typed(storage(192, 64), "int64"), shape, strides, offset=place)


def _sparse_tensors() -> Named:
    for what, place in (("beyond its size", 0), ("of -1", 1), ("of 2**40", 2), ("of 2**62", 3)):
        yield (
            f"sparse, an index {what}",
            sparse("sparse_coo", _indices(place, 1, 1), floats((1,)), (4,), False),
        )
    for layout in ("csr", "csc", "bsr", "bsc"):
        values = floats((1, 1, 1), (1, 1, 1)) if layout.startswith("b") else floats((1,))
        ends, other = tensor(typed(storage(192, 64), "int64"), (2,), (2,), offset=4), (1, 1)
        yield (
            f"sparse {layout}, an index beyond its size",
            sparse(f"sparse_{layout}", ends, _indices(0, 1), values, other),
        )
        yield (
            f"sparse {layout}, a row that ends beyond all memory",
            sparse(f"sparse_{layout}", _indices(2, 2), _indices(4, 1), values, other),
        )
    # The rest of the region holds zeros, so every index is 0.
    yield (
        "sparse, indices beyond its size",
        sparse("sparse_coo", integers(1, 4), floats(), (0,), True),
    )
    yield (
        "sparse, equal indices called coalesced",
        sparse("sparse_coo", integers(1, 4), floats(), (4,), True),
    )
    yield (
        "sparse, fewer values than indices",
        sparse("sparse_coo", integers(1, 4), floats((3,)), (4,), False),
    )
    yield (
        "sparse, a product beyond 64 bits",
        sparse("sparse_coo", integers(2, 4), floats(), (HUGE, HUGE), False),
    )
    yield (
        "sparse, rows that do not add up",
        sparse("sparse_csr", integers(3), integers(4), floats(), (2, 2)),
    )
    yield "sparse, of lists", sparse("sparse_coo", [[0]], [1.0], (4,), True)
    yield "sparse, of no parts", sparse("sparse_coo")
    yield "sparse, of a layout that is not", sparse("strided", floats(), floats(), (4,))
    endless = tensor(typed(storage(0, 64), "int64"), (1, 1 << 40), (0, 0))
    yield (
        "sparse, endless indices",
        sparse("sparse_coo", endless, floats((1 << 40,), (0,)), (1,), False),
    )
    yield (
        "sparse, of sparse indices",
        sparse(
            "sparse_coo",
            sparse("sparse_coo", integers(1, 1), floats((1,)), (4,), True),
            floats(),
            (4,),
            True,
        ),
    )


def _quantized_tensors() -> Named:
    affine = name("torch", "per_tensor_affine")
    channels = name("torch", "per_channel_affine")
    doubles = tensor(typed(storage(64, 64), "float64"), (2,))
    longs = tensor(typed(storage(128, 64), "int64"), (2,))
    yield "quantized, of 1 TiB", quantized((1 << 40,), (0,), (affine, 1.0, 0))
    yield "quantized, of floats", quantized((4,), (1,), (affine, 1.0, 0), dtype_name="float32")
    yield "quantized, by a list", quantized((4,), (1,), (affine, [1.0], 0))
    yield "quantized, from a far zero", quantized((4,), (1,), (affine, 1.0, HUGE))
    yield "quantized, by text", quantized((4,), (1,), ("per_tensor_affine", 1.0, 0))
    yield "quantized, by nothing", quantized((4,), (1,), ())
    yield "quantized, along no axis", quantized((2, 2), (2, 1), (channels, doubles, longs, 7))
    yield "quantized, along axis -1", quantized((2, 2), (2, 1), (channels, doubles, longs, -1))
    yield "quantized, by too few scales", quantized((4, 2), (2, 1), (channels, doubles, longs, 0))
    yield "quantized, by lists", quantized((2, 2), (2, 1), (channels, [1.0] * 2, [0] * 2, 0))


def _plain() -> Named:
    """Arguments that plain constructors must not be given."""
    default = name("collections", "defaultdict")
    yield "a factory that runs", call(default, name("builtins", "bytearray"))
    yield "a factory that is a dtype", call(default, name("torch", "float32"))
    yield "a factory that is a value", call(default, "list")
    yield "a set of a dict", call(name("builtins", "set"), {"a": 1})
    yield "a set of text", call(name("builtins", "set"), "abc")
    yield "a bytearray of 4 TiB", call(name("builtins", "bytearray"), 1 << 42)
    yield "a bytearray of text", call(name("builtins", "bytearray"), "a", "rot13")
    yield "text in a codec that runs", call(name("_codecs", "encode"), "a", "zip")
    yield "a slice of text", call(name("builtins", "slice"), "a", None, None)
    yield "a range of steps of nothing", call(name("builtins", "range"), 0, 1, 0)
    yield "a complex of text", call(name("builtins", "complex"), "1", "2")
    yield "a Counter of text", call(name("collections", "Counter"), "abc")
    yield "a Counter of lists", call(name("collections", "Counter"), {"a": [1]})
    yield "a type of dill's that is not", call(name("dill._dill", "_load_type"), "CodeType")
    yield "a type of dill's with a dot", call(name("dill._dill", "_load_type"), "eval")
    yield "a type of dill's that is a list", call(name("dill._dill", "_load_type"), [1])
    yield "a huge number of a complex", call(name("builtins", "complex"), 1 << 100_000, 1)
    yield "a range of NaN", call(name("builtins", "range"), 0, float("nan"), 1)


def _harmless() -> Named:
    """Odd streams that only pretend: they give plain values, at the price of their length."""
    nan = Code(value(float("nan")) + b"\x94")
    yield "a key twice", dictionary(("a", 1), ("a", 2), ("a", 3))
    yield "1, 1.0 and True as keys", dictionary((1, 1), (1.0, 2), (True, 3))
    yield "NaN as a key, and again", Code(b"}(" + nan + b"N" + b"h\x02N" * 10 + b"u")
    yield "many NaNs as keys", dictionary(*((float("nan"), 1) for _ in range(1000)))
    yield "keys of half characters", dictionary(*((chr(0xD800 + n), 1) for n in range(64)))
    yield "a key that looks like an attribute", value({"__class__": 1, "__reduce__": 2})
    yield "a pickle in bytes", value({"a": stream(call(name("os", "system"), "true"))})
    yield "code in text", value({"__import__('os')": "eval", "os\nsystem": "(S'true'\ntR."})
    yield "a list in itself", Code(b"]\x94h\x02a")
    yield "a dict of itself", Code(b"}\x94" + value("a") + b"h\x02s")
    yield "a tuple in itself", Code(b"]\x94\x85\x940h\x02h\x03a")
    yield "an integer of a megabyte", value([1 << 8_000_000])
    yield "many empty sets", Code(b"](" + b"\x8f" * 100_000 + b"e")
    yield "very many marks, dropped", Code(b"(" * 100_000 + b"0" * 100_000 + b"N")
    yield "a range without end", call(name("builtins", "range"), 0, 1 << 1000, 1)
    yield "a tensor of 2**40 equal elements", floats((1 << 40,), (0,))
    yield "a tensor over itself", floats((8, 8), (1, 1))
    yield "an empty tensor of 2**40 rows", floats((1 << 40, 0), (0, 1))
    yield "an array of 2**40 nothings", call(name("numpy", "ndarray"), (1 << 40,), dtype("|V0"))
    yield "bools that are neither", tensor(typed(storage(192, 64), "bool"), (8,))
    yield "a meta tensor of 2**60 bytes", call(
        name("torch._utils", "_rebuild_meta_tensor_no_storage"),
        name("torch", "float32"), (1 << 58,), (1,), False,
    )  # fmt: skip
    yield "text of characters that are not", array((1,), "<U2", 192, (8,))
    yield (
        "metadata of a state dict",
        build(
            call(name("collections", "OrderedDict")),
            {"_metadata": {"": {"__class__": "os.system"}}},
        ),
    )
