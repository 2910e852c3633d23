"""Which cells a model knows: those that it was trained on, and those that chose its epoch or its intervals.

A model carries this with it, wherever its folder goes, so that it is not measured on what it has learnt from, and a
model that starts from it is not validated on that. A cell is known by the first eight bytes of a SHA-256 of its pixels;
translated and turned copies of it are others.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

TRAINED_ON, VALIDATED_ON = "trained_on", "validated_on"


class KnownCells(nn.Module):
    """Hashes of cells, in a state dict of any number of them.

    Attributes:
        trained_on: of the cells whose labels the weights come from.
        validated_on: of those whose labels chose the epoch, or the widths of intervals.
    """

    trained_on: Int64[Tensor, " trained_on"]
    validated_on: Int64[Tensor, " validated_on"]

    def __init__(self) -> None:
        super().__init__()
        for use in (TRAINED_ON, VALIDATED_ON):
            self.register_buffer(use, torch.zeros(0, dtype=torch.long))

    def add(self, use: str, epsilon: Float[Tensor, "sample channel x y"]) -> None:
        """Note cells as trained or validated on."""
        before = self.get_buffer(use)
        setattr(self, use, torch.cat([before, cell_hashes(epsilon).to(before)]).unique())

    def among(self, use: str, epsilon: Float[Tensor, "sample channel x y"]) -> Bool[Tensor, " sample"]:
        """Return which of some cells were trained or validated on."""
        return torch.isin(cell_hashes(epsilon), self.get_buffer(use).cpu())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Take up as many hashes as there are, where a buffer would insist on its own number."""
        for use, buffer in self.named_buffers():
            held = state_dict.get(prefix + use)
            if isinstance(held, Tensor) and held.ndim == 1 and held.dtype == buffer.dtype:
                setattr(self, use, buffer.new_empty(held.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def cell_hashes(epsilon: Float[Tensor, "sample channel x y"]) -> Int64[Tensor, " sample"]:
    """Return a hash of each cell's pixels, in single precision."""
    pixels = np.ascontiguousarray(epsilon.detach().cpu().float().numpy())
    hashes = [int.from_bytes(hashlib.sha256(cell.data).digest()[:8], "little", signed=True) for cell in pixels]
    return torch.tensor(hashes, dtype=torch.long)
