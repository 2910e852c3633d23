"""A checksum at the end of an HDF5 file, of all that HDF5 reads but the values, which have checksums of their own.

HDF5 checks little of its own tables, and a damaged one can keep it busy for ever. The seal is looked at first. It is
the places of all chunks, a SHA-256 of them and of every byte between them, their number, and a mark; HDF5 ignores what
comes after its own end. Chunks are left out, so that a large file is opened without being read.
"""

import hashlib
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

_MARK = b"\x89sealed by data_gen\n"
_TAIL = 32 + 8 + len(_MARK)


def seal(content: FileIO) -> None:
    """Put the seal at the end of a file that is complete, and open for reading and writing."""
    places: list[tuple[int, int]] = []
    with h5py.File(content, "r") as file:
        for entry in file.values():
            if isinstance(entry, h5py.Dataset) and entry.chunks:
                entry.id.chunk_iter(lambda chunk: places.append((chunk.byte_offset, chunk.byte_offset + chunk.size)))
    chunks = np.array(sorted(places), dtype="<i8").reshape(-1, 2)
    digest = _digest(content, chunks, content.seek(0, 2))
    content.seek(0, 2)
    content.write(chunks.tobytes() + digest + len(chunks).to_bytes(8, "little") + _MARK)


def check_seal(path: Path) -> bool:
    """Return whether a file has a seal.

    Raises:
        ValueError: if it has, and the file is not what was sealed.
    """
    with path.open("rb") as content:
        size = content.seek(0, 2)
        content.seek(max(size - _TAIL, 0))
        tail = content.read()
        if not tail.endswith(_MARK) or len(tail) < _TAIL:
            return False
        digest, count = tail[:32], int.from_bytes(tail[32:40], "little")
        end = size - _TAIL - 16 * count
        if end >= 0:
            content.seek(end)
            chunks = np.frombuffer(content.read(16 * count), dtype="<i8").reshape(-1, 2)
            places = np.concatenate([[0], chunks.ravel(), [end]])
            if (np.diff(places) >= 0).all() and _digest(content, chunks, end) == digest:
                return True
    raise ValueError(f"{path} is damaged: it is not the file that was sealed")


def _digest(content: BinaryIO | FileIO, chunks: np.ndarray, end: int) -> bytes:
    """Return the SHA-256 of the places of chunks, and of all bytes before `end` that are in none."""
    found = hashlib.sha256(chunks.tobytes())
    edges = [0, *chunks.ravel().tolist(), end]
    for start, stop in zip(edges[::2], edges[1::2]):
        content.seek(start)
        found.update(content.read(stop - start))
    return found.digest()
