"""The record of a run, `run.json`: what was asked, where it was done, and what came out.

A module of its own: what reads a record need not wait for Lightning, which takes seconds to import.
"""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data_gen.dataset import package_commit, replaced_when_complete
from photonic_essl.saving import DIGEST, digest

RECORDED_PACKAGES = ("photonic_essl", "torch", "pytorch-lightning", "lightly", "numpy")


def read_records(folder: str | Path) -> dict[Path, dict[str, Any]]:
    """Return the records of the run in a folder, or else of all runs in folders within it, by the run's folder.

    Raises:
        FileNotFoundError: if there is no such folder, or no run in it.
        ValueError: if a record is damaged.
    """
    files = [file for pattern in ("run.json", "*/run.json") for file in sorted(Path(folder).glob(pattern))]
    if not files:
        raise FileNotFoundError(f"{folder} is no folder of a run, and holds none: there is no run.json.")
    own = [file for file in files if file.parent == Path(folder)] or files
    return {file.parent: read_record(file) for file in own}


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record with its digest, whole or not at all."""
    with replaced_when_complete(file) as partial:
        partial.write_text(json.dumps({**record, DIGEST: digest(record)}, indent=2) + "\n")


def read_record(file: Path) -> dict[str, Any]:
    """Read the record of a run.

    Raises:
        ValueError: if it is not what was written.
    """
    try:
        record = json.loads(file.read_text())
        whole = record.pop(DIGEST) == digest(record)
    except Exception as error:  # whatever is wrong with JSON, or with what it holds
        raise ValueError(f"{file} is damaged, or no record of a run: {type(error).__name__}: {error}.") from None
    if not whole:
        raise ValueError(f"{file} is damaged: it is not what was written, as its digest shows.")
    return record


def environment() -> dict[str, Any]:
    """Return versions, commit and hardware, as JSON can hold them."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES},
        "commit": package_commit(),
        "hardware": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }
