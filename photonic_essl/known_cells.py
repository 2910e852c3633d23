"""Which cells a model knows: those that it was trained on, and those that chose its epoch or its intervals.

A model carries this with it, wherever its folder goes, so that it is not measured on what it has learnt from, and a
model that starts from it is not validated on that. A cell is known by a hash that its translated, turned and mirrored
copies share, as they share its density of states.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt64
from torch import Tensor, nn

from photonic_essl.symmetry import LATTICE_TOLERANCE

TRAINED_ON, VALIDATED_ON = "hashes_trained_on", "hashes_validated_on"

_PIXELS_AT_A_TIME = 2**20
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ over the golden ratio: what it multiplies is spread over all bits
_Numbers = UInt64[np.ndarray, "sample x y"]


class KnownCells(nn.Module):
    """Hashes of cells, in a state dict of any number of them.

    Attributes:
        hashes_trained_on: of the cells whose labels the weights come from.
        hashes_validated_on: of those whose labels chose the epoch, or the widths of intervals.
    """

    hashes_trained_on: Int64[Tensor, " trained_on"]
    hashes_validated_on: Int64[Tensor, " validated_on"]

    def __init__(self) -> None:
        super().__init__()
        for use in (TRAINED_ON, VALIDATED_ON):
            self.register_buffer(use, torch.zeros(0, dtype=torch.long))

    def add(self, use: str, hashes: Int64[Tensor, " sample"]) -> None:
        """Note cells, by their hashes, as trained or validated on."""
        before = self.get_buffer(use)
        setattr(self, use, torch.cat([before, hashes.to(before)]).unique())

    def among(self, use: str, hashes: Int64[Tensor, " sample"]) -> Bool[Tensor, " sample"]:
        """Return which of some cells, or symmetric copies of them, were trained or validated on."""
        return torch.isin(hashes, self.get_buffer(use).cpu())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Take up as many hashes as there are, where a buffer would insist on its own number."""
        for use, buffer in self.named_buffers():
            held = state_dict.get(prefix + use)
            if isinstance(held, Tensor) and held.ndim == 1 and held.dtype == buffer.dtype:
                setattr(self, use, buffer.new_empty(held.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def cell_hashes(
    epsilon: Float[Tensor, "sample channel x y"], lattice: Float[Tensor, "2 2"]
) -> Int64[Tensor, " sample"]:
    """Return a hash of each cell's pixels, in single precision, that its symmetric copies share.

    Copies are those under translations by whole pixels and the point group of the lattice. Each pixel has a number,
    which is mixed with the sums of those of its nearest neighbours, then of those twice as far away, four times, and so
    on, until pixels have seen the whole cell (colour refinement, B. Weisfeiler and A. Leman 1968). A symmetry of the
    lattice permutes neighbours at one distance, and pixels, which changes no sum. Some cells of 4 × 4 pixels, and what
    repeats them, share a hash with others that are no copies of them; none of more pixels has been found to.

    Args:
        epsilon: relative permittivity.
        lattice: lattice vectors, one a row.
    """
    grid = (epsilon.shape[2], epsilon.shape[3])
    shells = _shells(lattice.double().cpu().numpy(), grid)
    hashes = []
    for some in epsilon.detach().cpu().float().split(max(1, _PIXELS_AT_A_TIME // math.prod(grid))):
        bits = np.ascontiguousarray(some.numpy()).view(np.uint32).astype(np.uint64)
        pixels = np.zeros_like(bits[:, 0])
        for channel in range(bits.shape[1]):
            pixels = _mixed(pixels * _ODD + bits[:, channel])
        for power in range((max(grid) - 1).bit_length()):
            pixels = _refined(pixels, shells, 2**power)
        hashes.append(_mixed(pixels.sum((1, 2), dtype=np.uint64)).view(np.int64))
    return torch.from_numpy(np.concatenate(hashes))


def first_of_each(hashes: Int64[Tensor, " sample"]) -> Int64[np.ndarray, " distinct"]:
    """Return the rows, ascending, of the first of each cell and its copies."""
    return np.sort(np.unique(hashes.numpy(), return_index=True)[1])


def _shells(lattice: np.ndarray, grid: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """Return steps from a pixel to its neighbours, those of equal length together, the shortest first."""
    steps = lattice / np.array(grid)[:, None]
    lengths = (steps**2).sum(1)
    tolerance = 10 * LATTICE_TOLERANCE * lengths.min()
    furthest = 3 * lengths.max() + tolerance  # two shells on the square as on the hexagonal lattice
    i_most, j_most = (math.sqrt(furthest) * np.linalg.norm(np.linalg.inv(steps), axis=0) + 1e-6).astype(int)
    indices = [(i, j) for i in range(-i_most, i_most + 1) for j in range(-j_most, j_most + 1) if i or j]
    squares = {step: float(((np.array(step) @ steps) ** 2).sum()) for step in indices}
    shells: list[list[tuple[int, int]]] = []
    last = -np.inf
    for step in sorted(indices, key=squares.__getitem__):
        if squares[step] > furthest:
            break
        if squares[step] - last > tolerance:
            shells.append([])
        shells[-1].append(step)
        last = squares[step]
    return shells


def _refined(pixels: _Numbers, shells: list[list[tuple[int, int]]], stride: int) -> _Numbers:
    """Return new numbers of pixels, of their own and the sums over each shell, so many times as far away."""
    seen = pixels.copy()
    for shell in shells:
        seen *= _ODD
        for i, j in shell:
            seen += np.roll(pixels, (i * stride, j * stride), (1, 2))
    return _mixed(seen)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Return numbers of 64 bits each of which depends on all bits of the one before (the finaliser of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
