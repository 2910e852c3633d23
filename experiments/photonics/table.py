"""The tidy table of a study: one row a run, added whole or not at all, by any number of processes."""

import contextlib
import csv
import fcntl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.dataset import replaced_when_complete

IDENTITY = ("dataset", "recipe", "scale", "labels", "pretraining_seed", "label_seed", "training_labels")
"""What tells rows apart: a run of the same identity is not done twice."""

COLUMNS = (
    *IDENTITY,
    "relative_error",
    "validation_relative_error",
    "relative_error_published_labels",
    "relative_error_coarse_labels",
    "relative_error_published_protocol",
    "pretraining_seconds",
    "seconds",
    "encoder",
    "recipe_settings",
    "pretraining_epochs",
    "finetuning_epochs",
    "best_epoch",
    "invariance",
    "equivariance",
    "unlabelled_data",
    "training_data",
    "validation_data",
    "test_data",
    "device",
    "commit",
    "versions",
)


def identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what tells a row apart, as the table spells it."""
    return tuple(str(row[name]) for name in IDENTITY)


def read_rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table, as text; none where there is no file yet.

    Raises:
        ValueError: if the file has other columns.
    """
    if not table.exists():
        return []
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{table} is not a table of this study: its columns are {reader.fieldnames}")
        return list(reader)


def add_row(table: Path, row: Mapping[str, Any]) -> None:
    """Add a row to the table on disk, in one go, unless one of its identity is there.

    Raises:
        ValueError: if the file has other columns.
    """
    table.parent.mkdir(parents=True, exist_ok=True)
    with locked(table):
        rows = read_rows(table)
        if identity(row) in {identity(other) for other in rows}:
            return
        with replaced_when_complete(table) as partial:
            _write(partial, [*rows, row])


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes of the study from changing a file meanwhile."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
