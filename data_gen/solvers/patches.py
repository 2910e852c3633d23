"""The second reduction: bands at every k of a patch of the Brillouin zone from one small k·p model at its centre.

At the centre c the lowest p states are kept. At k = c + q the states left out follow them through second order in q,
and eliminating them leaves an effective Hamiltonian of size p that is a quartic in q (quasi-degenerate perturbation
theory: Löwdin, J. Chem. Phys. 19 (1951) 1396; Winkler, Spin-Orbit Coupling Effects (Springer, 2003), appendix B). Its
fifteen coefficients are computed once per patch; each k is then one small Hermitian eigenproblem.

Homogeneous polynomials in q of degree d are tensors with d + 1 coefficients, those of qx^(d-i) qy^i, in dimension -2,
between rows and columns.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Complex128, Float64

from data_gen.solvers.zone import Corners, Plan

# Bands closer than this fraction of their eigenvalue are degenerate to the solver: its own error mixes them.
DEGENERATE = 1e-6
_GENERIC = 0.6180339887498949  # V_x + this V_y: a direction that no lattice symmetry singles out
# A remote state is never taken to lie closer to the wanted ones than this fraction of their highest eigenvalue.
_SMALLEST_GAP = 0.05
_NEGLIGIBLE = 0.02  # a frequency below which errors are taken relative to it
_BYTES_AT_ONCE = {"cpu": 2**20, "cuda": 2**28}  # of matrices to diagonalise: to stay in a cache; to fill a GPU
_POWERS = [(degree - i, i) for degree in range(5) for i in range(degree + 1)]

Polynomial = Float64[torch.Tensor, "sample 6 m m"]
"""Real matrices of a reduced basis, as `BlochOperator.polynomial` has them."""
Models = Complex128[torch.Tensor, "sample patch 15 p p"]
"""Coefficients, by `_POWERS`, of the effective Hamiltonian's quartic in q about the centre of each patch."""


def hamiltonian(polynomial: Polynomial, k: Float64[torch.Tensor, "k 2"]) -> Complex128[torch.Tensor, "sample k m m"]:
    """Return H at Cartesian wavevectors."""
    c0, c1, c2, c3, c4, c5 = (c[:, None] for c in polynomial.unbind(1))
    x, y = (component[:, None, None] for component in k.unbind(-1))
    return torch.complex(c0 + x * x * c3 + x * y * c4 + y * y * c5, x * c1 + y * c2)


def effective_hamiltonians(
    polynomial: Polynomial, centres: Float64[torch.Tensor, "patch 2"], bands: int, kept: int
) -> Models:
    """Eliminate all but the lowest states at each centre.

    Args:
        polynomial: of the reduced basis.
        centres: Cartesian wavevectors, in 2π/a.
        bands: number of bands wanted.
        kept: number p of states kept, from `bands` to m.
    """
    energy, states = torch.linalg.eigh(hamiltonian(polynomial, centres))
    near, remote, e_near = states[..., :kept], states[..., kept:], energy[..., :kept]
    # Denominators take each near state at its own energy, but those above the bands wanted at the highest of these.
    wanted = e_near[..., bands - 1 : bands]
    reference = torch.minimum(e_near, wanted)
    if kept < energy.shape[-1]:
        reference = torch.minimum(reference, energy[..., kept : kept + 1] - _SMALLEST_GAP * wanted)
    resolvent = 1 / (energy[..., kept:, None] - reference[..., None, :])

    # First (d) and second (s) order of H in q, between near states (nn) and from near to remote ones (rn); how remote
    # states follow near ones, to first (x1) and second (x2) order.
    d_near, s_near = _act(polynomial, centres, near[..., None, :])
    d_nn, s_nn = _products(near.mH[..., None, :], d_near, s_near)
    d_rn, s_rn = _products(remote.mH[..., None, :], d_near, s_near)
    x1 = _scaled(d_rn, -resolvent)
    (y1,) = _products(remote[..., None, :], x1)
    d_y1, s_y1 = _act(polynomial, centres, y1)
    (d_x1,) = _products(remote.mH[..., None, :], d_y1)
    (x1_d_nn,) = _products(x1, d_nn)
    second = s_rn + d_x1
    x2 = _scaled(second - x1_d_nn, -resolvent)

    # Hamiltonian t and overlap s of the states with what follows them, degree by degree. Remote energies drop out, by
    # x1 · reference - energy · x1 = d_rn, and likewise for x2.
    s2, x1_d, x1_s = _products(_adjoint(x1), x1, d_rn, second - d_x1 / 2)
    s21, s4, x2_s = _products(_adjoint(x2), x1, x2, second)
    (s21_t1,) = _products(s21, d_nn)
    (y1_s_y1,) = _products(_adjoint(y1), s_y1)
    reference, e_near = reference[..., None, :], e_near[..., None, :]
    s3, t1 = _hermitian(s21), d_nn
    t2 = s_nn + _hermitian(x1_d + _scaled(s2, reference)) / 2
    t3 = _hermitian(x1_s + _scaled(s21, reference))
    t4 = _hermitian(x2_s + _scaled(s4, reference) + s21_t1) / 2 + y1_s_y1

    # To an orthonormal basis: n t n with n = s^(-1/2) = 1 - (s2 + s3 + s4) / 2 + 3/8 s2².
    s2_t0 = _scaled(s2, e_near)
    s2_s2, s2_t1, s2_t2, s2_t0_s2 = _products(s2, s2, t1, t2, _adjoint(s2_t0))
    (s3_t1,) = _products(s3, t1)
    h2 = t2 - _hermitian(s2_t0) / 2
    h3 = t3 - _hermitian(_scaled(s3, e_near) + s2_t1) / 2
    h4 = t4 + _hermitian(_scaled(0.75 * s2_s2 - s4, e_near) - s3_t1 - s2_t2) / 2 + s2_t0_s2 / 4
    t0 = torch.diag_embed(energy[..., :kept])[..., None, :].to(states.dtype)
    return torch.cat([t0, t1, h2, h3, h4], dim=-2).transpose(-3, -2).contiguous()


