"""A first approximation to the density of states, in milliseconds a cell: plane waves, and k·p between wavevectors.

The lowest states in a few plane waves are cheap. One step of inverse iteration and a Rayleigh–Ritz projection in many
more bring them close to what a full solution gives. Solved on a coarse grid of wavevectors, they also span those nearby
(k·p; for photonic crystals M. I. Hussein, Proc. R. Soc. A 465 (2009) 2825), the higher ones to second order (P.-O.
Löwdin, J. Chem. Phys. 19 (1951) 1396), which gives a fine grid for the price of matrices of a few states.
What is missing, a network has to learn; see `Regressor`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex64, Float, Float32, Int64
from torch import Tensor, nn

from photonic_essl.interfaces import along, mean_inverse
from photonic_essl.metrics import FREQUENCIES, PREDICTED, empty_lattice
from photonic_essl.progress import with_progress

REVISION = {"tm": 2, "te": 3}
"""Another whenever the approximation becomes another: models, runs and tables tell which they rest on."""

WAVEVECTORS, FINE_WAVEVECTORS = 6, 72
"""Numbers along a reciprocal lattice vector of length 2π/a: where bands are solved, and to where k·p refines them."""

NARROWEST_GAP = 0.1
"""Distance in (ωn)² below which higher states no longer act to second order alone, and are made to act by less."""

SMOOTHING = 0.01
"""Standard deviation of the Gaussian over scaled frequency: that of the labels."""

MOST_WAVES = 2000
"""More plane waves are not taken: matrices grow with their square, and a full solution would be cheaper."""

BYTES_AT_ONCE = 2**28
"""Bounds how many cells are solved at a time."""

MATRICES_AT_ONCE = 2**14
"""Bounds how many matrices a GPU diagonalises at a time."""

_STEP = float(FREQUENCIES[1])


class PlaneWaves(nn.Module):
    """The difference of a cell's density of states from that of a uniform one, as plane waves give it.

    It does not change under translations by whole pixels, nor under ε → s·ε, nor, on the square lattice, under the
    point group: waves and wavevectors have the symmetry of the lattice. (On others the grid of wavevectors has only
    some of it, and the result keeps the rest to the error of that grid.)

    Args:
        cutoff: plane waves with |G| up to this are taken, in 2π/a, of those that the grid tells apart.
        grid: number of points of the cells along the two lattice vectors.
        lattice: lattice vectors, one a row, in units of a.
        polarization: tm or te.

    Raises:
        ValueError: if the cutoff is not positive or takes more than 2,000 waves, or the polarization is neither.
    """

    differences: Tensor
    waves: Tensor
    wavevectors: Tensor
    momenta: Tensor
    offsets: Tensor
    kernel: Tensor
    uniform: Tensor

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
        waves = _waves(cutoff, reciprocal, grid)
        self.polarization, self.lattice = polarization, lattice
        area = abs(float(torch.linalg.det(lattice)))
        wavevectors, offsets = _wavevectors(reciprocal)
        # Twice as many as a uniform cell has below the highest frequency that is predicted, or half as many again as it
        # has at any wavevector, which is more in a long and thin cell; as many above them are folded into these, and
        # whole shells of waves that hold half as many again are solved first. In TE, whose waves couple more strongly,
        # twice that.
        highest = FREQUENCIES[PREDICTED]
        below = ((waves + wavevectors[:, None]) @ reciprocal).norm(dim=2) < highest
        most = int(below.sum(1).max())
        states = max(2 * math.ceil(math.pi * highest**2 * area), math.ceil(1.5 * most))
        self.states = min(states, len(waves))
        more = self.states * {"tm": 1, "te": 2}[polarization]
        self.improved = min(2 * more, len(waves))
        length = (waves.double() @ reciprocal).norm(dim=1)
        self.inner = int((length <= length[: 3 * more][-1] + 1e-9).sum())
        constants = {
            "differences": (waves[:, None] - waves) % torch.tensor(grid, device="cpu"),
            "waves": (waves.double() @ reciprocal).float(),
            "wavevectors": (wavevectors @ reciprocal).float(),
            "momenta": ((waves + wavevectors[:, None]) @ reciprocal).float(),
            "offsets": (offsets @ reciprocal).float(),
            "kernel": _smoothing_kernel(),
        }
        for name, values in constants.items():
            self.register_buffer(name, values, persistent=False)
        at_one = 2 * len(offsets) * self.states**2 + 3 * len(waves) * self.improved
        whole = 2
        if polarization == "te":
            at_one += 3 * len(waves) * (len(waves) + self.improved)
            whole = 14
        complex_numbers = len(wavevectors) * at_one + whole * len(waves) ** 2
        self.batch = max(1, BYTES_AT_ONCE // (8 * complex_numbers))
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
        parts = with_progress(epsilon[:, 0].float().split(self.batch), "plane waves")
        with torch.autocast(epsilon.device.type, enabled=False):
            return torch.cat([self._density(cells) for cells in parts]) - self.uniform

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "PlaneWaves":
        # Buffers go where the model goes, and stay in single precision, in which all of this is done.
        return super()._apply(lambda buffer: buffer.to(function(buffer).device), recurse)  # type: ignore[no-untyped-call]

    def _density(self, epsilon: Tensor) -> Tensor:
        """Return D/n: a histogram of the states, smoothed."""
        place = self._scaled_frequencies(epsilon) / _STEP
        below = place.floor().clamp(max=len(self.kernel) - 2)
        part = (place - below).clamp(max=1)
        histogram = place.new_zeros(len(epsilon), len(self.kernel))
        histogram.scatter_add_(1, below.long(), 1 - part)
        histogram.scatter_add_(1, below.long() + 1, part)
        # The last point holds all states that lie beyond.
        histogram[:, -1] = 0
        return histogram @ self.kernel / (len(self.wavevectors) * len(self.offsets))

    def _scaled_frequencies(self, epsilon: Float32[Tensor, "batch x y"]) -> Float32[Tensor, "batch state"]:
        """Return ωn of the lowest states at all wavevectors."""
        relative = epsilon / epsilon.mean((1, 2), keepdim=True)  # its ω is the cell's ωn
        solved = self._tm(relative) if self.polarization == "tm" else self._te(relative)
        nearby = _evaluated(_polynomial(*solved, self.states), self.offsets)
        return _diagonalised(torch.linalg.eigvalsh, nearby).clamp(min=0).sqrt().flatten(1)

    def _matrix(self, field: Float32[Tensor, "batch x y"]) -> Complex64[Tensor, "batch wave wave"]:
        """Return what multiplies plane waves by a field."""
        coefficients = torch.fft.fft2(field.to(torch.complex64), norm="forward")
        return coefficients[:, self.differences[..., 0], self.differences[..., 1]]

    def _tm(self, cells: Float32[Tensor, "batch x y"]) -> "_Projected":
        """Solve |k + G|² E = ω² ε E."""
        epsilon, inner, momenta = self._matrix(cells), self.inner, self.momenta
        inverse = _inverse_root(epsilon[:, :inner, :inner])[:, None]
        scaled = inverse * momenta[:, :inner].norm(dim=-1)[:, None]
        squares, states = (part[..., : self.improved] for part in _diagonalised(torch.linalg.eigh, scaled @ scaled.mH))
        stiffness = momenta.square().sum(-1)[..., None]
        fields = (epsilon[:, None, :, :inner] @ (inverse.mH @ states)) * squares[..., None, :] / stiffness
        own = fields.mH @ fields
        return _Projected(
            mass=fields.mH @ (epsilon[:, None] @ fields),
            stiffness=fields.mH @ (stiffness * fields),
            linear=[2 * fields.mH @ (p[..., None] * fields) for p in momenta.unbind(-1)],
            quadratic=[own, torch.zeros_like(own), own],
        )

    def _te(self, cells: Float32[Tensor, "batch x y"]) -> "_Projected":
        """Solve (k + G)·ζ(G, G')·(k + G') H = ω² H."""
        inner, operator = self.inner, self._te_operator(cells)
        few = _evaluated(operator[..., :inner, :inner], self.wavevectors)
        squares, states = _diagonalised(torch.linalg.eigh, few)
        states = (states * squares[..., None, :])[..., : self.improved]
        states = nn.functional.pad(states, (0, 0, 0, len(self.waves) - inner))
        fields = torch.cholesky_solve(states, torch.linalg.cholesky(_evaluated(operator, self.wavevectors)))
        columns = fields.transpose(1, 2).flatten(2)
        images = [(part @ columns).unflatten(2, (-1, self.improved)).transpose(1, 2) for part in operator.unbind(1)[1:]]
        x, y, xx, xy, yy = (fields.mH @ image for image in images)
        k_x, k_y = self.wavevectors[..., None, None].unbind(1)
        return _Projected(
            mass=fields.mH @ fields,
            stiffness=fields.mH @ states,
            linear=[x + 2 * k_x * xx + k_y * xy, y + k_x * xy + 2 * k_y * yy],
            quadratic=[xx, xy, yy],
        )

    def _te_operator(self, cells: Float32[Tensor, "batch x y"]) -> Complex64[Tensor, "batch 6 wave wave"]:
        """Return (k + G)·ζ(G, G')·(k + G') as coefficients of 1, k_x, k_y, k_x², k_x k_y and k_y².

        Along an interface E = D/ε is continuous, and in few waves the inverse of the matrix of ε gives it; across it D
        is continuous, and E is the matrix of 1/ε times D: L. Li, J. Opt. Soc. Am. A 13 (1996) 1870, with a field that
        tells one from the other as in E. Popov and M. Nevière, J. Opt. Soc. Am. A 18 (2001) 2886. D across an interface
        goes with the gradient of H along it. Of the projector there is a root at either side, so that ζ is positive.
        """
        inverse = _inverse(self._matrix(cells))
        jump = self._matrix(mean_inverse(cells)) - inverse
        xx, xy, yy = (self._matrix(part) for part in along(cells, self.lattice).unbind(1))
        by_xx, by_xy, by_yy = (jump @ part for part in (xx, xy, yy))
        xx, xy, yy = inverse + xx @ by_xx + xy @ by_xy, xx @ by_xy + xy @ by_yy, inverse + xy @ by_xy + yy @ by_yy
        x, y = self.waves.unbind(1)
        by_x, by_y = xx * x + xy * y, xy.mH * x + yy * y  # ζ·G'
        return torch.stack(
            [x[:, None] * by_x + y[:, None] * by_y, by_x + by_x.mH, by_y + by_y.mH, xx, xy + xy.mH, yy], 1
        )


class _Projected(NamedTuple):
    """An operator of k + q and `mass`, in a few fields at each k.

    It is `stiffness`, q_x and q_y times `linear`, and q_x², q_x q_y and q_y² times `quadratic`; each is
    `(batch, k, field, field)`.
    """

    mass: Tensor
    stiffness: Tensor
    linear: list[Tensor]
    quadratic: list[Tensor]


def _evaluated(polynomial: Tensor, place: Float32[Tensor, "place 2"]) -> Complex64[Tensor, "*batch place n n"]:
    """Return matrices `(*batch, 6, n, n)`, coefficients of 1, x, y, x², xy and y², summed up at each place (x, y)."""
    x, y = place.unbind(1)
    monomials = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], 1)
    values = monomials @ torch.view_as_real(polynomial).flatten(-3)
    return torch.view_as_complex(values.unflatten(-1, (*polynomial.shape[-2:], 2)))


def _polynomial(
    mass: Tensor, stiffness: Tensor, linear: list[Tensor], quadratic: list[Tensor], states: int
) -> Complex64[Tensor, "batch k 6 {states} {states}"]:
    """Return the operator in its lowest states at k, as coefficients of 1, x, y, x², xy and y², q = (x, y).

    The other states are folded into what is quadratic, to second order.
    """
    inverse = _inverse_root(mass)
    squares, modes = _diagonalised(torch.linalg.eigh, inverse @ stiffness @ inverse.mH)
    modes = inverse.mH @ modes
    x, y, xx, xy, yy = (modes.mH @ part @ modes for part in (*linear, *quadratic))
    gap = squares[..., None, states:] - squares[..., :states, None]
    weight = -gap / (gap.square() + NARROWEST_GAP**2)

    def folded(first: Tensor, second: Tensor) -> Tensor:
        up, down = first[..., :states, states:], second[..., states:, :states]
        return ((weight * up) @ down + up @ (weight.mT * down)) / 2

    constant = torch.diag_embed(squares[..., :states]).to(x.dtype)
    x_states, y_states, xx, xy, yy = (part[..., :states, :states] for part in (x, y, xx, xy, yy))
    second = xx + folded(x, x), xy + folded(x, y) + folded(y, x), yy + folded(y, y)
    return torch.stack([constant, x_states, y_states, *second], 2)


def _diagonalised(solver: Callable[[Tensor], Any], matrices: Complex64[Tensor, "*batch n n"]) -> Any:
    """Return what `eigh` or `eigvalsh` of `torch.linalg` gives.

    On a GPU in double precision, and not too many at a time: batches in single precision come back wrong there without
    a sign of it (https://github.com/pytorch/pytorch/issues/192483), and large ones are refused.
    """
    if matrices.device.type != "cuda":
        return solver(matrices)
    lead = matrices.shape[:-2]
    parts = [solver(part) for part in matrices.flatten(0, -3).to(torch.complex128).split(MATRICES_AT_ONCE)]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts).float().unflatten(0, lead)
    squares, states = (torch.cat(column).unflatten(0, lead) for column in zip(*parts))
    return squares.float(), states.to(matrices.dtype)


def _inverse_root(matrix: Complex64[Tensor, "*batch n n"]) -> Complex64[Tensor, "*batch n n"]:
    """Return the inverse of the Cholesky factor."""
    factor = torch.linalg.cholesky(matrix)
    unit = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    return torch.linalg.solve_triangular(factor, unit, upper=False)


def _inverse(matrix: Complex64[Tensor, "*batch n n"]) -> Complex64[Tensor, "*batch n n"]:
    """Return the inverse of positive matrices."""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def _wavevectors(reciprocal: Tensor) -> tuple[Tensor, Tensor]:
    """Return the wavevectors where bands are solved, and the offsets from each to where k·p refines them.

    Both in units of the reciprocal lattice vectors; of k and -k there is one, as ω(-k) = ω(k).
    """
    lengths = reciprocal.norm(dim=1).tolist()
    coarse = [2 * math.ceil(WAVEVECTORS / 2 * length - 1e-9) for length in lengths]  # even: none is k = 0
    parts = [math.ceil(FINE_WAVEVECTORS * length / n - 1e-9) for length, n in zip(lengths, coarse)]
    half = torch.cartesian_prod(*map(_centred, coarse))[math.prod(coarse) // 2 :]
    return half, torch.cartesian_prod(*(_centred(fine) / n for fine, n in zip(parts, coarse)))


def _waves(cutoff: float, reciprocal: Float[Tensor, "2 2"], grid: tuple[int, int]) -> Int64[Tensor, "wave 2"]:
    """Return the reciprocal lattice vectors up to the cutoff, in units of the basis, the shortest first."""
    if not 0 < cutoff < math.inf:
        raise ValueError(f"the cutoff of plane waves must be positive, got {cutoff}.")
    reach = cutoff / float(torch.linalg.svdvals(reciprocal).min())
    highest = [math.ceil(min(reach, (n - 1) // 2)) for n in grid]
    found = torch.empty(0)
    if math.prod(2 * n + 1 for n in highest) <= 10 * MOST_WAVES:  # of which many are longer than the cutoff
        waves = torch.cartesian_prod(*(torch.arange(-n, n + 1, device="cpu") for n in highest))
        length = (waves.double() @ reciprocal).norm(dim=1)
        order = length.argsort(stable=True)
        found = waves[order[length[order] <= cutoff + 1e-9]]
    if not 1 <= len(found) <= MOST_WAVES:
        raise ValueError(f"a cutoff of {cutoff:g} takes more than {MOST_WAVES} plane waves on this grid and lattice.")
    return found


def _centred(points: int) -> Float[Tensor, " points"]:
    """Return the middles of equal parts of the interval from -1/2 to 1/2."""
    return (torch.arange(points, dtype=torch.float64, device="cpu") + 0.5) / points - 0.5


def _smoothing_kernel() -> Float32[Tensor, "500 400"]:
    """Return what a state at each scaled frequency adds to the density at those that are predicted."""
    frequency = torch.from_numpy(FREQUENCIES)
    distance = (frequency[:, None] - frequency[:PREDICTED]) / SMOOTHING
    return (torch.exp(-(distance**2) / 2) / (SMOOTHING * math.sqrt(2 * math.pi))).float()
