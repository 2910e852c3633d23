"""The second reduction: bands at every k of a patch of the Brillouin zone from one small k·p model at its centre.

At the centre c the lowest p states are kept. At k = c + q the states left out follow them through second order in q,
and eliminating them leaves an effective Hamiltonian of size p that is a quartic in q (quasi-degenerate perturbation
theory: Löwdin, J. Chem. Phys. 19 (1951) 1396; Winkler, Spin-Orbit Coupling Effects (Springer, 2003), appendix B). Its
fifteen coefficients are computed once per patch; each k is then one small Hermitian eigenproblem.

Homogeneous polynomials in q of degree d are tensors with d + 1 coefficients, those of qx^(d-i) qy^i, in dimension -2,
between rows and columns.
"""

from typing import NamedTuple

import torch

# Bands closer than this fraction of their eigenvalue are degenerate to the solver: its own error mixes them.
DEGENERATE = 1e-6
_GENERIC = 0.6180339887498949  # V_x + this V_y: a direction that no lattice symmetry singles out
# A remote state is never taken to lie closer to the wanted ones than this fraction of their highest eigenvalue.
_SMALLEST_GAP = 0.05
_POWERS = [(degree - i, i) for degree in range(5) for i in range(degree + 1)]


class Solution(NamedTuple):
    """Eigenvalues λ = ω² `(sample, patch, k, band)` and their gradients in k `(sample, patch, k, band, 2)`."""

    eigenvalue: torch.Tensor
    slope: torch.Tensor


