"""The first reduction: a real basis in which the lowest modes at every k of the Brillouin zone can be expanded.

Bloch modes vary slowly with k, so that those at a few wavevectors span, closely, those at all others: reduced Bloch
mode expansion, Hussein, Proc. R. Soc. A 465 (2009) 2825. By time reversal the conjugate of a mode at k is one at -k,
and so real and imaginary parts serve both. The modes need not be accurate themselves: frequencies err by the square of
what the span misses.
"""

from typing import NamedTuple

import torch
from jaxtyping import Complex128, Float64

from data_gen.solvers.bloch import BlochOperator, Fields, PerMode, Wavevectors
from data_gen.solvers.patches import Polynomial, hamiltonian
from data_gen.solvers.waves import SYMMETRIC_POINTS

_EXTRA_MODES, _FEWEST_MODES = 4, 6  # sampled above the highest band wanted; sampled in all

# A few waves tell poorly which modes are the lowest, above all in TE at high contrast; and where symmetry keeps a mode
# that is not sampled apart from those that are, no residual tells of it afterwards. So more are refined than kept.
_CANDIDATES_PER_MODE, _WAVES_PER_CANDIDATE = 2, 6
_FIELDS_PER_MODE = {"tm": 5, "te": 6}
_DEPENDENT = 1e-12  # of the largest eigenvalue of a Gram matrix: below it, a combination is numerically dependent
_EXTRA_WEIGHT = 0.1  # of a sampled mode above the bands wanted, beside one of them, when fields are to be left out


class Reduction(NamedTuple):
    """A basis and the operator in it.

    Attributes:
        fields: real V, with Vᵀ M V = 1; numerically dependent ones are 0.
        polynomial: the operator, projected on them.
    """

    fields: Float64[torch.Tensor, "sample m x y"]
    polynomial: Polynomial

    def select(self, cells: torch.Tensor) -> "Reduction":
        """Return those of some cells, given by a mask or by indices."""
        return Reduction(self.fields[cells], self.polynomial[cells])


def first_reduction(operator: BlochOperator, polarization: str, bands: int) -> Reduction:
    """Span the lowest modes at the four symmetric points: solved in standing waves, refined on the whole mesh."""
    grid, modes = operator.grid, _sampled(bands)
    size = _FIELDS_PER_MODE[polarization] * modes
    if size >= operator.dimension or min(grid.shape) < 3:  # across so few points there are no standing waves
        return _whole_space(operator)
    candidates = _CANDIDATES_PER_MODE * modes
    waves = grid.standing_waves(_WAVES_PER_CANDIDATE * candidates)
    eigenvalue, fields = operator.standing_modes(waves, candidates)
    # Points that differ by a reciprocal vector have different periodic parts: the zone's corners are ±(½, ½) and
    # ±(½, -½). Signs come by conjugation.
    k = torch.tensor((*SYMMETRIC_POINTS, (0.5, -0.5)), dtype=torch.float64, device=waves.kappa.device) @ grid.reciprocal
    if (others := _at_the_edge(operator, k[:4], eigenvalue[..., modes - 1])) is not None:
        fields = torch.cat([fields, others], dim=2)
        eigenvalue = torch.cat([eigenvalue, _rayleigh_quotient(operator, others, k[:4])], dim=2)
    fields = fields + operator.correction(fields, eigenvalue, k[:4])
    eigenvalue, fields = _lowest(operator, fields, k[:4], modes)
    y = torch.arange(grid.shape[1], dtype=torch.float64, device=k.device) / grid.shape[1]
    fields = torch.cat([fields, fields[:, 3:] * torch.exp(2j * torch.pi * y)], dim=1)
    eigenvalue = torch.cat([eigenvalue, eigenvalue[:, 3:]], dim=1)
    fields = fields + operator.correction(fields, eigenvalue, k)
    fields = _weighted(operator, fields, eigenvalue, bands)

    elsewhere = fields[:, 1:].flatten(1, 2)
    real_fields = torch.cat([fields[:, 0].real, elsewhere.real, elsewhere.imag], dim=1)
    constant = torch.ones_like(real_fields[:, :1])
    constant = constant / _inner(operator, constant, constant).sqrt()
    return _reduction(operator, constant, real_fields, size - 1)


