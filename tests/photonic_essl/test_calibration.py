import pytest
import torch

from photonic_essl.calibration import FEWEST_CELLS, Calibration
from photonic_essl.metrics import SCORED


def unsure_predictions(cells, seed):
    """Means, spreads and truths whose errors grow with the spread, which differs a hundredfold between cells."""
    random = torch.Generator().manual_seed(seed)
    spread = 10 ** (2 * torch.rand(cells, 1, generator=random) - 3) * (0.5 + torch.rand(cells, 400, generator=random))
    mean = 2 + torch.randn(cells, 400, generator=random)
    return mean, spread, mean + 3 * spread * torch.randn(cells, 400, generator=random)


@pytest.fixture(scope="module")
def calibrated():
    calibration = Calibration(400)
    assert not calibration.done
    calibration.fit(*unsure_predictions(500, 0))
    return calibration


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.755, 0.9, 0.99])
def test_new_cells_lie_within_as_often_as_stated(calibrated, coverage):
    mean, spread, true = unsure_predictions(2000, 1)
    within = (mean - true).abs() <= calibrated.half_width(spread, coverage)
    assert within[:, SCORED].float().mean().item() == pytest.approx(coverage, abs=0.02)
    surest = spread.mean(1) < spread.mean(1).median()
    assert within[surest][:, SCORED].float().mean().item() == pytest.approx(coverage, abs=0.12)


def test_intervals_grow_with_coverage_and_with_the_spread(calibrated):
    spread = torch.rand(3, 400)
    assert (calibrated.half_width(spread, 0.9) > calibrated.half_width(spread, 0.5)).all()
    assert (calibrated.half_width(2 * spread, 0.9) > calibrated.half_width(spread, 0.9)).all()
    assert (calibrated.half_width(torch.zeros(3, 400), 0.9) > 0).all()


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90.0])
def test_a_coverage_out_of_range_is_refused(calibrated, coverage):
    with pytest.raises(ValueError, match=rf"`coverage` must be from 0\.01 to 0\.99, got {coverage}"):
        calibrated.half_width(torch.ones(1, 400), coverage)


def test_few_cells_give_no_intervals():
    calibration = Calibration(400)
    calibration.fit(*unsure_predictions(FEWEST_CELLS - 1, 0))
    with pytest.raises(ValueError, match="the model has no intervals: they need 50 validation cells or more"):
        calibration.half_width(torch.ones(1, 400), 0.9)
