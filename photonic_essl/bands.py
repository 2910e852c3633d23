"""Band gaps: of bands, and as far as a density of states shows them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from photonic_essl.metrics import FREQUENCIES, empty_lattice

WITHOUT_STATES = 0.1  # of the empty lattice's density: smoothing leaves a little inside a gap


class Gap(NamedTuple):
    """A range of frequencies without a state, between its two edges, in the units of the bands."""

    lower: float
    upper: float

    @property
    def ratio(self) -> float:
        """Width over the frequency in the middle of the gap."""
        return 2 * (self.upper - self.lower) / (self.upper + self.lower)


def band_gaps(frequency: ArrayLike, smallest: float = 0.01) -> list[Gap]:
    """Find the gaps between neighbouring bands.

    Bands of both polarizations, joined and sorted along `band`, have as their gaps the complete ones.

    Args:
        frequency: of the bands, shape `(k, band)`, ascending along `band`, on wavevectors that hold the bands' extrema
            (a path through the points of high symmetry, or a grid of the whole zone).
        smallest: width over mid-gap frequency that a gap must have; bands that touch between two wavevectors of a
            finite number leave smaller ones.

    Returns:
        The gaps, lowest first.

    Raises:
        ValueError: if the shape is not `(k, band)`, or a value is not finite or the bands not ascending.
    """
    bands = np.asarray(frequency, dtype=np.float64)
    if bands.ndim != 2 or not len(bands) or not np.isfinite(bands).all() or (np.diff(bands, axis=1) < 0).any():
        raise ValueError(
            f"`frequency` must be finite bands of shape (k, band), ascending along band, got shape {bands.shape}."
        )
    edges = zip(bands[:, :-1].max(axis=0).tolist(), bands[:, 1:].min(axis=0).tolist())
    return [gap for gap in (Gap(*edge) for edge in edges) if gap.upper > gap.lower and gap.ratio >= smallest]


def widest_dos_gaps(dos: ArrayLike, area: float = 1.0) -> np.ndarray:
    """Return how wide a gap each density of states shows: width over middle of its widest range without states.

    A range counts where D/n is below a tenth of the empty lattice's. The smoothing of a label, 0.01 in ωn, takes about
    that much from each side of a gap, so that narrow ones are not seen.

    Args:
        dos: D/n on the first of the 500 scaled frequencies, shape `(sample, frequency)`.
        area: of the cells, in a².

    Returns:
        Shape `(sample,)`, float64; 0 where no gap is seen.
    """
    dos = np.asarray(dos, dtype=np.float64)
    frequency = FREQUENCIES[: dos.shape[1]]
    empty = np.pad(dos < WITHOUT_STATES * empty_lattice(frequency, area), ((0, 0), (1, 1)))
    widest = np.zeros(len(dos))
    for row, changes in enumerate(np.diff(empty.astype(np.int8), axis=1)):
        edges = zip(frequency[np.flatnonzero(changes == 1)], frequency[np.flatnonzero(changes == -1) - 1])
        widest[row] = max((Gap(*edge).ratio for edge in edges), default=0.0)
    return widest
