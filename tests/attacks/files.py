"""Genesis files around skeletons that genesis did not write: every checksum right."""

from __future__ import annotations

from typing import Any

from genesis import _format


def genesis_file(skeleton: bytes, data: bytes, **changes: Any) -> bytes:
    """A file of the current format version.

    Args:
        changes: what its trailer says instead: ``stream_size``, ``skeleton_offset``, ``pickler``.
    """
    start = _format.header(len(data)) + data + _format.prologue(torch_storages=True)
    whole = start + skeleton
    chunk = _format.CHUNK_SIZE
    digests = [_format.digest(whole[low : low + chunk]) for low in range(0, len(whole), chunk)]
    index = _format.encode_index(changes.get("pickler", "pickle"), "a test", "3.11", {})
    trailer = _format.encode_trailer(
        digests,
        index,
        stream_size=changes.get("stream_size", len(whole)),
        skeleton_offset=changes.get("skeleton_offset", len(start)),
    )
    return whole + trailer
