import numpy as np
import pytest

from photonic_essl.bands import Gap, band_gaps, widest_dos_gaps
from photonic_essl.metrics import FREQUENCIES, empty_lattice


def test_gaps_are_between_the_extrema_of_neighbouring_bands():
    phase = np.linspace(0, np.pi, 31)
    tm = np.stack([np.sin(phase), 2 + 0.5 * np.cos(phase), 2.5 + 0.3 * np.sin(phase)], axis=-1)
    (gap,) = band_gaps(tm)
    assert gap == pytest.approx((1.0, 1.5))
    assert gap.ratio == pytest.approx(0.5 / 1.25)


def test_bands_of_both_polarizations_sorted_leave_the_complete_gaps():
    phase = np.linspace(0, 1, 11)[:, None]
    tm, te = phase + np.array([0, 2, 4]), 0.1 * phase + np.array([0.5, 1.5, 3.5])
    both = np.sort(np.hstack([tm, te]), axis=1)
    assert [tuple(np.round(gap, 12)) for gap in band_gaps(both)] == [(1.0, 1.5), (1.6, 2.0), (3.0, 3.5), (3.6, 4.0)]


def test_small_gaps_are_left_out():
    bands = np.array([[1.0, 1.005], [0.9, 1.2]])
    assert band_gaps(bands) == []
    assert band_gaps(bands, smallest=0.004) == [Gap(1.0, 1.005)]


@pytest.mark.parametrize("bands", [np.ones(3), np.ones((0, 3)), [[2.0, 1.0]], [[1.0, np.nan]]])
def test_what_is_no_set_of_bands_is_refused(bands):
    with pytest.raises(ValueError, match=r"must be finite bands of shape \(k, band\), ascending along band, got shape"):
        band_gaps(bands)


def test_gap_of_a_density_of_states_is_its_widest_range_without_states():
    dos = np.tile(empty_lattice(), (3, 1))
    dos[1, (FREQUENCIES > 0.4) & (FREQUENCIES < 0.5)] = 0.01
    dos[1, (FREQUENCIES > 0.7) & (FREQUENCIES < 0.72)] = 0.0
    dos[2, FREQUENCIES > 0.8] = 0.0
    gaps = widest_dos_gaps(dos[:, :400])
    assert gaps[0] == 0
    assert gaps[1:] == pytest.approx([Gap(0.4, 0.5).ratio, Gap(0.8, 0.96).ratio], abs=0.01)
