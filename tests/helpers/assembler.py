"""Pickle streams written by hand, opcode by opcode.

What a pickler would never write is the point: nothing here checks anything.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any


class Code(bytes):
    """Opcodes that leave one value on the stack."""

    def __add__(self, other: bytes) -> Code:  # type: ignore[override]
        return Code(bytes(self) + other)


REGION = Code(b"h\x00")
"""Memo slot 0 of a genesis skeleton: the data region."""
FROM_BUFFER = Code(b"h\x01")
"""Memo slot 1: the constructor of storages."""

NO_ARGUMENTS = Code(b")")


def value(thing: Any) -> Code:
    """The opcodes of a plain value; code stands for itself."""
    if isinstance(thing, Code):
        return thing
    if thing is None or isinstance(thing, bool):
        return Code({None: b"N", True: b"\x88", False: b"\x89"}[thing])
    if isinstance(thing, int):
        return _integer(thing)
    if isinstance(thing, float):
        return Code(b"G" + struct.pack(">d", thing))
    if isinstance(thing, str):
        text = thing.encode("utf-8", "surrogatepass")
        return Code(b"X" + struct.pack("<I", len(text)) + text)
    if isinstance(thing, bytes):
        return Code(b"B" + struct.pack("<I", len(thing)) + thing)
    return _container(thing)


def _integer(number: int) -> Code:
    if -(2**31) <= number < 2**31:
        return Code(b"J" + struct.pack("<i", number))
    size = number.bit_length() // 8 + 1
    payload = number.to_bytes(size, "little", signed=True)
    if size < 256:
        return Code(b"\x8a" + bytes((size,)) + payload)
    return Code(b"\x8b" + struct.pack("<I", size) + payload)


def _container(thing: Any) -> Code:
    if isinstance(thing, tuple):
        return Code(b"(" + b"".join(map(value, thing)) + b"t")
    if isinstance(thing, list):
        return Code(b"](" + b"".join(map(value, thing)) + b"e")
    if isinstance(thing, set):
        return Code(b"\x8f(" + b"".join(map(value, thing)) + b"\x90")
    pairs = b"".join(value(key) + value(held) for key, held in thing.items())
    return Code(b"}(" + pairs + b"u")


def dictionary(*pairs: tuple[Any, Any]) -> Code:
    """A dict whose keys Python would not hold."""
    return Code(b"}(" + b"".join(value(key) + value(held) for key, held in pairs) + b"u")


def name(module: str, qualname: str) -> Code:
    return value(module) + value(qualname) + b"\x93"


def text_name(module: str, qualname: str) -> Code:
    """As protocols 0 to 3 write a global."""
    return Code(f"c{module}\n{qualname}\n".encode())


def call(function: Code, *arguments: Any) -> Code:
    return function + value(arguments) + b"R"


def new(cls: Code, *arguments: Any) -> Code:
    return cls + value(arguments) + b"\x81"


def build(thing: Code, state: Any) -> Code:
    return thing + value(state) + b"b"


def stream(code: bytes, protocol: int = 5) -> bytes:
    return pickle.PROTO + bytes((protocol,)) + code + pickle.STOP


# What genesis writes ------------------------------------------------------------------------


def storage(offset: Any, size: Any, *, region: Any = REGION, order: Any = "little") -> Code:
    return call(FROM_BUFFER, region, order, size, offset, name("torch", "uint8"))


def typed(below: Any, dtype: str = "float32") -> Code:
    rebuild = name("torch.multiprocessing.reductions", "rebuild_typed_storage")
    return call(rebuild, below, name("torch", dtype))


def tensor(
    below: Any,
    size: Any = (4,),
    stride: Any = (1,),
    *,
    offset: Any = 0,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Code:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    rest = () if metadata is None else (metadata,)
    return call(rebuild, below, offset, size, stride, requires_grad, hooks, *rest)


def floats(size: Any = (4,), stride: Any = (1,), **more: Any) -> Code:
    """A tensor over the first 64 bytes of the data region."""
    return tensor(typed(storage(0, 64)), size, stride, **more)


def integers(*shape: int) -> Code:
    strides = {1: (1,), 2: (shape[-1], 1)}[len(shape)]
    return tensor(typed(storage(0, 64), "int64"), shape, strides)


def dtype(*spec: Any) -> Code:
    return call(name("numpy", "dtype"), *spec)


def array(
    shape: Any, kind: Any = "<f4", offset: Any = 0, strides: Any = (4,), *, region: Any = REGION
) -> Code:
    held = kind if isinstance(kind, Code) else dtype(kind)
    return call(name("numpy", "ndarray"), shape, held, region, offset, strides)


def sparse(layout: str, *parts: Any) -> Code:
    kind = call(name("torch.serialization", "_get_layout"), f"torch.{layout}")
    return call(name("torch._utils", "_rebuild_sparse_tensor"), kind, parts)


def quantized(size: Any, stride: Any, quantizer: Any, *, dtype_name: str = "qint8") -> Code:
    below = typed(storage(0, 64), dtype_name)
    rebuild = name("torch._utils", "_rebuild_qtensor")
    return call(rebuild, below, 0, size, stride, quantizer, False, None)
