"""The notebooks run from top to bottom, smaller, and show what they say."""

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "experiments" / "notebooks"
PARAMETERS = re.compile(r'^# %% tags=\["parameters"\]\n(\w+) = \d+\n', re.MULTILINE)


def run(name, size):
    """Execute a notebook with its one parameter set to `size`, and return what it defines."""
    source = (NOTEBOOKS / name).read_text()
    assert len(PARAMETERS.findall(source)) == 1
    with matplotlib.rc_context({"figure.max_open_warning": 0}):
        defined = {"__name__": name}
        exec(compile(PARAMETERS.sub(rf"\1 = {size}\n", source), name, "exec"), defined)
        matplotlib.pyplot.close("all")
    return defined


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "notebooks"


def test_every_notebook_is_run_here_and_listed():
    listed = set(re.findall(r"`(\w+\.py)`", (NOTEBOOKS / "README.md").read_text()))
    there = {path.name for path in NOTEBOOKS.glob("*.py")}
    assert there == listed == set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))


def test_dataset_is_generated_and_drawn(folder):
    cells = run("generate_a_dataset.py", 2)["cells"]
    assert cells.sizes["sample"] == 2
    assert {path.name for path in folder.glob("*.png")} == {"rods.png", "bands.png"}


@pytest.mark.slow
def test_own_cells_are_learnt_and_predicted(folder):
    error = run("pretrain_on_own_cells.py", 16)["error"]
    shown = run("predict_and_plot.py", 3)
    np.testing.assert_allclose(shown["errors"].mean(), error, rtol=1e-5)
    assert "Cells, as predicted by model" in (folder / "report.html").read_text()
    assert {"training.png", "predictions.png", "errors.png", "one_cell.png"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_gradient_ascent_opens_a_gap_within_the_bounds(folder):
    shown = run("design_a_band_gap.py", 30)
    assert shown["before"].ratio < -0.2
    assert shown["after"].ratio > 0.1
    design = shown["design"]
    assert design.unique().tolist() == pytest.approx([shown["LOWEST"], shown["HIGHEST"]])
    reached = shown["permittivity"](10 * shown["level"])
    assert ((reached >= shown["LOWEST"]) & (reached <= shown["HIGHEST"])).all()
    assert (design == design.T).all()
    assert (design == design.flip(0)).all()