def _at_the_edge(
    operator: BlochOperator, k: Wavevectors, highest: Float64[torch.Tensor, "sample k"]
) -> Complex128[torch.Tensor, "sample k wave x y"] | None:
    """Return waves at the edge of the mesh, where modes of theirs may lie as low as those that are sampled.

    They are so in long cells with few points, or at high contrast. In a layer symmetry keeps them apart.

    Args:
        operator: of the cells.
        k: the symmetric points.
        highest: ω² of the highest mode that is sampled.

    Returns:
        As many at each point; None where no mode of theirs can be so low.
    """
    waves = operator.grid.edge_waves
    floor = (operator.floor(k).flatten(2) / highest[..., None]).amin(0)
    floors = [torch.minimum(part[here], part[there]) for part, (here, there, _) in zip(floor, waves)]
    # At all points at once: a GPU is waited for a single time.
    low, finite = torch.stack([torch.stack([(part < 1).sum(), part.isfinite().sum()]) for part in floors]).T.tolist()
    count = min(max(low), *finite)
    if not count:
        return None
    spectrum = torch.zeros((len(k), count, operator.grid.points), dtype=torch.complex128, device=k.device)
    rows = torch.arange(count, device=k.device)
    for point, part, (here, there, coefficient) in zip(spectrum, floors, waves):
        lowest = part.argsort(stable=True)[:count]
        point[rows, here[lowest]] += coefficient[lowest]
        point[rows, there[lowest]] += coefficient[lowest].conj()
    fields = torch.fft.ifft2(spectrum.unflatten(2, operator.grid.shape), norm="forward")
    return fields.expand(len(highest), *fields.shape)


def _rayleigh_quotient(operator: BlochOperator, fields: Fields, k: Wavevectors) -> PerMode:
    mass = operator.mass()[:, None, None] * fields
    energy, norm = ((fields.conj() * part).real.sum((-2, -1)) for part in (operator.stiffness(fields, k), mass))
    return energy / norm


def _lowest(
    operator: BlochOperator, fields: Fields, k: Wavevectors, modes: int
) -> tuple[Float64[torch.Tensor, "sample k lowest"], Complex128[torch.Tensor, "sample k lowest x y"]]:
    """Return the lowest modes among the combinations of fields at the wavevectors k ≡ -k (Rayleigh and Ritz).

    There modes can be chosen real, up to a phase that is the same for all, and so only real combinations are taken.
    """
    mass = operator.mass()[:, None, None] * fields
    flat, mass, stiffness = (
        torch.view_as_real(part).flatten(3) for part in (fields, mass, operator.stiffness(fields, k))
    )
    root = torch.linalg.cholesky(flat @ mass.mT)
    scaled = torch.linalg.solve_triangular(root, flat, upper=False)
    eigenvalue, vector = torch.linalg.eigh(scaled @ torch.linalg.solve_triangular(root, stiffness, upper=False).mT)
    lowest = (vector[..., :modes].mT @ scaled).unflatten(-1, (*fields.shape[-2:], 2))
    return eigenvalue[..., :modes], torch.view_as_complex(lowest)


def extend(operator: BlochOperator, reduction: Reduction, bands: int, k: Wavevectors) -> Reduction:
    """Add what one correction of the modes at some wavevectors, Cartesian, holds beyond the basis."""
    modes, size = _sampled(bands), reduction.fields.shape[1]
    if size == operator.dimension:
        return reduction
    if size + 2 * modes >= operator.dimension:
        return _whole_space(operator)
    eigenvalue, fields = ritz_modes(reduction, k, modes)
    fields = _weighted(operator, operator.correction(fields, eigenvalue, k), eigenvalue, bands, normalise=False)
    fields = fields.flatten(1, 2)
    return _reduction(operator, reduction.fields, torch.cat([fields.real, fields.imag], dim=1), 2 * modes)


def ritz_modes(reduction: Reduction, k: Wavevectors, modes: int, lowest: int = 0) -> tuple[PerMode, Fields]:
    """Return eigenvalues and fields in the basis.

    Of the modes from `lowest` to, not including, `modes`.
    """
    eigenvalue, vector = torch.linalg.eigh(hamiltonian(reduction.polynomial, k))
    vector = vector[..., lowest:modes].mT
    flat = reduction.fields.flatten(2)[:, None]
    fields = torch.complex(vector.real @ flat, vector.imag @ flat)
    return eigenvalue[..., lowest:modes], fields.unflatten(-1, reduction.fields.shape[-2:])