def hamiltonian(polynomial: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return H at Cartesian wavevectors `(k, 2)`, shape `(sample, k, m, m)`, from `BlochOperator.polynomial`."""
    c0, c1, c2, c3, c4, c5 = (c[:, None] for c in polynomial.unbind(1))
    x, y = (component[:, None, None] for component in k.unbind(-1))
    return torch.complex(c0 + x * x * c3 + x * y * c4 + y * y * c5, x * c1 + y * c2)


def effective_hamiltonians(polynomial: torch.Tensor, centres: torch.Tensor, bands: int, kept: int) -> torch.Tensor:
    """Eliminate all but the lowest states at each centre.

    Args:
        polynomial: real matrices of the reduced basis, shape `(sample, 6, m, m)`, as `BlochOperator.polynomial` has it.
        centres: Cartesian wavevectors, shape `(patch, 2)`, in 2π/a.
        bands: number of bands wanted.
        kept: number p of states kept, from `bands` to m.

    Returns:
        Coefficients of the quartic in q by `_POWERS`, shape `(sample, patch, 15, p, p)`.
    """
    energy, states = torch.linalg.eigh(hamiltonian(polynomial, centres))
    near, remote = states[..., :kept], states[..., kept:]
    e_near, e_remote = energy[..., :kept], energy[..., kept:, None, None]
    wanted = e_near[..., bands - 1 : bands, None, None]
    gap = torch.maximum(e_remote - torch.minimum(e_near[..., None, None, :], wanted), _SMALLEST_GAP * wanted)

    # First (d) and second (s) order of H in q, acting on the near states and on what follows them.
    d_near, s_near = _act(polynomial, centres, near[..., None, :])
    d_nn, s_nn, d_rn, s_rn = (_multiply(a.mH[..., None, :], b) for a in (near, remote) for b in (d_near, s_near))
    x1 = -d_rn / gap
    y1 = _multiply(remote[..., None, :], x1)
    d_y1, s_y1 = _act(polynomial, centres, y1)
    d_x1 = _multiply(remote.mH[..., None, :], d_y1)
    x2 = -(s_rn + d_x1 - _multiply(x1, d_nn)) / gap

    # The Hamiltonian and the overlap of the followed states, degree by degree.
    t0 = torch.diag_embed(e_near)[..., None, :].to(states.dtype)
    x1_h, x2_h = _adjoint(x1), _adjoint(x2)
    t2 = s_nn + _hermitian(_multiply(x1_h, d_rn + e_remote * x1 / 2))
    t3 = _hermitian(_multiply(x1_h, s_rn + d_x1 / 2) + _multiply(x2_h, d_rn + e_remote * x1))
    t4 = _hermitian(_multiply(x2_h, s_rn + d_x1 + e_remote * x2 / 2)) + _multiply(_adjoint(y1), s_y1)
    s2 = _multiply(x1_h, x1)
    s3 = _hermitian(_multiply(x1_h, x2))
    s4 = _multiply(x2_h, x2)

    # n t n with n = overlap^(-1/2).
    n2, n3, n4 = -s2 / 2, -s3 / 2, 3 / 8 * _multiply(s2, s2) - s4 / 2
    n2_t0 = n2 * e_near[..., None, None, :]
    h2 = t2 + _hermitian(n2_t0)
    h3 = t3 + _hermitian(n3 * e_near[..., None, None, :] + _multiply(n2, d_nn))
    h4 = (
        t4
        + _hermitian(n4 * e_near[..., None, None, :] + _multiply(n3, d_nn) + _multiply(n2, t2))
        + _multiply(n2_t0, n2)
    )
    return torch.cat([t0, d_nn, h2, h3, h4], dim=-2).transpose(-3, -2).contiguous()


def solve(effective: torch.Tensor, q: torch.Tensor, bands: int) -> Solution:
    """Solve the models at Cartesian offsets q from their centres, shape `(patch, k, 2)`, in 2π/a."""
    h, along_x, along_y = _evaluate(effective, q)
    eigenvalue, vector = torch.linalg.eigh(h)
    count = min(bands + 4, vector.shape[-1])  # partners of the highest band, should it be degenerate
    eigenvalue, vector = eigenvalue[..., :count], vector[..., :count]
    images = [along_x @ vector, along_y @ vector]
    slope = torch.stack([(vector.conj() * image).sum(-2).real for image in images], dim=-1)
    close = eigenvalue.diff(dim=-1) < DEGENERATE * eigenvalue[..., 1:]
    somewhere = close.any(-1)
    if bool(somewhere.any()):
        matrices = torch.stack([vector[somewhere].mH @ image[somewhere] for image in images], dim=-1)
        slope[somewhere] = _degenerate_slopes(matrices, close[somewhere])
    return Solution(eigenvalue[..., :bands], slope[..., :bands, :])


def _degenerate_slopes(matrices: torch.Tensor, close: torch.Tensor) -> torch.Tensor:
    """Return slopes from the eigenvectors of a generic component of the gradient, within each set of close bands.

    Args:
        matrices: gradient of H between bands, shape `(n, band, band, 2)`.
        close: whether each band is degenerate with the next, shape `(n, band - 1)`.
    """
    group = torch.nn.functional.pad((~close).cumsum(-1), (1, 0))
    matrices = matrices * (group[:, :, None] == group[:, None, :])[..., None]
    generic = matrices[..., 0] + _GENERIC * matrices[..., 1]
    # Keeps each set together and in order: sets are shifted apart by more than any slope.
    apart = 4 * generic.abs().sum((-2, -1))[:, None] + 1.0
    _, mix = torch.linalg.eigh(generic + torch.diag_embed(apart * group))
    return torch.einsum("nib,nija,njb->nba", mix.conj(), matrices, mix).real


def _evaluate(effective: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return H and its derivatives in qx and qy, each with shape `(sample, patch, k, p, p)`."""
    x, y = q.unbind(-1)
    value = torch.stack([x**i * y**j for i, j in _POWERS], dim=-1)
    along_x = torch.stack([i * x ** max(i - 1, 0) * y**j for i, j in _POWERS], dim=-1)
    along_y = torch.stack([j * x**i * y ** max(j - 1, 0) for i, j in _POWERS], dim=-1)
    flat = torch.view_as_real(effective).flatten(3)
    size = effective.shape[-1]
    return tuple(
        torch.view_as_complex((weights @ flat).unflatten(-1, (size, size, 2))) for weights in (value, along_x, along_y)
    )


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


def _multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply homogeneous matrix polynomials `(..., l, i, m)` and `(..., m, j, n)`."""
    product = a.flatten(-3, -2) @ b.flatten(-2, -1)
    product = product.unflatten(-1, b.shape[-2:]).unflatten(-3, a.shape[-3:-1])
    return _convolve(product.unbind(-3))


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
