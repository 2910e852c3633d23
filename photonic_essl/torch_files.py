"""Files that `torch.save` wrote, such as published weights and checkpoints: read whole, and without running any code.

They are zip archives of uncompressed records, each with a CRC-32 that torch itself does not look at. (Files from before
torch 1.6 are no archives and carry no checksum: what can be unpickled as plain tensors is all that is known of them.)
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ZIP = b"PK\x03\x04"


def read_torch_file(path: str | Path) -> Any:
    """Read tensors and plain containers from a file.

    Args:
        path: what `torch.save` wrote.

    Returns:
        What was saved, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or holds more than tensors and plain containers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        _check_records(Path(path))
        held = torch.load(path, map_location="cpu", weights_only=True)
        _check_sizes(held)
    except pickle.UnpicklingError:  # torch's own words advise to run what is in the file
        raise ValueError(f"{path} is damaged, or holds more than tensors and plain containers.") from None
    except Exception as error:  # the readers of zip archives and of pickles raise whatever comes
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is damaged, or holds more than tensors: {reason}") from None
    return held


def _check_records(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return
    with zipfile.ZipFile(path) as archive:
        if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
            raise ValueError("its records claim to be larger than the file")
        if damaged := archive.testzip():
            raise ValueError(f"its record {damaged} is not what was written")


def _check_sizes(held: Any) -> None:
    """Refuse tensors of more elements than the file holds: whoever copies one would need any amount of memory."""
    if isinstance(held, Tensor):
        if held.device.type != "cpu" or held.nbytes > held.untyped_storage().nbytes():
            raise ValueError(f"a tensor claims the shape {tuple(held.shape)}")
    elif isinstance(held, Mapping):
        _check_sizes(list(held.values()))
    elif isinstance(held, (list, tuple)):
        for part in held:
            _check_sizes(part)