def solve(
    models: Models, plan: Plan, bands: int
) -> tuple[Float64[torch.Tensor, "sample k band"], Float64[torch.Tensor, "sample k band 2"]]:
    """Solve the models at the wavevectors of a plan.

    Args:
        models: of all patches.
        plan: which wavevectors to solve in which patch.
        bands: number of bands.

    Returns:
        Eigenvalues λ = ω² and their Cartesian gradients in k.
    """
    eigenvalue, slope = _over(models, plan, _solve, bands)
    return eigenvalue, slope * plan.sign[:, None, None]


def disagreement(
    models: Models, polynomial: Polynomial, corners: Corners, bands: int
) -> Float64[torch.Tensor, " sample"]:
    """Return by how much models of neighbouring patches disagree, relatively, at the worst corner between them.

    Their error grows as the fifth power of q, so that this is the error where it is largest. At the corners of the zone
    the one model there is compared with the basis itself, as others are where `corners` say so.

    Args:
        models: of all patches.
        polynomial: the reduced basis that they were made from.
        corners: as `Zone.corners` has them.
        bands: number of bands.

    Returns:
        Largest relative difference in frequency.
    """
    exact = torch.linalg.eigvalsh(hamiltonian(polynomial, corners.there))[..., :bands]
    (eigenvalue,) = _over(models, corners.plan, _eigenvalues, bands)
    highest = eigenvalue.new_zeros(len(models), *corners.exist.shape, bands)
    lowest = torch.full_like(highest, torch.inf)
    highest[:, corners.exist], lowest[:, corners.exist] = eigenvalue, eigenvalue
    highest, lowest = highest.amax(2), lowest.amin(2)
    highest[:, corners.checked] = torch.maximum(highest[:, corners.checked], exact)
    lowest[:, corners.checked] = torch.minimum(lowest[:, corners.checked], exact)
    return ((highest - lowest) / (2 * highest.clamp(min=_NEGLIGIBLE**2))).amax((1, 2))


