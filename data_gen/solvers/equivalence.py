"""Wavevectors that symmetry makes equivalent: one of each set is solved, the others follow."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64

from data_gen.solvers.contract import Bands

_STEPS = 10**8  # per reciprocal vector: wavevectors that agree to this are the same


class Equivalence(NamedTuple):
    """How the bands at many wavevectors follow from those at a few.

    Attributes:
        solved: shape `(few,)`: which wavevectors to solve.
        source: shape `(k,)`: for each wavevector, the entry of `solved` that it follows from.
        rotation: shape `(k, 2, 2)`: the Cartesian operation that takes the source's group velocity to its own.
    """

    solved: np.ndarray
    source: np.ndarray
    rotation: np.ndarray

    def expand(self, bands: Bands) -> Bands:
        """Return the bands at all wavevectors from those at the solved ones."""
        rotation = torch.as_tensor(self.rotation, device=bands.frequency.device)
        velocity = torch.einsum("kij,skbj->skbi", rotation, bands.group_velocity[:, self.source])
        return Bands(bands.frequency[:, self.source], velocity, bands.error)


def equivalence(
    wavevectors: Float64[np.ndarray, "k 2"],
    basis: Float64[np.ndarray, "2 2"],
    point_group: Int64[np.ndarray, "operation 2 2"] | None = None,
) -> Equivalence:
    """Find which wavevectors are equivalent by the crystal's point group, by time reversal, or by a reciprocal vector.

    ω(gk) = ω(k) and v(gk) = g v(k) for every operation g of the point group, and ω(-k) = ω(k), v(-k) = -v(k).

    Args:
        wavevectors: in units of the reciprocal vectors.
        basis: lattice vectors, one a row.
        point_group: R acting on fractional coordinates; time reversal alone if None.

    Returns:
        The equivalence; of each set the wavevector that comes first is solved.
    """
    rotations = np.eye(2, dtype=np.int64)[None] if point_group is None else point_group
    # Fractional wavevectors, the dual coordinates, transform with the inverse transpose.
    dual = np.rint(np.linalg.inv(rotations)).astype(np.int64).transpose(0, 2, 1)
    dual = np.concatenate([dual, -dual])
    cartesian = basis.T @ rotations @ np.linalg.inv(basis.T)
    cartesian = np.concatenate([cartesian, -cartesian])

    keys = _keys(wavevectors)
    images = _keys(np.einsum("oij,kj->oki", dual, wavevectors))
    _, first, group = np.unique(images.min(axis=0), return_index=True, return_inverse=True)
    solved = np.sort(first)
    source = np.searchsorted(solved, first[group])
    operation = (images[:, solved[source]] == keys).argmax(axis=0)
    return Equivalence(solved, source, cartesian[operation])


def _keys(wavevectors: np.ndarray) -> np.ndarray:
    """Return one whole number for each wavevector, the same for wavevectors a reciprocal vector apart."""
    steps = np.rint(wavevectors * _STEPS).astype(np.int64) % _STEPS
    return steps[..., 0] * _STEPS + steps[..., 1]
