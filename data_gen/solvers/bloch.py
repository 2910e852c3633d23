"""Maxwell's operator on the periodic parts of Bloch modes, on the full mesh of a cell.

With ψ(r) = exp(2πi k·r) u(r), lengths in a and frequencies in 2πc/a, both polarizations read K(k) u = ω² M u:

- TM (E along z): K = |k + G|² and M = ε(r);
- TE (H along z): K = (k + G)×η(r)·(k + G')×, with the inverse-permittivity tensor η, and M = 1.

On a mesh with an even number of points the highest frequency -N/2 stands for +N/2 as well and has no opposite of its
own. Taken as -N/2, as MPB has it, it breaks ω(-k) = ω(k) and mirrors, by some 1e-6 (TM) to 1e-4 (TE) of ω. Here TM
takes the mean of both |k + G|². TE takes the component as a sine, whose gradient lies on the mesh points and whose
values do not: it couples to the rest as strongly as -N/2 does, and without a preferred direction.
"""

import functools
from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Complex128, Float64

from data_gen.lattices import reciprocal_vectors
from data_gen.solvers.contract import mode_count
from data_gen.solvers.waves import StandingWaves, edge_waves

# Relative error, in amplitude, to which the iterative inverse of K is carried: frequencies feel its square.
_INVERSE_TOLERANCE = 0.05
_ELONGATED = 1.1  # ratio of lengths

Fields = Complex128[torch.Tensor, "sample k mode x y"]
PerMode = Float64[torch.Tensor, "sample k mode"]
Wavevectors = Float64[torch.Tensor, "k 2"]
"""Cartesian, in 2π/a."""


class Grid:
    """The mesh of a cell and its reciprocal vectors.

    Attributes:
        shape: points along each lattice vector.
        basis: lattice vectors, shape `(2, 2)`, one a row, in a.
        reciprocal: reciprocal vectors, tensor of shape `(2, 2)`, one a row, in 2π/a.
        g: Cartesian reciprocal lattice vectors of the mesh, shape `(x, y, 2)`, in the order of the FFT.
        g_opposite: the same, with the other choice of sign for the highest frequency.
    """

    def __init__(self, shape: tuple[int, int], basis: np.ndarray, device: torch.device):
        self.shape = shape
        self.basis = np.asarray(basis, dtype=np.float64)
        self.reciprocal = torch.as_tensor(reciprocal_vectors(self.basis), dtype=torch.float64, device=device)
        orders = [torch.fft.fftfreq(n, 1 / n, dtype=torch.float64, device=device) for n in shape]
        order = torch.stack(torch.meshgrid(*orders, indexing="ij"), dim=-1)
        opposite = -order.flip((0, 1)).roll((1, 1), (0, 1))
        self.g = order @ self.reciprocal
        self.g_opposite = opposite @ self.reciprocal
        self._standing_waves: dict[int, StandingWaves] = {}

    @property
    def points(self) -> int:
        """Number of mesh points, which is the number of plane waves."""
        return self.shape[0] * self.shape[1]

    @functools.cached_property
    def elongated(self) -> bool:
        """Whether the shortest two reciprocal vectors that span the lattice differ in length."""
        short, long = sorted(self.reciprocal.cpu().numpy(), key=np.linalg.norm)
        while True:  # Lagrange and Gauss
            long = long - np.rint(long @ short / (short @ short)) * short
            if long @ long >= short @ short * (1 - 1e-9):
                return bool(np.linalg.norm(long) > _ELONGATED * np.linalg.norm(short))
            short, long = long, short

    def standing_waves(self, count: int) -> StandingWaves:
        """Return about `count` cosines and sines at each wavevector with k ≡ -k."""
        if count not in self._standing_waves:
            self._standing_waves[count] = StandingWaves.shortest(self.shape, self.reciprocal, count)
        return self._standing_waves[count]

    @functools.cached_property
    def edge_waves(self) -> list[tuple[torch.Tensor, ...]]:
        """Waves at the edge of the mesh, as tensors; see `waves.edge_waves`."""
        device = self.reciprocal.device
        return [tuple(torch.as_tensor(part, device=device) for part in waves) for waves in edge_waves(self.shape)]

    def squared_length(self, k: Wavevectors) -> Float64[torch.Tensor, "k 1 x y"]:
        """Return |k + G|², the mean over both choices."""
        k = k[:, None, None, None]
        return ((k + self.g).square().sum(-1) + (k + self.g_opposite).square().sum(-1)) / 2


