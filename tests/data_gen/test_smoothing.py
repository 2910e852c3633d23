import numpy as np
import pytest
import torch

from data_gen.lattices import basis_vectors
from data_gen.solvers.smoothing import block_mean, effective_inverse_permittivity

SQUARE = basis_vectors("square")


def half_plane(angle: float, distance: float, n: int, basis: np.ndarray) -> np.ndarray:
    """3 × 3 pixels of n × n fine samples; an interface with this normal passes the middle one's centre at a distance.

    In units of the pixel. Permittivity 9 on the side of the normal, 2 on the other.
    """
    offset = (np.arange(3 * n) + 0.5) / n - 1.5
    u, v = np.meshgrid(offset, offset, indexing="ij")
    position = u[..., None] * basis[0] + v[..., None] * basis[1]
    side = position @ np.array([np.cos(angle), np.sin(angle)]) - distance
    return (5.5 + np.sign(side.round(12)) * 3.5)[None]


def test_block_mean_is_the_mean_of_each_pixel():
    fine = torch.arange(2 * 4 * 6, dtype=torch.float64).reshape(2, 4, 6)
    expected = torch.stack([torch.stack([fine[:, i : i + 2, j : j + 2].mean((1, 2)) for j in (0, 2, 4)], -1)
                            for i in (0, 2)], 1)  # fmt: skip
    torch.testing.assert_close(block_mean(fine, 2), expected)


def test_factor_one_is_the_inverse_permittivity():
    fine = np.random.default_rng(0).uniform(1, 20, (2, 3, 4))
    tensor = effective_inverse_permittivity(fine, 1, SQUARE)
    expected = np.eye(2) / fine[..., None, None]
    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("lattice", ["square", "hexagonal"])
@pytest.mark.parametrize("distance", [0.0, 0.3, -0.5])
@pytest.mark.parametrize("angle", [0.0, 0.5, np.pi / 4, 2.0, -1.1])
def test_flat_interface_is_harmonic_along_the_normal_and_arithmetic_across(angle, distance, lattice):
    basis = basis_vectors(lattice)
    fine = half_plane(angle, distance, 41, basis)
    tensor = effective_inverse_permittivity(fine, 41, basis)[0, 1, 1].numpy()
    middle = fine[0, 41:82, 41:82]
    normal, tangent = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    assert normal @ tensor @ normal == pytest.approx((1 / middle).mean(), rel=2e-3)
    assert tangent @ tensor @ tangent == pytest.approx(1 / middle.mean(), rel=2e-3)
    assert abs(normal @ tensor @ tangent) < 2e-3


@pytest.mark.parametrize("basis", [np.diag([1.0, 5.0]), np.diag([1.0, 0.2]), np.array([(1.0, 0.0), (3.0, 1.0)])])
def test_the_normal_is_right_in_long_and_skew_pixels(basis):
    # The disc around such a pixel reaches beyond its neighbours.
    angle, factor, pixels = 0.5, 15, 17
    position = (np.arange(pixels * factor) + 0.5) / factor - pixels / 2
    x, y = np.moveaxis(np.stack(np.meshgrid(position, position, indexing="ij"), axis=-1) @ basis, -1, 0)
    fine = np.where(x * np.cos(angle) + y * np.sin(angle) < 0.1, 12.0, 1.0)[None]
    tensor = effective_inverse_permittivity(fine, factor, basis * pixels)[0, pixels // 2, pixels // 2].numpy()
    normal = np.linalg.eigh(tensor)[1][:, 1]
    assert abs(normal @ (np.cos(angle), np.sin(angle))) > 0.999


def test_normal_is_cartesian_on_a_hexagonal_lattice():
    basis = basis_vectors("hexagonal")
    # The long diagonal of the rhombus is a mirror of it: a normal along it must come out exactly.
    diagonal = basis[0] - basis[1]
    angle = np.arctan2(diagonal[1], diagonal[0])
    tensor = effective_inverse_permittivity(half_plane(angle, 0.2, 31, basis), 31, basis)[0, 1, 1].numpy()
    eigenvalues, vectors = np.linalg.eigh(tensor)
    assert eigenvalues[1] > eigenvalues[0]
    assert abs(vectors[:, 1] @ diagonal) / np.linalg.norm(diagonal) == pytest.approx(1.0, abs=1e-12)


def test_rotating_the_cell_rotates_the_tensor():
    fine = np.where(np.random.default_rng(1).uniform(size=(1, 16, 16)) < 0.5, 2.0, 11.0)
    tensor = effective_inverse_permittivity(fine, 4, SQUARE).numpy()
    turned = effective_inverse_permittivity(np.rot90(fine, axes=(1, 2)).copy(), 4, SQUARE).numpy()
    rotation = np.array([[0.0, -1.0], [1.0, 0.0]])
    expected = rotation @ np.rot90(tensor, axes=(1, 2)) @ rotation.T
    np.testing.assert_allclose(turned, expected, atol=1e-14)


def test_directionless_pixel_is_isotropic():
    checkerboard = np.array([[1.0, 4.0], [4.0, 1.0]])[None]
    tensor = effective_inverse_permittivity(checkerboard, 2, SQUARE)[0, 0, 0].numpy()
    np.testing.assert_allclose(tensor, np.eye(2) * (0.625 + 0.4) / 2)


def test_gradient_agrees_with_finite_differences():
    fine = torch.rand(1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5 + 1
    fine[:, :2, :2] = 3.0  # a uniform pixel: no direction, and no NaN in the gradient
    assert torch.autograd.gradcheck(
        lambda e: effective_inverse_permittivity(e, 2, SQUARE)[:, 1:], fine.requires_grad_()
    )
    (gradient,) = torch.autograd.grad(effective_inverse_permittivity(fine, 2, SQUARE).sum(), fine)
    assert torch.isfinite(gradient).all()


def test_errors_state_the_rule_and_the_value():
    with pytest.raises(ValueError, match=r"must divide the fine grid 6 x 6 .* got 4"):
        block_mean(np.ones((1, 6, 6)), 4)
    with pytest.raises(ValueError, match=r"shape \(sample, X, Y\), got \(6, 6\)"):
        effective_inverse_permittivity(np.ones((6, 6)), 2, SQUARE)
