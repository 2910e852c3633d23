"""Wavevectors sorted into square patches of the Brillouin zone, half of which time reversal makes enough."""

from typing import NamedTuple

import numpy as np
import torch

from data_gen.solvers.bloch import Grid


class Plan(NamedTuple):
    """Which wavevectors to solve with the k·p model of which patch.

    Attributes:
        patch: the patches that hold any, as `Zone.centres` numbers them, shape `(patch,)`.
        offsets: shape `(patch, slot, 2)`, Cartesian, in 2π/a: of k or -k from the centre; empty slots hold 0.
        slot: for each wavevector, where to find it among the flattened `(patch, slot)`.
        sign: for each wavevector, -1 where -k is solved in its place.
        reach: how far the wavevectors reach towards the edges of their patches; 1 is all the way.
    """

    patch: torch.Tensor
    offsets: torch.Tensor
    slot: torch.Tensor
    sign: torch.Tensor
    reach: float


class Corners(NamedTuple):
    """Corners of patches.

    Attributes:
        plan: each corner once in every patch that it belongs to.
        exist: which of the four patches around each corner exist, shape `(corner, 4)`; the plan has those, in order.
        checked: at which corners models are compared with the basis as well, shape `(corner,)`: at the zone's, or where
            levels are as dense as in an elongated cell, all along its edges. There a model may lack a level from beyond
            the edge, as the one beside it does.
        there: Cartesian wavevectors of those, in order.
    """

    plan: Plan
    exist: torch.Tensor
    checked: torch.Tensor
    there: torch.Tensor


class Zone:
    """The wavevectors of one computation; patches come in an odd number along each reciprocal vector.

    Attributes:
        wavevectors: shape `(k, 2)`, in units of the reciprocal vectors.
        grid: the mesh, for its reciprocal vectors.
    """

    def __init__(self, wavevectors: np.ndarray, grid: Grid):
        self.wavevectors = wavevectors
        self.grid = grid
        self._plans: dict[int, Plan] = {}
        self._corners: dict[int, Corners] = {}

    def cartesian(self, wavevectors: np.ndarray) -> torch.Tensor:
        """Return wavevectors in 2π/a."""
        return torch.as_tensor(wavevectors, device=self.grid.reciprocal.device) @ self.grid.reciprocal

    def centres(self, patches: int) -> torch.Tensor:
        """Return the Cartesian centres of the patches of half a zone, shape `(patch, 2)`: one of each pair k, -k."""
        half = patches // 2
        index = np.stack(np.meshgrid(*[np.arange(-half, half + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
        return self.cartesian(index[len(index) // 2 :] / patches)

    def plan(self, patches: int) -> Plan:
        """Return the plan for the wavevectors, folded into the first zone."""
        if patches not in self._plans:
            folded = self.wavevectors - np.round(self.wavevectors)
            # In whole patches from the zone's centre; between two it is the inner one, so that mirrors agree on it.
            index = np.ceil(np.abs(folded) * patches - 0.5 - 1e-9).astype(np.int64)
            index = np.sign(folded).astype(np.int64) * np.minimum(index, patches // 2)
            self._plans[patches] = self._sorted(folded, index, patches)
        return self._plans[patches]

    def corners(self, patches: int) -> Corners:
        """Return the corners of patches, where models are to be compared."""
        if patches not in self._corners:
            half = patches // 2
            corner = np.arange(-half - 1, half + 1) + 0.5
            corner = np.stack(np.meshgrid(corner, corner, indexing="ij"), axis=-1).reshape(-1, 1, 2)
            corner = corner[corner[:, 0, 0] > 0]
            index = corner + np.array([(0.5, 0.5), (0.5, -0.5), (-0.5, 0.5), (-0.5, -0.5)])
            exist = (np.abs(index) <= half).all(-1)
            # Not quite at the zone's corners: there, bands that cross by symmetry hide errors when they are sorted.
            corner[exist.sum(-1) == 1] *= 0.98
            checked = ~exist.all(-1) if self.grid.elongated else exist.sum(-1) == 1
            there = self.cartesian(corner[checked, 0] / patches)
            corner = np.broadcast_to(corner, index.shape)[exist] / patches
            plan = self._sorted(corner, index[exist].astype(np.int64), patches)
            exist, checked = (torch.as_tensor(mask, device=plan.sign.device) for mask in (exist, checked))
            self._corners[patches] = Corners(plan, exist, checked, there)
        return self._corners[patches]

    def _sorted(self, wavevectors: np.ndarray, index: np.ndarray, patches: int) -> Plan:
        """Return a plan, given the patch of each wavevector as whole patches from the zone's centre."""
        reach = 2 * np.abs(wavevectors * patches - index).max()
        sign = np.where((index[:, 0] < 0) | ((index[:, 0] == 0) & (index[:, 1] < 0)), -1, 1)
        index, wavevectors = index * sign[:, None], wavevectors * sign[:, None]
        number = index[:, 0] * patches + index[:, 1]  # in the order of `centres`
        present, patch, counts = np.unique(number, return_inverse=True, return_counts=True)
        order = np.argsort(patch, kind="stable")
        position = np.empty(len(patch), dtype=np.int64)
        position[order] = np.arange(len(patch)) - np.repeat(np.cumsum(counts) - counts, counts)
        offsets = np.zeros((len(present), counts.max(), 2))
        offsets[patch, position] = wavevectors - index / patches
        device = self.grid.reciprocal.device
        return Plan(
            torch.as_tensor(present, device=device),
            self.cartesian(offsets),
            torch.as_tensor(patch * counts.max() + position, device=device),
            torch.as_tensor(sign, dtype=torch.float64, device=device),
            float(reach),
        )
