import numpy as np
import pytest

from data_gen.plane_groups import PLANE_GROUPS, operations, symmetrise

ORDERS = dict(
    zip(
        PLANE_GROUPS,
        # International Tables A, general positions of the primitive cell.
        (1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 8, 8, 3, 6, 6, 6, 12),
    )
)


def value(coefficients, points):
    cutoff = len(coefficients) // 2
    n = np.arange(-cutoff, cutoff + 1)
    x, y = (np.exp(2j * np.pi * np.multiply.outer(points[..., axis], n)) for axis in (0, 1))
    return np.einsum("...i,ij,...j->...", x, coefficients, y).real


@pytest.mark.parametrize("plane_group", PLANE_GROUPS)
def test_symmetrised_sum_is_unchanged_by_every_operation(plane_group):
    generator = np.random.default_rng(0)
    coefficients = generator.normal(size=(5, 5)) + 1j * generator.normal(size=(5, 5))
    symmetric = symmetrise(coefficients, plane_group)
    points = generator.uniform(size=(20, 2))
    rotations, translations = operations(plane_group)
    assert len(rotations) == ORDERS[plane_group]
    assert np.ptp(value(symmetric, points)) > 0.1
    for rotation, translation in zip(rotations, translations):
        np.testing.assert_allclose(
            value(symmetric, points @ rotation.T + translation), value(symmetric, points), atol=1e-12
        )


@pytest.mark.parametrize("plane_group", PLANE_GROUPS)
def test_operations_form_a_group(plane_group):
    rotations, translations = operations(plane_group)
    known = {(tuple(r.ravel()), tuple(np.round(t % 1, 6) % 1)) for r, t in zip(rotations, translations)}
    assert len(known) == len(rotations)
    for r1, t1 in zip(rotations, translations):
        for r2, t2 in zip(rotations, translations):
            assert (tuple((r1 @ r2).ravel()), tuple(np.round((r1 @ t2 + t1) % 1, 6) % 1)) in known


def test_unknown_group_is_refused():
    with pytest.raises(ValueError, match=r"must be one of p1, .*got 'p5'"):
        operations("p5")