def error_estimate(operator: BlochOperator, reduction: Reduction, k: Wavevectors, bands: int) -> PerMode:
    """Estimate how far above the true eigenvalue each Ritz value lies.

    With the residual r = (K - λM)u, that is ⟨r|(K - λM)⁻¹|r⟩, taken over what the basis misses. There K - λM is K
    times 1 - λ/ρ, where ρ is the Rayleigh quotient of the missing part, K⁻¹r.

    Returns:
        Relative errors of the frequency, of the upper half of the bands: the lower ones are better.
    """
    lower = bands // 2
    if reduction.fields.shape[1] == operator.dimension:
        return reduction.fields.new_zeros(len(reduction.fields), len(k), bands - lower)
    eigenvalue, fields = ritz_modes(reduction, k, bands, lower)
    shifted = eigenvalue[..., None, None] * operator.mass()[:, None, None] * fields
    energy, norm = operator.inverse_norm(operator.stiffness(fields, k) - shifted, k)
    missing = (1 - eigenvalue * norm / energy.clamp(min=1e-300)).clamp(min=0.1)
    return energy / missing / (2 * eigenvalue.clamp(min=1e-300))


def _sampled(bands: int) -> int:
    return max(bands + _EXTRA_MODES, _FEWEST_MODES)


def _weighted(
    operator: BlochOperator, fields: Fields, eigenvalue: PerMode, bands: int, normalise: bool = True
) -> Fields:
    """Scale modes by how much they matter: low ones most, those above the bands wanted least."""
    reference = eigenvalue[..., bands - 1].mean(-1)[:, None, None]
    weight = 1 / (_EXTRA_WEIGHT + (eigenvalue.clamp(min=0) / reference).sqrt())
    weight[..., bands:] *= _EXTRA_WEIGHT
    if normalise:
        mass = operator.mass()[:, None, None]
        weight = weight / (mass * fields.abs().square()).sum((-2, -1)).sqrt()
    return weight[..., None, None] * fields


def _reduction(
    operator: BlochOperator,
    fixed: Float64[torch.Tensor, "sample orthonormal x y"],
    fields: Float64[torch.Tensor, "sample other x y"],
    count: int,
) -> Reduction:
    """Append to orthonormal fields the `count` principal components of others, and project the operator."""
    shape, mass = fields.shape[-2:], operator.mass()[:, None]
    fixed = fixed.flatten(2)
    flat = fields.flatten(2)
    flat = flat - (flat @ (mass.flatten(2) * fixed).mT) @ fixed
    variance, mixing = torch.linalg.eigh(flat @ (mass.flatten(2) * flat).mT)
    variance, mixing = variance[:, -count:].flip(-1), mixing[..., -count:].flip(-1)
    present = variance > _DEPENDENT * variance[:, :1]
    scale = torch.where(present, variance, torch.ones_like(variance)).rsqrt() * present
    basis = torch.cat([fixed, (mixing * scale[:, None]).mT @ flat], dim=1)

    # Small variances leave the components orthonormal to a few digits only: once more, to rounding.
    gram = basis @ (mass.flatten(2) * basis).mT
    absent = torch.diag_embed((gram.diagonal(dim1=-2, dim2=-1) < 0.5).to(gram.dtype))
    basis = torch.linalg.solve_triangular(torch.linalg.cholesky(gram + absent), basis, upper=False)
    basis = basis.unflatten(-1, shape)
    polynomial = operator.polynomial(basis)
    # Absent fields become states of their own, above all others.
    polynomial[:, 0] += absent * 2 * polynomial[:, 0].diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]
    return Reduction(basis, polynomial)


def _whole_space(operator: BlochOperator) -> Reduction:
    """Return as many fields as there are: no reduction."""
    fields = operator.every_field() * operator.mass().rsqrt()[:, None]
    return Reduction(fields, operator.polynomial(fields))


def _inner(operator: BlochOperator, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (operator.mass()[:, None] * a * b).sum((-2, -1), keepdim=True)