class BlochOperator(ABC):
    """K and M of one polarization, for a batch of cells.

    Fields have as many wavevectors as are given beside.

    Attributes:
        grid: the mesh.
        dimension: number of independent fields that there are.
    """

    grid: Grid
    dimension: int

    @abstractmethod
    def mass(self) -> Float64[torch.Tensor, "sample x y"]:
        """Return M on the mesh."""

    def every_field(self) -> Float64[torch.Tensor, "dimension x y"]:
        """Return as many orthonormal real fields as there are."""
        unit = torch.eye(self.grid.points, dtype=torch.float64, device=self.grid.reciprocal.device)
        return unit.unflatten(-1, self.grid.shape)

    @abstractmethod
    def stiffness(self, fields: Fields, k: Wavevectors) -> Fields:
        """Return K(k) u."""

    @abstractmethod
    def correction(self, fields: Fields, eigenvalue: PerMode, k: Wavevectors) -> Fields:
        """Return K⁻¹(λM - K)u, or nearly so: added to u, it makes a step of inverse iteration.

        Where K is singular, at k = 0, the mean is left out. What is in u of a wave that is left out is taken away.
        `eigenvalue` is λ.
        """

    @abstractmethod
    def floor(self, k: Wavevectors) -> Float64[torch.Tensor, "sample k x y"]:
        """Return, for each plane wave, what ω² of modes made of it and of higher ones cannot lie below."""

    @abstractmethod
    def inverse_norm(self, fields: Fields, k: Wavevectors) -> tuple[PerMode, PerMode]:
        """Return ⟨u|K⁻¹|u⟩ and ⟨K⁻¹u|M|K⁻¹u⟩, or bounds from above."""

    @abstractmethod
    def standing_modes(self, waves: StandingWaves, modes: int) -> tuple[PerMode, Fields]:
        """Solve for the lowest modes in a few standing waves, at the wavevectors k ≡ -k.

        Returns:
            Eigenvalues ω² and fields.
        """

    @abstractmethod
    def polynomial(self, basis_fields: Float64[torch.Tensor, "sample m x y"]) -> Float64[torch.Tensor, "sample 6 m m"]:
        """Project K onto real fields V.

        Returns:
            Real matrices C: Vᵀ K(k) V = C0 + i (kx C1 + ky C2) + kx² C3 + kx ky C4
            + ky² C5; C1 and C2 are antisymmetric, the others symmetric.
        """

    @abstractmethod
    def sensitivity(
        self, fields: Fields, k: Wavevectors, eigenvalue: PerMode, weight: PerMode
    ) -> Float64[torch.Tensor, "sample x y *tensor"]:
        """Return the gradient of Σ weight ω² in the medium, ε or η, for modes with ⟨u|M|u⟩ = 1 (Hellmann, Feynman).

        Args:
            fields: modes.
            k: their wavevectors.
            eigenvalue: their ω².
            weight: of each.
        """


