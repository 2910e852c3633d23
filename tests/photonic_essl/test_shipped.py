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


def test_it_is_compact_and_has_its_card():
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 5e6
    card = (SHIPPED / "README.md").read_text()
    for part in ("## Data", "## Error on test cells", "contrast", "fill", "## Where not to trust it"):
        assert part in card


@pytest.mark.parametrize("name", ["blob", *(pytest.param(name, marks=pytest.mark.slow) for name in ("p1", "rods"))])
def test_it_is_right_about_cells_that_it_has_not_seen(model, name):
    family = unit_cell_family(name)
    fine = np.stack([family.draw(99, index, 32).epsilon for index in range(6)])
    labels = data_gen.label(fine, resolution=32)
    epsilon = fine.reshape(6, 32, 9, 32, 9).mean((2, 4))
    assert photonic_essl.relative_error(model.predict(epsilon), labels["dos"]) < 0.002
    interval = model.predict_interval(epsilon)
    true = labels["dos"].values[:, :400]
    within = (interval["lowest"].values <= true) & (true <= interval["highest"].values)
    assert 0.6 < within[:, 100:].mean() <= 1


def test_a_command_without_a_model_predicts(model, tmp_path):
    epsilon = np.where(np.hypot(*np.meshgrid(*[np.linspace(-0.5, 0.5, 32)] * 2)) < 0.2, 8.9, 1.0)
    np.save(tmp_path / "cell.npy", epsilon)
    words = ["predict", "--data", str(tmp_path / "cell.npy"), "--out", str(tmp_path / "dos.nc")]
    assert run("photonic-essl", COMMANDS, words) == 0
    written = xr.load_dataset(tmp_path / "dos.nc")
    np.testing.assert_allclose(written["dos"], model.predict(epsilon), atol=1e-6)
    assert {"lowest", "highest"} <= set(written)


def test_it_warns_and_refuses_outside_of_its_range(model, tmp_path):
    epsilon = np.where(np.arange(32)[:, None] < 8, 25.0, np.ones((32, 32)))
    with pytest.warns(UserWarning, match="do not trust its predictions"):
        model.predict(epsilon)
    for attributes, message in (
        ({"polarization": "te"}, "the model predicts TM, the cells are for TE"),
        ({"lattice": [1.0, 0.0, -0.5, 0.75**0.5]}, "the model was trained on the lattice"),
    ):
        data = write_cells(tmp_path / "other.nc", 3, **attributes)
        for use in (lambda data=data: evaluate(data), lambda data=data: predict(data, tmp_path / "dos.nc")):
            with pytest.raises(ValueError, match=message):
                use()
