import numpy as np
import pytest

from data_gen.lattices import basis_vectors, reciprocal_vectors, wavevector_grid


@pytest.mark.parametrize("lattice", ["square", "hexagonal", [[1.0, 0.2], [-0.3, 1.7]]])
def test_reciprocal_vectors_are_dual_to_the_basis(lattice):
    basis = basis_vectors(lattice)
    np.testing.assert_allclose(basis @ reciprocal_vectors(basis).T, np.eye(2), atol=1e-14)


@pytest.mark.parametrize("n", [1, 4, 25])
def test_grid_is_centred_on_the_zone_and_pairs_k_with_minus_k(n):
    grid = wavevector_grid(n)
    assert grid.shape == (n * n, 2)
    np.testing.assert_allclose(grid, -grid[::-1], atol=1e-15)
    assert np.abs(grid).max() == pytest.approx(0.5 - 0.5 / n)


@pytest.mark.parametrize("lattice", ["triangle", [[1, 0], [2, 0]], [[1, 0, 0], [0, 1, 0]], [[1, 0], [0, np.nan]]])
def test_bad_lattices_are_refused(lattice):
    with pytest.raises(ValueError, match="`lattice` must be"):
        basis_vectors(lattice)


def test_empty_grid_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        wavevector_grid(0)
