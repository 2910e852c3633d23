"""The folder beside an unfinished dataset file: its plan, and one checksummed shard for each finished chunk."""

import contextlib
import fcntl
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.dataset import replaced_when_complete

Chunk = tuple[int, int]

COMMIT = "package_commit"
"""The one entry of a plan that may change while a run is stopped: it then names each commit that was at work."""


class Shards:
    """Shards of one run; made by `open_shards`, which holds the folder's lock.

    Attributes:
        folder: where they are.
        plan: what decides the file's bytes, and which code was at work.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]):
        self.folder, self.plan = folder, plan

    def write(self, chunk: Chunk, arrays: dict[str, np.ndarray]) -> None:
        """Put the arrays of a chunk on disk, whole or not at all; raises `OSError` if that fails."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        body = buffer.getvalue()
        with replaced_when_complete(self._path(chunk)) as partial:
            partial.write_bytes(hashlib.sha256(body).digest() + body)

    def read(self, chunk: Chunk) -> dict[str, np.ndarray] | None:
        """Return the arrays of a chunk, or None if there is no whole shard of it."""
        try:
            content = self._path(chunk).read_bytes()
        except FileNotFoundError:
            return None
        digest, body = content[:32], content[32:]
        if hashlib.sha256(body).digest() != digest:
            return None
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def remove(self, chunk: Chunk) -> None:
        """Forget the arrays of a chunk."""
        self._path(chunk).unlink()

    def _path(self, chunk: Chunk) -> Path:
        return self.folder / f"cells-{chunk[0]:09d}-{chunk[1]:09d}.shard"


@contextlib.contextmanager
def open_shards(out: Path, plan: dict[str, Any]) -> Iterator[Shards]:
    """Open or start the shards of the run that makes `out`, and remove them when the run has succeeded.

    Args:
        out: the dataset file.
        plan: what decides its bytes, as JSON values.

    Raises:
        ValueError: if there is an unfinished run of other settings, or another process is at work on it.
        OSError: if the folder cannot be made or written.
    """
    folder = out.with_name(out.name + ".part")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is at work on {out} right now") from None
        yield Shards(folder, _agreed(folder, out, plan))
        for file in set(folder.iterdir()) - {folder / "lock"}:
            file.unlink()
    with contextlib.suppress(OSError):  # the next run may have begun
        (folder / "lock").unlink()  # closed by now: some network file systems keep what is open
        folder.rmdir()


def _agreed(folder: Path, out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Write the plan into a folder and return it; in a folder that has shards, check first that theirs is the same."""
    path = folder / "plan.json"
    found = json.loads(path.read_text()) if any(folder.glob("*.shard")) else plan
    differences = [key for key in plan if key != COMMIT and found.get(key) != plan[key]]
    if len(differences) > 1:  # the command says again what the rest says
        differences = [key for key in differences if key != "command"]
    if differences:
        there = ", ".join(f"{key} {found.get(key)!r}" for key in differences)
        asked = ", ".join(f"{key} {plan[key]!r}" for key in differences)
        raise ValueError(
            f"an unfinished run for {out} has {there}, and this one asks for {asked}; "
            f"run it with the first settings to finish it, or remove {folder}"
        )
    if COMMIT in plan:
        commits = [*found.get(COMMIT, plan[COMMIT]).split(", "), plan[COMMIT]]
        plan = plan | {COMMIT: ", ".join(dict.fromkeys(commits))}
    with replaced_when_complete(path) as partial:
        partial.write_text(json.dumps(plan, indent=1))
    return plan
