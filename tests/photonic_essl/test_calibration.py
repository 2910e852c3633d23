import pytest
import torch

from photonic_essl.calibration import FEWEST_CELLS, Calibration
from photonic_essl.metrics import SCORED


def unsure_predictions(cells, seed, power=1.0):
    """Errors, spreads and difficulties: errors grow with the spread, which differs a hundredfold, to some power."""
    random = torch.Generator().manual_seed(seed)
    hardness = 10 ** (2 * torch.rand(cells, 1, generator=random) - 3)
    spread = hardness * (0.5 + torch.rand(cells, 400, generator=random))
    scale = 3 * spread * (hardness / 0.01) ** (power - 1)
    return (scale * torch.randn(cells, 400, generator=random)).abs(), spread, hardness[:, 0]


def shares_within(calibration, cells, coverage):
    error, spread, difficulty = cells
    return (error <= calibration.half_width(spread, difficulty, coverage))[:, SCORED].float().mean(1)


@pytest.fixture(scope="module")
def calibrated():
    calibration = Calibration(400)
    assert not calibration.done
    calibration.fit(*unsure_predictions(500, 0))
    return calibration


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.755, 0.9, 0.99])
def test_new_cells_lie_within_as_often_as_stated(calibrated, coverage):
    assert shares_within(calibrated, unsure_predictions(2000, 1), coverage).mean().item() == pytest.approx(
        coverage, abs=0.02
    )


@pytest.mark.parametrize(
    ("cells", "power", "tolerance"),
    [(50, 1.5, 0.1), (100, 0.5, 0.06), (100, 1.5, 0.06), (500, 0.5, 0.04), (500, 2, 0.04)],
)
def test_hard_cells_lie_within_as_often_as_easy_ones(cells, power, tolerance):
    calibration = Calibration(400)
    calibration.fit(*unsure_predictions(cells, 0, power))
    new = unsure_predictions(2000, 1, power)
    within = shares_within(calibration, new, 0.9)[new[2].argsort()]
    for tenth in within.split(200):
        assert tenth.mean().item() == pytest.approx(0.9, abs=tolerance)


def test_intervals_grow_with_coverage_and_with_the_spread(calibrated):
    spread, difficulty = torch.rand(3, 400), torch.tensor([0.001, 0.01, 0.1])
    assert (calibrated.half_width(spread, difficulty, 0.9) > calibrated.half_width(spread, difficulty, 0.5)).all()
    assert (calibrated.half_width(2 * spread, difficulty, 0.9) > calibrated.half_width(spread, difficulty, 0.9)).all()
    assert (calibrated.half_width(torch.zeros(3, 400), difficulty, 0.9) > 0).all()


def test_the_easiest_and_hardest_groups_stand_for_what_is_beyond_them(calibrated):
    first, last = calibrated.difficulties[[0, -1]].tolist()
    difficulty = torch.tensor([0.0, first, last, 100 * last])
    easier, easiest, hardest, harder = calibrated.half_width(torch.ones(4, 400), difficulty, 0.9)
    assert torch.equal(easier, easiest)
    assert torch.equal(harder, hardest)


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90.0])
def test_a_coverage_out_of_range_is_refused(calibrated, coverage):
    with pytest.raises(ValueError, match=rf"`coverage` must be from 0\.01 to 0\.99, got {coverage}"):
        calibrated.half_width(torch.ones(1, 400), torch.ones(1), coverage)


def test_few_cells_give_no_intervals():
    calibration = Calibration(400)
    with pytest.raises(ValueError, match="needs 50 cells or more, got 49"):
        calibration.fit(*unsure_predictions(FEWEST_CELLS - 1, 0))
    with pytest.raises(ValueError, match="the model has no intervals: they need 50 validation cells or more"):
        calibration.half_width(torch.ones(1, 400), torch.ones(1), 0.9)


def test_labels_that_are_missing_are_refused():
    error, spread, difficulty = unsure_predictions(60, 0)
    error[3, 7] = torch.nan
    with pytest.raises(ValueError, match="finite everywhere"):
        Calibration(400).fit(error, spread, difficulty)