class TransverseMagnetic(BlochOperator):
    """E along z in a permittivity."""

    def __init__(self, grid: Grid, epsilon: Float64[torch.Tensor, "sample x y"]):
        self.grid = grid
        self.dimension = grid.points
        self.epsilon = epsilon

    def mass(self) -> Float64[torch.Tensor, "sample x y"]:
        return self.epsilon

    def stiffness(self, fields: Fields, k: Wavevectors) -> Fields:
        return torch.fft.ifft2(self.grid.squared_length(k) * torch.fft.fft2(fields))

    def correction(self, fields: Fields, eigenvalue: PerMode, k: Wavevectors) -> Fields:
        image = torch.fft.fft2(self.epsilon[:, None, None] * fields) * eigenvalue[..., None, None]
        inverse = _reciprocal(self.grid.squared_length(k))
        return torch.fft.ifft2(inverse * image - (inverse > 0) * torch.fft.fft2(fields))

    def floor(self, k: Wavevectors) -> Float64[torch.Tensor, "sample k x y"]:
        return self.grid.squared_length(k)[:, 0] / self.epsilon.amax((1, 2))[:, None, None, None]

    def inverse_norm(self, fields: Fields, k: Wavevectors) -> tuple[PerMode, PerMode]:
        image = torch.fft.ifft2(_reciprocal(self.grid.squared_length(k)) * torch.fft.fft2(fields))
        return _inner(fields, image), _inner(image, self.epsilon[:, None, None] * image)

    def standing_modes(self, waves: StandingWaves, modes: int) -> tuple[PerMode, Fields]:
        # ω² is the inverse of an eigenvalue of D^(-1/2) ε D^(-1/2), D = |k + G|². The constant at k = 0, where D is 0,
        # is given a small one, which lets it come out as the first mode and leaves the others as they are.
        length = waves.kappa.square().sum(-1)
        root = torch.where(length > 0, length, torch.full_like(length, 1e-6)).rsqrt()[:, None]
        matrix = root[..., None, None] * waves.overlap(self.epsilon) * root[:, None, None]
        inverse, vectors = torch.linalg.eigh(matrix.flatten(2, 3).flatten(-2))
        inverse, vectors = inverse[..., -modes:].flip(-1), vectors[..., -modes:].flip(-1)
        coefficients = root[..., None] * vectors.unflatten(2, (2, -1))
        return 1 / inverse, waves.fields(coefficients, self.grid.shape)

    def polynomial(self, basis_fields: Float64[torch.Tensor, "sample m x y"]) -> Float64[torch.Tensor, "sample 6 m m"]:
        grid, columns = self.grid, self.grid.shape[1] // 2 + 1
        half = torch.fft.rfft2(basis_fields, norm="ortho")
        # Of a real field only half of the spectrum is stored: its inner columns count twice.
        weight = torch.full((columns,), 2.0, dtype=torch.float64, device=half.device)
        weight[0] = 1.0
        if grid.shape[1] % 2 == 0:
            weight[-1] = 1.0
        squared = (grid.squared_length(torch.zeros_like(grid.reciprocal[:1]))[0, 0, :, :columns] * weight).flatten()
        linear = ((grid.g + grid.g_opposite)[:, :columns] * weight[:, None]).flatten(0, 1)
        real, imaginary = (part.flatten(2).contiguous() for part in (half.real, half.imag))
        parts = torch.cat([real, imaginary], dim=2)
        constant = (parts * squared.repeat(2)) @ parts.mT
        slopes = [(real * linear[:, axis]) @ imaginary.mT for axis in (0, 1)]
        flat = basis_fields.flatten(2)
        overlap = flat @ flat.mT
        slopes = [s - s.mT for s in slopes]
        return torch.stack([constant, *slopes, overlap, torch.zeros_like(overlap), overlap], dim=1)

    def sensitivity(
        self, fields: Fields, k: Wavevectors, eigenvalue: PerMode, weight: PerMode
    ) -> Float64[torch.Tensor, "sample x y *tensor"]:
        return -((eigenvalue * weight)[..., None, None] * fields.abs().square()).sum((1, 2))


