"""The folder of a run: what was asked, on which machine, what it cost, and whether it is finished."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from data_gen.dataset import partial_of
from photonic_essl.records import environment, read_record, write_record


class Run:
    """A run in a folder, new or continued; its record is `run.json`, written by the first of its processes.

    A run that has left neither a checkpoint nor a model has nothing to go on from, and any other may begin there.

    Args:
        folder: where everything of the run is written.
        command: what the run does: `"pretrain"` or `"finetune"`.
        settings: everything that the result depends on, as JSON can hold it.

    Attributes:
        folder: as given.
        record: what `run.json` holds.

    Raises:
        ValueError: if the folder holds a run with other settings, a damaged record, or files that are no run.
    """

    def __init__(self, folder: str | Path, command: str, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        self.record_file = self.folder / "run.json"
        self._asked = json.loads(json.dumps({"command": command, "settings": dict(settings)}))
        if self.record_file.exists():
            self._read()
        else:
            begun = {partial_of(self.record_file)}  # killed before there was a record
            if self.folder.exists() and (self.folder.is_file() or set(self.folder.iterdir()) - begun):
                raise ValueError(f"{self.folder} exists and is not the folder of a run; choose another.")
            self._begin_anew()

    def _read(self) -> None:
        self.record = read_record(self.record_file)
        if self.finished or self.checkpoint.exists() or any(self.folder.glob("*.safetensors")):
            _check_same(self.folder, self.record, self._asked)
        elif any(self.record[name] != self._asked[name] for name in self._asked):
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.record = {**self._asked, "finished": False, "seconds": 0.0, "sittings": []}

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.record["finished"]

    @property
    def checkpoint(self) -> Path:
        """Where the run's checkpoint is, if it has one yet."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def metrics(self) -> list[Path]:
        """The CSV logs of each sitting so far, in order."""
        return sorted(self.folder.glob("logs/*/metrics.csv"), key=lambda path: int(path.parent.name))

    @contextlib.contextmanager
    def sitting(self, **facts: Any) -> Iterator[None]:
        """Note the start of some uninterrupted work, and facts about where it is done, and keep others from the folder.

        Raises:
            ValueError: if another process is at work there, or has finished the run, or begun another, meanwhile.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder):
            self._begin(facts)
            yield

    @rank_zero_only
    def _begin(self, facts: Mapping[str, Any]) -> None:
        if self.record_file.exists():
            self._read()
            if self.finished:
                raise ValueError(f"another process has finished the run in {self.folder} meanwhile.")
        if self.checkpoint.exists():
            print(f"{self.folder} holds this run, unfinished; it goes on from its last checkpoint.", flush=True)
        else:
            for logs in ("logs", "tensorboard"):  # of steps that are taken again
                shutil.rmtree(self.folder / logs, ignore_errors=True)
        self._started = time.monotonic()
        self._seconds_before = self.record["seconds"]
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.record["sittings"].append({"started": now, **environment(), **facts})
        self.write()

    @rank_zero_only
    def write(self) -> None:
        """Write the record; a reader sees the old one or the new one, never half of either."""
        if hasattr(self, "_started"):
            self.record["seconds"] = round(self._seconds_before + time.monotonic() - self._started, 3)
        write_record(self.record_file, self.record)

    @rank_zero_only
    def finish(self, **results: Any) -> None:
        """Note the end of the run, and what came out."""
        self.record |= {"finished": True, "results": results}
        self.write()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs from a folder; processes of one run, of which the first has the lock, are let through."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _locks.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work in {folder} right now.") from None
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that is being forked may have it yet
        _locks.remove(descriptor)
        os.close(descriptor)


_locks: set[int] = set()


def _leave_locks() -> None:
    """Let go of the locks of the process that this one was forked from: they end with that one."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_leave_locks)


def _check_same(folder: Path, record: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if record["command"] != asked["command"]:
        raise ValueError(f"{folder} holds a run of `{record['command']}`, not of `{asked['command']}`.")
    there, here = record["settings"], asked["settings"]
    different = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
    if different:
        shown = "; ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} asked" for key in different)
        raise ValueError(f"{folder} holds a run with other settings ({shown}); choose another folder.")
