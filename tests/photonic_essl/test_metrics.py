import numpy as np
import pytest
import torch
import xarray as xr

import photonic_essl
from photonic_essl.metrics import FREQUENCIES, empty_lattice, relative_error, relative_errors


def test_error_of_a_known_deviation():
    true = np.tile(empty_lattice(), (3, 1))
    predicted = true * np.array([1.0, 1.1, 0.8])[:, None]
    np.testing.assert_allclose(relative_errors(predicted, true), [0.0, 0.1, 0.2])
    assert relative_error(predicted, true) == pytest.approx(0.1)


def test_only_scored_frequencies_count_and_400_or_500_are_taken():
    true = empty_lattice()[None]
    predicted = true.copy()
    predicted[:, :100] = predicted[:, 400:] = 99.0
    assert relative_error(predicted, true) == 0.0
    assert relative_error(predicted[:, :400], true) == 0.0
    predicted[:, 100] += 1.0
    assert relative_error(torch.tensor(predicted), xr.DataArray(true)) == pytest.approx(1 / true[:, 100:400].sum())


def test_one_cell_needs_no_sample_axis():
    assert photonic_essl.relative_error(empty_lattice() * 1.01, empty_lattice()) == pytest.approx(0.01)


def test_empty_lattice_is_linear():
    assert len(FREQUENCIES) == 500
    assert empty_lattice(0.5) == pytest.approx(np.pi)


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (np.ones((2, 300)), np.ones((2, 400)), "`predicted` must have 400 or 500 frequencies"),
        (np.ones((2, 400)), np.ones((3, 400)), "must hold the same cells"),
        (np.ones((2, 400)), np.full((2, 400), np.nan), "`true` holds values that are not finite"),
    ],
)
def test_bad_input(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        relative_error(predicted, true)