def _over(
    models: Models, plan: Plan, function: Callable[..., tuple[torch.Tensor, ...]], bands: int
) -> list[torch.Tensor]:
    """Apply `function(models, offsets, bands)` to the wavevectors of a plan, few at a time, and put them in order."""
    slots = plan.offsets.shape[1]
    step = max(1, _BYTES_AT_ONCE[models.device.type] // (len(models) * models[0, 0, 0].nbytes))
    together = max(1, step // slots)
    rows = []
    for some, offsets in zip(models[:, plan.patch].split(together, dim=1), plan.offsets.split(together)):
        parts = [function(some, q, bands) for q in offsets.split(step, dim=1)]
        rows.append([torch.cat(part, dim=2) for part in zip(*parts)])
    return [torch.cat(part, dim=1).flatten(1, 2)[:, plan.slot] for part in zip(*rows)]


def _eigenvalues(effective: torch.Tensor, q: torch.Tensor, bands: int) -> tuple[torch.Tensor]:
    """Return eigenvalues at Cartesian offsets q `(patch, k, 2)`, by `(sample, patch, k, band)`."""
    (h,) = _evaluate(effective, q, ((0, 0),))
    return (torch.linalg.eigvalsh(h)[..., :bands],)


def _solve(effective: torch.Tensor, q: torch.Tensor, bands: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvalues and their gradients likewise."""
    h, along_x, along_y = _evaluate(effective, q, ((0, 0), (1, 0), (0, 1)))
    eigenvalue, vector = torch.linalg.eigh(h)
    close = eigenvalue.diff(dim=-1) < DEGENERATE * eigenvalue[..., 1:]
    partners = int(close[..., bands - 1 :].long().cumprod(-1).sum(-1).amax())  # of the highest band
    count = min(bands + max(partners, 4), vector.shape[-1])
    eigenvalue, vector, close = eigenvalue[..., :count], vector[..., :count], close[..., : count - 1]
    images = [along_x @ vector, along_y @ vector]
    slope = torch.stack([(vector.conj() * image).sum(-2).real for image in images], dim=-1)
    somewhere = close.any(-1)
    if bool(somewhere.any()):
        matrices = torch.stack([vector[somewhere].mH @ image[somewhere] for image in images], dim=-1)
        slope[somewhere] = _degenerate_slopes(matrices, close[somewhere])
    return eigenvalue[..., :bands], slope[..., :bands, :]


def _degenerate_slopes(
    matrices: Complex128[torch.Tensor, "n band band 2"], close: Bool[torch.Tensor, "n band-1"]
) -> Float64[torch.Tensor, "n band 2"]:
    """Return slopes from the eigenvectors of a generic component of the gradient, within each set of close bands.

    Args:
        matrices: gradient of H between bands.
        close: whether each band is degenerate with the next.
    """
    group = torch.nn.functional.pad((~close).cumsum(-1), (1, 0))
    matrices = matrices * (group[:, :, None] == group[:, None, :])[..., None]
    generic = matrices[..., 0] + _GENERIC * matrices[..., 1]
    # Keeps each set together and in order: sets are shifted apart by more than any slope.
    apart = 4 * generic.abs().sum((-2, -1))[:, None] + 1.0
    _, mix = torch.linalg.eigh(generic + torch.diag_embed(apart * group))
    return torch.einsum("nib,nija,njb->nba", mix.conj(), matrices, mix).real


def _evaluate(effective: torch.Tensor, q: torch.Tensor, derivatives: tuple[tuple[int, int], ...]) -> list[torch.Tensor]:
    """Return H, or a first derivative, for each `(0, 0)`, `(1, 0)`, `(0, 1)`, with shape `(sample, patch, k, p, p)`."""
    x, y = ([component**i for i in range(5)] for component in q.unbind(-1))
    flat = torch.view_as_real(effective).flatten(3)
    shape = (effective.shape[-1], effective.shape[-1], 2)
    result = []
    for dx, dy in derivatives:
        weights = [i**dx * j**dy * x[max(i - dx, 0)] * y[max(j - dy, 0)] for i, j in _POWERS]
        result.append(torch.view_as_complex((torch.stack(weights, dim=-1) @ flat).unflatten(-1, shape)))
    return result


def _act(polynomial: torch.Tensor, centres: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply first and second order of H in q to polynomials of vectors, `(sample, patch, m, i, n)`."""
    samples, count, m, powers, n = columns.shape
    flat = torch.view_as_real(columns).movedim(1, 2).reshape(samples, m, -1)
    images = polynomial[:, 1:].flatten(1, 2) @ flat
    images = torch.view_as_complex(images.reshape(samples, 5, m, count, powers * n, 2)).movedim(3, 1)
    c1, c2, c3, c4, c5 = (image.unflatten(-1, (powers, n)) for image in images.unbind(2))
    x, y = (component[:, None, None, None] for component in centres.unbind(-1))
    first = (2 * x * c3 + y * c4 + 1j * c1, 2 * y * c5 + x * c4 + 1j * c2)
    return _convolve(first), _convolve((c3, c4, c5))


def _products(a: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """Multiply a homogeneous matrix polynomial `(..., l, i, m)` with others `(..., m, j, n)` of equal n."""
    powers = [other.shape[-2] for other in others]
    together = others[0] if len(others) == 1 else torch.cat(others, dim=-2)
    product = a.flatten(-3, -2) @ together.flatten(-2, -1)
    product = product.unflatten(-1, together.shape[-2:]).unflatten(-3, a.shape[-3:-1])
    return [_convolve(part.unbind(-3)) for part in product.split(powers, dim=-2)]


def _scaled(a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Scale a polynomial `(..., l, i, n)` by real weights `(..., l, n)`."""
    return torch.view_as_complex(torch.view_as_real(a) * weight[..., None, :, None])


def _convolve(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Sum `parts[i]`, polynomials `(..., l, j, n)`, each times qx^(d-i) qy^i."""
    powers = parts[0].shape[-2]
    total = parts[0].new_zeros(*parts[0].shape[:-2], len(parts) + powers - 1, parts[0].shape[-1])
    for power, part in enumerate(parts):
        total[..., power : power + powers, :] += part
    return total


def _adjoint(a: torch.Tensor) -> torch.Tensor:
    return a.conj().transpose(-3, -1)


def _hermitian(a: torch.Tensor) -> torch.Tensor:
    return a + _adjoint(a)
