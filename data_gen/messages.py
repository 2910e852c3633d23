"""Messages between processes, over pipes: arrays go to a process and arrays come back.

A message is a little-endian 64-bit length and a numpy `.npz` archive of that many bytes; nothing is pickled. This
module imports nothing but numpy, so that the interpreter that has MPB reads it too.
"""

import io
import struct
import subprocess
from collections.abc import Sequence
from typing import IO, Any, cast

import numpy as np


def read_message(stream: IO[bytes]) -> dict[str, np.ndarray] | None:
    """Return the arrays of the next message, or None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    body = stream.read(length)
    if len(body) < length:
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def write_message(stream: IO[bytes], **arrays: np.ndarray) -> None:
    """Write one message and flush."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    stream.write(struct.pack("<Q", buffer.getbuffer().nbytes))
    stream.write(buffer.getbuffer())
    stream.flush()


class Peer:
    """A process that answers messages on its standard input with messages on its standard output.

    Args:
        command: program and arguments; it is expected to end when its standard input does.
        options: as for `subprocess.Popen`.
    """

    def __init__(self, command: Sequence[str], **options: Any):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
        self.requests, self.answers = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)

    def ask(self, **request: np.ndarray) -> dict[str, np.ndarray] | None:
        """Return the answer to one request, None if the process has died."""
        try:
            write_message(self.requests, **request)
            return read_message(self.answers)
        except BrokenPipeError:
            return None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
