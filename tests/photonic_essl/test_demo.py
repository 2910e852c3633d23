import pytest

from photonic_essl.demo import _data_gen


def test_a_step_that_fails_stops_the_demo():
    with pytest.raises(RuntimeError, match="data-gen nonsense failed with status 2"):
        _data_gen("nonsense")
