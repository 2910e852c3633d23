import pytest

from experiments.faults import kills
from experiments.photonics import table


@pytest.mark.slow
def test_the_study_that_is_killed_comes_to_its_end_where_nobody_does(tmp_path):
    kills.run_small_study(str(tmp_path))
    assert len(table.read_rows(tmp_path / "table.csv")) == 7
    assert "left behind" not in kills.contents(tmp_path).values()