class TransverseElectric(BlochOperator):
    """H along z in an inverse-permittivity tensor, symmetric."""

    def __init__(self, grid: Grid, inverse_epsilon: Float64[torch.Tensor, "sample x y 2 2"]):
        self.grid = grid
        # D = ∇×H is the gradient of H turned by a right angle, and so ∇×ηD is the divergence of a turned η times it.
        self.turned = _turn(inverse_epsilon)
        unpaired = (grid.g - grid.g_opposite) / 2
        self.paired = (unpaired == 0).all(-1)
        # Of -i∇ on each plane wave at k = 0, shape `(x, y, 2)`.
        self.gradient = torch.where(self.paired[..., None], grid.g.to(torch.complex128), -1j * unpaired)
        eigenvalues = torch.linalg.eigvalsh(inverse_epsilon)
        self.lowest = eigenvalues.amin((1, 2, 3))
        self.highest = eigenvalues.amax((1, 2, 3))
        # Of the highest frequency along both axes neither sine nor gradient lies on the points of a mesh that is even
        # along both: it is left out.
        self.dimension = mode_count(grid.shape, "te")
        self.checkered = self.dimension < grid.points

    def mass(self) -> Float64[torch.Tensor, "sample x y"]:
        return torch.ones_like(self.turned[..., 0, 0])

    def every_field(self) -> Float64[torch.Tensor, "dimension x y"]:
        fields = super().every_field().flatten(1)
        if self.checkered:
            # Householder's reflection of the last point's field onto the wave that is left out: the others' images.
            signs = torch.ones(self.grid.shape, dtype=fields.dtype, device=fields.device)
            signs[::2, 1::2] = signs[1::2, ::2] = -1
            normal = fields[-1] - signs.flatten() / self.grid.points**0.5
            fields = (fields - 2 * torch.outer(normal, normal) / normal.square().sum())[:-1]
        return fields.unflatten(-1, self.grid.shape)

    def stiffness(self, fields: Fields, k: Wavevectors) -> Fields:
        return torch.fft.ifft2(self._apply(torch.fft.fft2(fields), k))

    def correction(self, fields: Fields, eigenvalue: PerMode, k: Wavevectors) -> Fields:
        """Return K⁻¹(λ - K)u to a few percent, by Chebyshev iteration preconditioned with |k + G|⁻².

        The spectrum of |k + G|⁻² K lies between the extreme eigenvalues of η, so that the degree that a cell needs is
        known beforehand and no inner products are taken.
        """
        precondition = self._precondition(k)
        centre, radius = (self.highest + self.lowest) / 2, (self.highest - self.lowest) / 2
        contraction = (centre + (centre.square() - radius.square()).sqrt()) / radius.clamp(min=1e-9 * centre)
        degree = (np.log(2 / _INVERSE_TOLERANCE) / contraction.log()).ceil().clamp(min=1)
        centre, radius, degree = (part[:, None, None, None, None] for part in (centre, radius, degree))

        spectrum = torch.fft.fft2(fields)
        residual = eigenvalue[..., None, None] * spectrum - self._apply(spectrum, k)
        step = precondition * residual
        length = 1 / centre
        solution = length * step
        for iteration in range(1, int(degree.max())):
            residual = residual - length * self._apply(step, k)
            momentum = (radius * length).square() / (2 if iteration == 1 else 4)
            length = 1 / (centre - momentum / length)
            step = precondition * residual + momentum * step
            solution = solution + torch.where(iteration < degree, length, 0.0) * step
        if self.checkered:
            x, y = self.grid.shape
            solution[..., x // 2, y // 2] = -spectrum[..., x // 2, y // 2]
        return torch.fft.ifft2(solution)

    def floor(self, k: Wavevectors) -> Float64[torch.Tensor, "sample k x y"]:
        squared = self._slopes(k).abs().square().sum(0)[:, 0]
        if self.checkered:
            x, y = self.grid.shape
            squared[..., x // 2, y // 2] = torch.inf
        return squared * self.lowest[:, None, None, None]

    def inverse_norm(self, fields: Fields, k: Wavevectors) -> tuple[PerMode, PerMode]:
        # Along one preconditioned direction, which is from below; Kantorovich's inequality says by how much at most.
        spectrum = torch.fft.fft2(fields, norm="ortho")
        direction = self._precondition(k) * spectrum
        along = _inner(spectrum, direction)
        stiffness = _inner(direction, self._apply(direction, k)).clamp(min=1e-300)
        bound = (self.highest + self.lowest).square() / (4 * self.highest * self.lowest)
        energy = bound[:, None, None] * along.square() / stiffness
        return energy, energy * _inner(direction, direction) / stiffness

    def _slopes(self, k: Wavevectors) -> Complex128[torch.Tensor, "2 k 1 x y"]:
        """Return -i∇ + k on each plane wave."""
        return (self.gradient + k[:, None, None] * self.paired[..., None]).movedim(-1, 0)[:, :, None]

    def _precondition(self, k: Wavevectors) -> Float64[torch.Tensor, "k 1 x y"]:
        """Return |k + G|⁻², and 0 for the wave that is left out."""
        inverse = _reciprocal(self._slopes(k).abs().square().sum(0))
        if self.checkered:
            x, y = self.grid.shape
            inverse[..., x // 2, y // 2] = 0.0
        return inverse

    def _apply(self, spectrum: Fields, k: Wavevectors) -> Fields:
        """Return K(k) in Fourier space, on a spectrum."""
        along_x, along_y = self._slopes(k)
        xx, xy, yy = (self.turned[:, None, None, :, :, i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
        slope_x, slope_y = torch.fft.ifft2(along_x * spectrum), torch.fft.ifft2(along_y * spectrum)
        flux_x, flux_y = xx * slope_x + xy * slope_y, xy * slope_x + yy * slope_y
        return along_x.conj() * torch.fft.fft2(flux_x) + along_y.conj() * torch.fft.fft2(flux_y)

    def standing_modes(self, waves: StandingWaves, modes: int) -> tuple[PerMode, Fields]:
        matrix = waves.stiffness(self.turned)
        eigenvalues, vectors = torch.linalg.eigh(matrix.flatten(2, 3).flatten(-2))
        coefficients = vectors[..., :modes].unflatten(2, (2, -1))
        return eigenvalues[..., :modes], waves.fields(coefficients, self.grid.shape)

    def polynomial(self, basis_fields: Float64[torch.Tensor, "sample m x y"]) -> Float64[torch.Tensor, "sample 6 m m"]:
        # Of real fields, -i∇ is imaginary: real arithmetic does.
        spectrum = torch.fft.fft2(basis_fields)
        slope_x, slope_y = (torch.fft.ifft2(g * spectrum).imag for g in self.gradient.unbind(-1))
        values = torch.fft.ifft2(self.paired * spectrum).real
        xx, xy, yy = (self.turned[:, None, :, :, i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
        flux_x, flux_y = xx * slope_x + xy * slope_y, xy * slope_x + yy * slope_y
        constant = _gram(slope_x, flux_x) + _gram(slope_y, flux_y)
        linear = [_gram(values, flux) for flux in (flux_x, flux_y)]
        quadratic = [_gram(values, e * values) for e in (xx, 2 * xy, yy)]
        return torch.stack([constant, *(z - z.mT for z in linear), *quadratic], dim=1)

    def sensitivity(
        self, fields: Fields, k: Wavevectors, eigenvalue: PerMode, weight: PerMode
    ) -> Float64[torch.Tensor, "sample x y *tensor"]:
        slope = torch.fft.ifft2(self._slopes(k)[:, None] * torch.fft.fft2(fields))
        return _turn(torch.einsum("skb,iskbxy,jskbxy->sxyij", weight.to(slope.dtype), slope.conj(), slope).real)


def _turn(tensor: torch.Tensor) -> torch.Tensor:
    """Turn tensors `(..., 2, 2)` by a right angle."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=tensor.dtype, device=tensor.device)
    return turn @ tensor @ turn.mT


def _reciprocal(symbol: torch.Tensor) -> torch.Tensor:
    return torch.where(symbol > 0, 1 / symbol, torch.zeros_like(symbol))


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.conj() * b).real.sum((-2, -1))


def _gram(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.flatten(2) @ b.flatten(2).mT
