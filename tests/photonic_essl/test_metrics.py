import numpy as np
import pytest

from photonic_essl.metrics import FREQUENCIES, empty_lattice, relative_error


def test_empty_lattice_is_linear():
    assert len(FREQUENCIES) == 500
    assert empty_lattice(0.5) == pytest.approx(np.pi)
    assert empty_lattice(0.5, area=2.0) == pytest.approx(2 * np.pi)


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
