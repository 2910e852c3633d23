import numpy as np
import pytest

from data_gen.lattices import basis_vectors, reciprocal_vectors, symmetry_path, wavevector_grid


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


def test_a_hexagonal_lattice_may_be_written_with_three_digits():
    rounded, exact = symmetry_path([[1.0, 0.0], [-0.5, 0.866]]), symmetry_path("hexagonal")
    assert [name for _, name in rounded.labels] == [name for _, name in exact.labels] == list("ΓMKΓ")
    np.testing.assert_allclose(rounded.wavevector, exact.wavevector, atol=1e-12)


@pytest.mark.parametrize("lattice", ["triangle", [[1, 0], [2, 0]], [[1, 0, 0], [0, 1, 0]], [[1, 0], [0, np.nan]]])
def test_bad_lattices_are_refused(lattice):
    with pytest.raises(ValueError, match="`lattice` must be"):
        basis_vectors(lattice)


def test_a_lattice_may_be_written_as_files_have_it():
    assert basis_vectors([1.0, 0.0, 0.3, 1.2]).tolist() == basis_vectors("oblique").tolist()


def test_empty_grid_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        wavevector_grid(0)


@pytest.mark.parametrize(
    ("lattice", "names", "lengths"),
    [
        ("square", "ΓXMΓ", (1 / 2, 1 / 2, np.sqrt(1 / 2))),
        ("hexagonal", "ΓMKΓ", (1 / np.sqrt(3), 1 / 3, 2 / 3)),
        ([[1.0, 0.0], [0.5, np.sqrt(3) / 2]], "ΓMKΓ", (1 / np.sqrt(3), 1 / 3, 2 / 3)),
        ("rectangular", "ΓXSYΓ", (1 / 2, 1 / 3, 1 / 2, 1 / 3)),
    ],
)
def test_path_has_the_lengths_of_the_zone(lattice, names, lengths):
    path = symmetry_path(lattice, points=50)
    assert "".join(name for _, name in path.labels) == names
    np.testing.assert_allclose(np.diff([position for position, _ in path.labels]), lengths)
    cartesian = path.wavevector @ reciprocal_vectors(basis_vectors(lattice))
    np.testing.assert_allclose(np.linalg.norm(np.diff(cartesian, axis=0), axis=1), np.diff(path.position), atol=1e-14)
    assert len(path.position) == pytest.approx(50, abs=2)
    assert np.isin([position for position, _ in path.labels], path.position).all()


def test_k_is_where_three_zones_meet():
    for lattice in ("hexagonal", [[1.0, 0.0], [0.5, np.sqrt(3) / 2]]):
        path, reciprocal = symmetry_path(lattice), reciprocal_vectors(basis_vectors(lattice))
        k = path.wavevector[path.position == path.labels[2][0]][0] @ reciprocal
        around = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 2), axis=-1).reshape(-1, 2) @ reciprocal
        distances = np.sort(np.linalg.norm(around - k, axis=1))
        np.testing.assert_allclose(distances[:3], 2 / 3)
        assert distances[3] > 1


def test_short_path_is_refused():
    with pytest.raises(ValueError, match="`points` must be at least 8, got 3"):
        symmetry_path("square", points=3)
