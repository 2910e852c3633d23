"""What every band solver takes and gives.

A solver is a function `solve_bands(epsilon, wavevectors, *, bands, polarization, basis, resolution) -> Bands`.
All solvers discretise the same sampled permittivity on the same grid, so that their answers can be compared to
many digits.
"""

from typing import NamedTuple

import torch

POLARIZATIONS = ("tm", "te")


class ConvergenceError(RuntimeError):
    """A solver could not reach its tolerance; the message says for which cell and by how much."""


class Bands(NamedTuple):
    """Bands of a batch of cells.

    Attributes:
        frequency: shape `(sample, k, band)`, float64, in 2πc/a, ascending along `band`.
        group_velocity: shape `(sample, k, band, 2)`, float64, Cartesian, in c. Within a degenerate subspace it
            belongs to the eigenvectors of the velocity operator; it is 0 where the frequency is 0.
        error: shape `(sample,)`, float64: the solver's own estimate of its largest relative error in frequency.
    """

    frequency: torch.Tensor
    group_velocity: torch.Tensor
    error: torch.Tensor
