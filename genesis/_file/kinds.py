"""Files and folders of other programs, told by their first bytes or their names, with what to do.

It judges bytes and names that it is handed: it opens nothing, and believes nothing of what it sees
but the kind.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import NamedTuple

LOOKED_AT = 64 << 10
"""Bytes from either end of a file that are enough to tell its kind."""

_THEN = "then save the result with genesis.save"


class Kind(NamedTuple):
    """What a file or folder is, and the next step of a person who wants to load it."""

    problem: str
    hint: str


_TORCH = Kind("a file of torch.save", f"load it with torch.load, {_THEN}")
_OLD_TORCH = Kind(
    "a file of torch.save in its old form (before 1.6)", f"load it with torch.load, {_THEN}"
)
_SAFETENSORS = Kind(
    "a safetensors file",
    f"load it with load_file of safetensors.torch, .numpy or .flax, {_THEN}",
)

_MAGIC: list[tuple[bytes, Kind]] = [
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", _OLD_TORCH),
    (b"\x93NUMPY", Kind("an array of numpy.save", f"load it with numpy.load, {_THEN}")),
    (
        b"\x89HDF\r\n\x1a\n",
        Kind("an HDF5 file, as Keras and h5py write it", f"open it with Keras or h5py, {_THEN}"),
    ),
    (b"\x1f\x8b", Kind("a gzip file", "unpack it with gzip -d, then load the result")),
    (b"BZh", Kind("a bzip2 file", "unpack it with bzip2 -d, then load the result")),
    (b"\xfd7zXZ\0", Kind("an xz file", "unpack it with xz -d, then load the result")),
    (
        b"\x28\xb5\x2f\xfd",
        Kind("a zstd file", "unpack it with zstd -d, then load what comes out"),
    ),
    (
        b"version https://git-lfs",
        Kind("a pointer of Git LFS, not the file itself", "fetch the file with git lfs pull"),
    ),
    (b"<", Kind("a text of HTML or XML, a failed download perhaps", "download the file again")),
    (b"{", Kind("a text, of JSON perhaps", "open it with json.load")),
]

_ZIPPED: list[tuple[tuple[bytes, ...], Kind]] = [
    (
        (b"/constants.pkl", b"/code/"),
        Kind("a TorchScript archive", "load it with torch.jit.load, then save its state_dict()"),
    ),
    ((b"/data.pkl",), _TORCH),
    (
        (b".weights.h5", b"config.json"),
        Kind(
            "a model of Keras (.keras)",
            "load it with keras.saving.load_model, then save what its get_weights() gives",
        ),
    ),
    ((b".npy",), Kind("an archive of numpy.savez (.npz)", f"load it with numpy.load, {_THEN}")),
]
_ZIP = Kind("a zip archive, as torch.save writes it", f"load it with torch.load, {_THEN}")

_JOBLIB = Kind("a file of joblib.dump", f"load it with joblib.load, {_THEN}")
_NO_PICKLES: list[tuple[int, bytes, Kind]] = [
    (0, b"GGUF", Kind("a GGUF file", "open it with the gguf package or llama.cpp")),
    (0, b"PAR1", Kind("a Parquet file", "open it with pandas.read_parquet")),
    (257, b"ustar", Kind("a tar archive", "unpack it, then load what it holds")),
]
_MSGPACK = Kind(
    "no pickle, msgpack perhaps, as flax.serialization writes it",
    f"load it with flax.serialization.msgpack_restore, {_THEN}",
)


def of_file(start: bytes, end: bytes, size: int) -> Kind | None:
    """The kind of a file, ``None`` where it may be a pickle.

    Args:
        start, end: the first and the last `LOOKED_AT` bytes, or all.
    """
    if start[:2] == b"PK" and start[2:4] in (b"\3\4", b"\5\6"):
        return _of_zip(start + end)
    if _is_safetensors(start, size):
        return _SAFETENSORS
    found = (kind for magic, kind in _MAGIC if start.startswith(magic))
    return next(found, None) or (_MSGPACK if _is_msgpack(start) else None)


def of_failed_pickle(start: bytes) -> Kind | None:
    """The kind of a file that begins as a pickle may and is none."""
    found = (kind for at, magic, kind in _NO_PICKLES if start[at:].startswith(magic))
    return _JOBLIB if b"joblib.numpy_pickle" in start else next(found, None)


def _of_zip(seen: bytes) -> Kind:
    """A zip archive has the names of its members in clear before each, and all at its end."""
    return next((kind for parts, kind in _ZIPPED if all(part in seen for part in parts)), _ZIP)


def _is_safetensors(start: bytes, size: int) -> bool:
    """Eight bytes of length, then JSON. No pickle has a brace in this place after such a length."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _is_msgpack(start: bytes) -> bool:
    """A map of few entries whose first key is a string: no pickle begins so."""
    return len(start) > 1 and 0x81 <= start[0] <= 0x8F and (0xA0 <= start[1] <= 0xBF)


_FOLDERS: list[tuple[tuple[str, ...], Kind]] = [
    (
        (".metadata", "*.distcp"),
        Kind(
            "a folder of torch.distributed.checkpoint",
            "turn it into one file with dcp_to_torch_save of "
            f"torch.distributed.checkpoint.format_utils, load that with torch.load, {_THEN}",
        ),
    ),
    *(
        (
            (name,),
            Kind(
                "a checkpoint of Orbax, a folder",
                f"restore it with orbax.checkpoint.StandardCheckpointer().restore, {_THEN}",
            ),
        )
        for name in ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "commit_success.txt")
    ),
    (
        ("zero_to_fp32.py",),
        Kind(
            "a checkpoint of DeepSpeed, a folder",
            f"run the zero_to_fp32.py in it, load what it writes with torch.load, {_THEN}",
        ),
    ),
    (
        ("saved_model.pb",),
        Kind("a SavedModel of TensorFlow, a folder", "load it with tensorflow.saved_model.load"),
    ),
    (
        ("*.data-00000-of-*",),
        Kind(
            "a checkpoint of TensorFlow, a folder", "read it with tensorflow.train.load_checkpoint"
        ),
    ),
    (
        ("data.pkl", "version"),
        Kind(
            "a file of torch.save that was unpacked into a folder",
            f"zip the folder without compression (zip -0 -r), load that with torch.load, {_THEN}",
        ),
    ),
    *(
        (
            (name,),
            Kind(
                "a folder of a model, as from_pretrained of transformers reads it",
                "load it with from_pretrained, then save the model's state_dict()",
            ),
        )
        for name in ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
    ),
    (
        ("epoch_*.pth",),
        Kind(
            "a folder of checkpoints",
            "genesis.CheckpointManager(folder).latest() is the path of its last one",
        ),
    ),
]
_FOLDER = Kind("this is a directory", "name a checkpoint file in it")


def of_folder(names: Iterable[str]) -> Kind:
    """The kind of a folder with files and folders of these names."""
    names = list(names)
    for patterns, kind in _FOLDERS:
        if all(fnmatch.filter(names, pattern) for pattern in patterns):
            return kind
    return _FOLDER
