"""Genesis files around skeletons that genesis did not write: every checksum right."""

from __future__ import annotations

from typing import Any

from genesis._file import layout


def genesis_file(skeleton: bytes, data: bytes, **changes: Any) -> bytes:
    """A file of the current format version.

    Args:
        changes: what its trailer says instead: ``stream_size``, ``skeleton_offset``, ``pickler``.
    """
    start = layout.header(len(data)) + data + layout.prologue(torch_storages=True)
    whole = start + skeleton
    chunk = layout.CHUNK_SIZE
    digests = [layout.digest(whole[low : low + chunk]) for low in range(0, len(whole), chunk)]
    index = layout.encode_index(changes.get("pickler", "pickle"), "a test", "3.11", {})
    trailer = layout.encode_trailer(
        digests,
        index,
        stream_size=changes.get("stream_size", len(whole)),
        skeleton_offset=changes.get("skeleton_offset", len(start)),
    )
    return whole + trailer
