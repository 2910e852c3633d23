"""The explorer in a real browser, from the command to the file that it saves."""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

import data_gen
from photonic_essl.finetuning import finetune
from photonic_essl.metrics import relative_error
from photonic_essl.regression import load_regressor
from tests.photonic_essl.conftest import write_cells

playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: `apt install chromium`")
SECONDS = 60
MOVES = 5
playwright.expect.set_options(timeout=1000 * SECONDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    cells = write_cells(folder / "cells.h5", 70, polarization="tm")
    finetune(cells, folder / "model", labels=16, epochs=5, progress=False)
    return folder / "model"


@pytest.fixture(scope="module")
def explorer(model):
    """The running command: its process, where it is, and what it saves to. Killed at the end, it leaves no solver."""
    program = str(Path(sys.executable).with_name("photonic-essl"))
    out = model.parent / "explored.h5"
    process = subprocess.Popen(
        [program, "explore", "--model", model, "--port", "0", "--out", out], stdout=subprocess.PIPE, text=True
    )
    url = re.search(r"http://\S+", process.stdout.readline())[0]
    yield process, url, out
    solvers = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    assert solvers
    assert psutil.wait_procs(solvers, SECONDS)[1] == []


@pytest.fixture(scope="module")
def page(explorer):
    """The open page, with the errors that its console shows and the hosts that it asks."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 1400, "height": 860})
        page.set_default_timeout(1000 * SECONDS)
        page.mistakes, page.hosts = [], set()
        page.on("console", lambda message: message.type == "error" and page.mistakes.append(message.text))
        page.on("pageerror", lambda error: page.mistakes.append(str(error)))
        page.on("request", lambda request: page.hosts.add(urlsplit(request.url).hostname))
        page.goto(explorer[1])
        solved(page)
        yield page
        browser.close()


def solved(page):
    """Wait until the newest cell is solved; return both curves."""
    playwright.expect(page.locator("#save")).to_be_enabled()
    return [page.get_attribute(curve, "d") for curve in ("#predicted", "#solved")]


def test_choose_move_paint_save_and_read_back(page, explorer, model):
    curves = [solved(page)]
    page.select_option("#family", "rods")
    curves.append(solved(page))
    page.locator("#parameter-epsilon_outside").fill("1.5")
    curves.append(solved(page))
    page.locator("#brush").fill("13.5")
    page.locator("#cell").click(position={"x": 180, "y": 170})
    curves.append(solved(page))
    for before, after in itertools.pairwise(curves):
        assert before[0] != after[0], "the prediction did not change"
        assert before[1] != after[1], "the solution did not change"
    page.click("#save")
    playwright.expect(page.locator("#message")).to_contain_text("Saved as cell 0 of")
    page.click("#unpaint")
    solved(page)
    page.click("#save")
    playwright.expect(page.locator("#message")).to_contain_text("Saved as cell 1 of")

    with data_gen.open_dataset(explorer[2]) as saved:
        saved.load()
    painted, bare = saved["epsilon"].values
    assert np.unique(bare).min() == 1.5
    assert set(painted[painted != bare]) == {13.5}
    assert (painted != bare).sum() == 9
    assert saved["drawn_from"].values.tolist() == [b"rods", b"rods"]
    assert saved["changed"].values.tolist() == [1, 1]
    label = data_gen.label(painted)
    np.testing.assert_allclose(saved["dos"][0], label["dos"], atol=2e-3)
    on_page = page.evaluate("densities")
    np.testing.assert_allclose(on_page["solved"], saved["dos"][1, : len(on_page["solved"])], atol=1e-5)
    np.testing.assert_allclose(on_page["predicted"], load_regressor(model).predict(bare), atol=1e-4)
    assert page.evaluate("solution.off") == pytest.approx(
        relative_error(on_page["predicted"], saved["dos"][1]), rel=1e-3
    )
    wavevectors = saved["wavevector"].values[[0, 20, 40]]
    bands = data_gen.solve(painted, wavevectors, solver="rbme")["frequency"]
    np.testing.assert_allclose(saved["band_frequency"][0, [0, 20, 40]], bands, rtol=1e-4, atol=1e-6)


def test_page_says_what_the_model_was_trained_on(page):
    assert "TM, trained on family blob; " in page.text_content("#model")
    assert "90 % of true values lie in its interval" in page.text_content("#model")


def test_range_of_the_prediction_is_the_interval_of_the_model(page, model):
    page.select_option("#family", "p1")
    solved(page)
    interval = load_regressor(model).predict_interval(np.array(page.evaluate("shown.epsilon")))
    np.testing.assert_allclose(page.evaluate("shown.lowest"), interval["lowest"], atol=1e-3)
    np.testing.assert_allclose(page.evaluate("shown.highest"), interval["highest"], atol=1e-3)


def test_prediction_lies_within_the_range_that_is_drawn(page):
    page.select_option("#family", "gpm")
    for name, value in (("epsilon_inside", 20), ("epsilon_outside", 1), ("filling", 0.2)):
        page.locator(f"#parameter-{name}").fill(str(value))  # so high a contrast changes the scale of the axis
    predicted, _ = solved(page)
    assert page.evaluate("most") > 8
    spread = drawn(page.get_attribute("#spread", "d"))[:, 0]
    lowest, highest = spread[:400], spread[:399:-1]
    assert (drawn(predicted)[:, 0] >= lowest).all()
    assert (drawn(predicted)[:, 0] <= highest).all()
    assert (highest > lowest).any()


def drawn(path):
    """Return the points of a path of straight lines, `(point, 2)`."""
    return np.array(re.findall(r"-?[\d.]+", path), dtype=float).reshape(-1, 2)


def test_cell_of_another_lattice_is_solved_but_not_predicted(page):
    page.select_option("#family", "level-set")
    page.select_option("#plane_group", "p6mm")
    predicted, curve = solved(page)
    assert not predicted
    assert curve
    assert page.evaluate("densities.empty[499]") == pytest.approx(2 * np.pi * 1.2 * 0.75**0.5)
    assert page.text_content("#note").startswith(
        "No prediction: the model was trained on the lattice [[1.0, 0.0], [0.0, 1.0]], the cells"
    )
    assert page.text_content("#labels") == "ΓMKΓ"
    page.select_option("#plane_group", "pm")
    solved(page)
    assert page.text_content("#labels") == "ΓXSYΓ"


def test_gaps_of_rods_are_the_textbook_ones(page):
    page.select_option("#family", "rods")
    for name, value in (("epsilon_inside", 8.9), ("epsilon_outside", 1), ("radius", 0.2)):
        page.locator(f"#parameter-{name}").fill(str(value))
    solved(page)
    lower, upper = map(float, re.search(r": ([\d.]+) – ([\d.]+)", page.text_content("#numbers")).groups())
    assert lower == pytest.approx(0.322, rel=0.01)
    assert upper == pytest.approx(0.443, rel=0.01)


@pytest.mark.slow
@pytest.mark.mpb
def test_mpb_on_the_button_agrees(page):
    page.select_option("#family", "rods")
    solved(page)
    page.click("#compare")
    message = page.locator("#message")
    playwright.expect(message).to_contain_text("its bands are within")
    assert float(re.search(r"within ([\d.e-]+)", message.text_content())[1]) < 1e-4
    curves = page.evaluate("densities")
    covered = min(len(curves["solved"]), len(curves["reference"]))
    difference = np.subtract(curves["solved"][:covered], curves["reference"][:covered])
    assert np.abs(difference).sum() < 0.02 * np.sum(curves["solved"])


@pytest.mark.slow
def test_time_from_slider_to_curves(page, capsys):
    """Seconds are written to the log; what is asserted is that the prediction is drawn first."""
    page.select_option("#family", "blob")
    solved(page)
    times = {"draw": [], "solve": []}
    for move in range(MOVES):
        page.locator("#parameter-epsilon_inside").fill(str(5 + move))
        solved(page)
        page.wait_for_timeout(50)
        latency = page.evaluate("latency")
        assert 0 < latency["draw"] < latency["solve"]
        for task, all_times in times.items():
            all_times.append(latency[task])
    with capsys.disabled():
        for word, task in (("predicted", "draw"), ("solved", "solve")):
            median, worst = np.median(times[task]), max(times[task])
            print(f"\nfrom slider to {word} curve: median {median:.0f} ms, worst {worst:.0f} ms")


def test_all_of_that_without_an_error_and_without_leaving_the_machine(page):
    assert page.mistakes == []
    assert page.hosts == {"127.0.0.1"}


def test_death_of_a_solver_is_one_line_and_the_next_cell_is_solved(page, explorer):
    min(psutil.Process(explorer[0].pid).children(), key=lambda child: child.pid).kill()
    page.locator("#seed").fill("5")
    message = page.locator("#message.error")
    playwright.expect(message).to_have_text("the solver's process died (status -9); a new one has started: try again.")
    page.locator("#seed").fill("6")
    assert all(solved(page))
