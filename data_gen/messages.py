"""Messages between processes, over pipes: arrays go to a process and arrays come back.

A message is a little-endian 64-bit length and a numpy `.npz` archive of that many bytes; nothing is pickled. This
module imports nothing but numpy, so that the interpreter that has MPB reads it too.

Processes that were started to work for another one end with it, however it ends: see `end_with_parent`.
"""

import io
import multiprocessing
import os
import select
import struct
import subprocess
import threading
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


def write_message(stream: IO[bytes], **arrays: np.ndarray | str) -> None:
    """Write one message and flush."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    stream.write(struct.pack("<Q", buffer.getbuffer().nbytes))
    stream.write(buffer.getbuffer())
    stream.flush()


class Peer:
    """A process that answers messages on its standard input with messages on its standard output.

    Args:
        command: program and arguments; it is expected to call `end_with_parent`, and to end when its standard input
            does.
        options: as for `subprocess.Popen`.
    """

    def __init__(self, command: Sequence[str], **options: Any):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
        self.requests, self.answers = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)

    def ask(self, **request: np.ndarray | str) -> dict[str, np.ndarray] | None:
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


def end_with_parent() -> None:
    """Let this process end when the one that started it has: a `Peer`, or a process of `multiprocessing`.

    Both hold one end of a pipe, which closes whatever happens to the process at its other end, even before this is
    called. (Linux can send a signal instead, but sends it when the *thread* that started the process ends.)
    """
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    else:
        hang_up = select.poll()
        hang_up.register(0, 0)  # of no event but that the other end was closed, which is always told
        hang_up.poll()
    os._exit(1)
