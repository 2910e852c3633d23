"""A first approximation to the density of states, in milliseconds a cell: few plane waves, and k·p between wavevectors.

A band structure in a few dozen plane waves is cheap and, at the frequencies that are predicted, nearly right. Solved
on a coarse grid of wavevectors, its lowest states also span those nearby (k·p; for photonic crystals M. I. Hussein,
Proc. R. Soc. A 465 (2009) 2825), which gives a fine grid for the price of matrices of a few states. What is missing, a
network has to learn; see `Regressor`.
"""

import math

import torch
from jaxtyping import Complex64, Float, Float32, Int64
from torch import Tensor, nn

from photonic_essl.metrics import FREQUENCIES, PREDICTED, empty_lattice

WAVEVECTORS = 6
"""Number of wavevectors along each reciprocal lattice vector at which bands are solved."""

SUBDIVISIONS = 8
"""Into how many parts k·p divides the distance between them."""

SMOOTHING = 0.01
"""Standard deviation of the Gaussian over scaled frequency: that of the labels."""

BATCH = 64
"""Cells at a time, which bounds the memory."""

_STEP = float(FREQUENCIES[1])


class PlaneWaves(nn.Module):
    """The difference of a cell's density of states from that of a uniform one, as few plane waves give it.

    It does not change under translations by whole pixels, nor under ε → s·ε, nor, on the square lattice, under the
    point group: waves and wavevectors have the symmetry of the lattice. (On others the grid of wavevectors has only
    some of it, and the result keeps the rest to the error of that grid.)

    Args:
        cutoff: plane waves with |G| up to this are taken, in 2π/a.
        grid: number of points of the cells along the two lattice vectors.
        lattice: lattice vectors, one a row, in units of a.
        polarization: tm or te.

    Raises:
        ValueError: if the cutoff is not positive, the grid too coarse for its plane waves, or the polarization neither.
    """

    def __init__(
        self,
        cutoff: float,
        grid: tuple[int, int] = (32, 32),
        lattice: Float[Tensor, "2 2"] | None = None,
        polarization: str = "tm",
    ):
        super().__init__()
        if polarization not in ("tm", "te"):
            raise ValueError(f"`polarization` must be tm or te, got {polarization!r}.")
        lattice = torch.eye(2, dtype=torch.float64, device="cpu") if lattice is None else lattice.double().cpu()
        reciprocal = torch.linalg.inv(lattice).T
        waves = _waves(cutoff, reciprocal)
        if any(2 * reach >= points for reach, points in zip(waves.abs().amax(0).tolist(), grid)):
            raise ValueError(f"plane waves up to {cutoff:g} are too many for a grid of {grid[0]} × {grid[1]} points.")
        self.polarization = polarization
        area = abs(float(torch.linalg.det(lattice)))
        # Twice as many as a uniform cell has below the highest frequency that is predicted.
        self.states = min(2 * math.ceil(math.pi * FREQUENCIES[PREDICTED] ** 2 * area), len(waves))
        centres = _centred(WAVEVECTORS)
        half = torch.cartesian_prod(centres, centres)[WAVEVECTORS**2 // 2 :]  # ω(-k) = ω(k)
        offsets = torch.cartesian_prod(*2 * [_centred(SUBDIVISIONS) / WAVEVECTORS])
        differences = (waves[:, None] - waves) % torch.tensor(grid, device="cpu")
        constants = {
            "differences": differences,
            "momenta": ((waves + half[:, None]) @ reciprocal).float(),
            "offsets": (offsets @ reciprocal).float(),
            "kernel": _smoothing_kernel(),
        }
        for name, values in constants.items():
            self.register_buffer(name, values, persistent=False)
        uniform = self._density(torch.ones(1, *grid, device="cpu"))
        # A cell of another area than a² has more or fewer states than the empty lattice that regressors start from.
        missing = (area - 1) * torch.from_numpy(empty_lattice()[:PREDICTED]).float()
        self.register_buffer("uniform", uniform - missing, persistent=False)

    def forward(self, epsilon: Float[Tensor, "batch 1 x y"]) -> Float32[Tensor, "batch 400"]:
        """Return the difference of D/n from the empty lattice on the first 400 of the 500 scaled frequencies.

        Args:
            epsilon: relative permittivity, positive.

        Returns:
            In a/2πc, states per unit cell, smoothed as labels are.
        """
        with torch.autocast(epsilon.device.type, enabled=False):
            return torch.cat([self._density(batch) for batch in epsilon[:, 0].float().split(BATCH)]) - self.uniform

    def _density(self, epsilon: Tensor) -> Tensor:
        """Return D/n: a histogram of the states, smoothed."""
        place = self._scaled_frequencies(epsilon) / _STEP
        below = place.floor().clamp(max=len(self.kernel) - 2)
        part = (place - below).clamp(max=1)
        histogram = torch.zeros(len(epsilon), len(self.kernel), device=epsilon.device)
        histogram.scatter_add_(1, below.long(), 1 - part)
        histogram.scatter_add_(1, below.long() + 1, part)
        # The last point holds all states that lie beyond.
        histogram[:, -1] = 0
        return histogram @ self.kernel / (len(self.momenta) * len(self.offsets))

    def _scaled_frequencies(self, epsilon: Float32[Tensor, "batch x y"]) -> Float32[Tensor, "batch state"]:
        """Return ωn of the lowest states at all wavevectors."""
        coefficients = torch.fft.fft2(epsilon.to(torch.complex64), norm="forward")
        matrix = coefficients[:, self.differences[..., 0], self.differences[..., 1]]
        squares, linear, quadratic = (self._tm if self.polarization == "tm" else self._te)(matrix)
        # ω² of the states at k + q, in the space of the lowest states at k.
        q = self.offsets
        nearby = torch.diag_embed(squares)[:, :, None] + q.square().sum(1)[:, None, None] * quadratic[:, :, None]
        for axis in range(2):
            nearby = nearby + q[:, axis, None, None] * linear[axis][:, :, None]
        frequency = torch.linalg.eigvalsh(nearby).clamp(min=0).sqrt().flatten(1)
        return frequency * epsilon.mean((1, 2)).sqrt()[:, None]

    def _tm(self, epsilon: Complex64[Tensor, "batch wave wave"]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Solve |k + G|² E = ω² ε E; return ω² of the lowest states, and what is linear and quadratic in q."""
        factor = torch.linalg.cholesky(epsilon)
        unit = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, unit, upper=False)[:, None]
        scaled = inverse * self.momenta.norm(dim=-1)[:, None]
        squares, states = torch.linalg.eigh(scaled @ scaled.mH)
        fields = inverse.mH @ states[..., : self.states]
        linear = [2 * fields.mH @ (self.momenta[..., axis, None] * fields) for axis in range(2)]
        return squares[..., : self.states], linear, fields.mH @ fields

    def _te(self, epsilon: Complex64[Tensor, "batch wave wave"]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Solve (k + G)·η(G, G')·(k + G') H = ω² H, where η is the inverse of the matrix of ε; return as `_tm` does."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(epsilon))[:, None]
        momenta = self.momenta.unbind(-1)
        squares, states = torch.linalg.eigh(sum(p[:, :, None] * inverse * p[:, None] for p in momenta))
        fields = states[..., : self.states]
        linear = [fields.mH @ (inverse @ (p[..., None] * fields)) for p in momenta]
        return squares[..., : self.states], [part + part.mH for part in linear], fields.mH @ inverse @ fields


def _waves(cutoff: float, reciprocal: Float[Tensor, "2 2"]) -> Int64[Tensor, "wave 2"]:
    """Return the reciprocal lattice vectors up to the cutoff, in units of the basis."""
    if not cutoff > 0:
        raise ValueError(f"the cutoff of plane waves must be positive, got {cutoff}.")
    reach = math.ceil(cutoff / float(torch.linalg.svdvals(reciprocal).min()))
    steps = torch.arange(-reach, reach + 1, device="cpu")
    all_waves = torch.cartesian_prod(steps, steps)
    return all_waves[(all_waves.double() @ reciprocal).norm(dim=1) <= cutoff]


def _centred(points: int) -> Float[Tensor, " points"]:
    """Return the middles of equal parts of the interval from -1/2 to 1/2."""
    return (torch.arange(points, dtype=torch.float64, device="cpu") + 0.5) / points - 0.5


def _smoothing_kernel() -> Float32[Tensor, "500 400"]:
    """Return what a state at each scaled frequency adds to the density at those that are predicted."""
    frequency = torch.from_numpy(FREQUENCIES)
    distance = (frequency[:, None] - frequency[:PREDICTED]) / SMOOTHING
    return (torch.exp(-(distance**2) / 2) / (SMOOTHING * math.sqrt(2 * math.pi))).float()
