import numpy as np
import pytest
import xarray as xr

import data_gen
import photonic_essl
from data_gen.command_line import run
from data_gen.unit_cells import unit_cell_family
from photonic_essl.cli import COMMANDS
from photonic_essl.prediction import evaluate, predict
from photonic_essl.regression import SHIPPED

from .conftest import write_cells


@pytest.fixture(scope="module")
def model():
    return photonic_essl.load_regressor()


def air_hole(radius=0.2):
    inside = np.hypot(*np.meshgrid(*[np.linspace(-0.5, 0.5, 32)] * 2)) < radius
    return np.where(inside, 1.0, 8.9)


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_it_is_compact_and_has_its_card(polarization):
    files = [file for file in SHIPPED[polarization].rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2.5e6
    card = (SHIPPED[polarization] / "README.md").read_text()
    assert f"# The model for {polarization.upper()} " in card
    for part in ("## Data", "## Error on test cells", "contrast", "fill", "## Where not to trust it"):
        assert part in card


@pytest.mark.parametrize("polarization", ["tm", "te"])
@pytest.mark.parametrize("name", ["blob", *(pytest.param(name, marks=pytest.mark.slow) for name in ("p1", "rods"))])
def test_it_is_right_about_cells_that_it_has_not_seen(name, polarization):
    model = photonic_essl.load_regressor(polarization=polarization)
    family = unit_cell_family(name)
    fine = np.stack([family.draw(99, index, 32).epsilon for index in range(6)])
    labels = data_gen.label(fine, resolution=32, polarization=polarization)
    epsilon = fine.reshape(6, 32, 9, 32, 9).mean((2, 4))
    error = photonic_essl.relative_error(model.predict(epsilon), labels["dos"])
    assert error < {"tm": 0.002, "te": 0.004}[polarization]
    interval = model.predict_interval(epsilon)
    true = labels["dos"].values[:, :400]
    within = (interval["lowest"].values <= true) & (true <= interval["highest"].values)
    assert 0.6 < within[:, 100:].mean() <= 1


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_a_command_without_a_model_predicts(polarization, tmp_path):
    np.save(tmp_path / "cell.npy", air_hole())
    words = ["predict", "--data", str(tmp_path / "cell.npy"), "--out", str(tmp_path / "dos.nc")]
    assert run("photonic-essl", COMMANDS, words + ["--polarization", polarization] * (polarization == "te")) == 0
    written = xr.load_dataset(tmp_path / "dos.nc")
    model = photonic_essl.load_regressor(polarization=polarization)
    np.testing.assert_allclose(written["dos"], model.predict(air_hole()), atol=1e-6)
    assert {"lowest", "highest"} <= set(written)


def test_cells_get_the_model_of_their_polarization(tmp_path):
    data = write_cells(tmp_path / "te.nc", 3, polarization="te")
    with data_gen.open_dataset(data) as dataset:
        expected = photonic_essl.load_regressor(polarization="te").predict(dataset["epsilon"])
    np.testing.assert_array_equal(predict(data, tmp_path / "dos.nc")["dos"], expected)
    assert evaluate(data) > 0
    with pytest.raises(ValueError, match="the model predicts TM, the cells are for TE"):
        predict(data, tmp_path / "dos.nc", polarization="tm")
    with pytest.raises(ValueError, match="the model predicts TM, the cells are for TE"):
        predict(data, tmp_path / "dos.nc", SHIPPED["tm"])
    with pytest.raises(ValueError, match="`polarization` must be tm or te, got 'tem'"):
        photonic_essl.load_regressor(polarization="tem")


def test_an_array_is_not_predicted_for_another_polarization_than_asked(tmp_path):
    np.save(tmp_path / "cell.npy", air_hole())
    with pytest.raises(ValueError, match="the model predicts TM, the cells are for TE"):
        predict(tmp_path / "cell.npy", tmp_path / "dos.nc", SHIPPED["tm"], polarization="te")


def test_it_warns_and_refuses_outside_of_its_range(model, tmp_path):
    epsilon = np.where(np.arange(32)[:, None] < 8, 25.0, np.ones((32, 32)))
    with pytest.warns(UserWarning, match="do not trust its predictions"):
        model.predict(epsilon)
    data = write_cells(tmp_path / "other.nc", 3, lattice=[1.0, 0.0, -0.5, 0.75**0.5])
    for use in (lambda: evaluate(data), lambda: predict(data, tmp_path / "dos.nc")):
        with pytest.raises(ValueError, match="the model was trained on the lattice"):
            use()
