import base64
import json
import re
import shutil

import numpy as np
import pytest
import xarray as xr

from photonic_essl import cli
from photonic_essl.finetuning import finetune
from photonic_essl.gallery import _path, placement, shown_cells
from photonic_essl.metrics import relative_errors
from photonic_essl.pretraining import pretrain
from photonic_essl.records import read_record, read_records, write_record
from photonic_essl.regression import load_regressor
from photonic_essl.reporting import _table, report

from .conftest import write_cells

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TABLE = "recipe,labels,error\nsupervised,50,0.9\nsupervised,100,10.1\nsupervised,200,2.5\n"


@pytest.fixture(scope="module")
def folder(unlabelled, labelled, tmp_path_factory):
    """A folder of a pre-training, a fine-tuning from it, their test file, and a table."""
    folder = tmp_path_factory.mktemp("report") / "<study & co>"
    folder.mkdir()
    shutil.copy(unlabelled, folder / "cells.h5")
    pretrain(folder / "cells.h5", folder / "encoder", epochs=1, batch_size=8, progress=False)
    finetune(labelled, folder / "model", pretrained=folder / "encoder", labels=12, epochs=2, progress=False)
    write_cells(folder / "test.h5", 12, seed=3)
    (folder / "table.csv").write_text(TABLE)
    return folder


@pytest.fixture(scope="module")
def written(folder):
    report(folder, out=folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def errors(folder):
    with xr.open_dataset(folder / "test.h5", engine="h5netcdf") as test:
        return 100 * relative_errors(load_regressor(folder / "model").predict(test["epsilon"]), test["dos"])


@pytest.fixture
def page(written):
    """The report in a browser, which must log no error and ask for nothing but the file."""
    if CHROMIUM is None:
        pytest.skip("needs the browser `chromium` (apt install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="needs the package `playwright`")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        troubles, asked = [], []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(written.as_uri())
        yield page
        browser.close()
    assert troubles == []
    assert [url for url in asked if not url.startswith("data:")] == [written.as_uri()]


def test_cells_are_sorted_filtered_and_opened_in_a_browser(page, errors):
    def shown(name):
        return [float(card.get_attribute(f"data-{name}")) for card in page.locator(".card:visible").all()]

    ranking = np.sort(errors)
    assert shown("error") == pytest.approx(ranking[::-1], rel=1e-4)
    page.uncheck("#descending")
    assert shown("error") == pytest.approx(ranking, rel=1e-4)
    assert [page.locator(".card .place").nth(i).inner_text() for i in (0, 6, 11)] == ["best", "median", "worst"]
    page.select_option("#sort", "contrast")
    assert shown("contrast") == sorted(shown("contrast"))
    assert shown("error") != sorted(shown("error"))

    limit = float(f"{ranking[4]:.4g}")
    page.fill("#to", str(limit))
    assert len(shown("error")) == (ranking <= limit).sum()
    assert max(shown("error")) <= limit
    assert page.inner_text("#count") == f"{(ranking <= limit).sum()} of 12 shown"
    page.fill("#from", str(limit))
    page.select_option("#filter", "number")
    assert all(number == limit for number in shown("number"))
    page.click("text=Show all")
    page.wait_for_function("document.getElementById('count').value.startsWith('12 of 12')")

    worst = page.locator(".card:visible").first
    number = worst.get_attribute("data-number")
    assert not page.locator("#large").is_visible()
    worst.click()
    large = page.locator("#large")
    assert large.is_visible()
    assert f"cell {number}" in large.inner_text()
    assert (
        "scaled frequency ωn (2πc/a)" in large.locator("svg.dos").text_content() + page.locator("#frame").text_content()
    )
    assert large.locator("svg.cell").bounding_box()["width"] > 2 * worst.locator("svg.cell").bounding_box()["width"]
    page.click("#close")
    assert not large.is_visible()


def test_tables_are_sorted_as_numbers_in_a_browser(page):
    table = page.locator("section.tables table")
    assert table.locator("th").all_inner_texts() == ["labels", "error"]  # the recipe is the same in all rows
    for expected in (["0.9", "2.5", "10.1"], ["10.1", "2.5", "0.9"]):
        table.locator("th", has_text="error").click()
        assert table.locator("td:nth-child(2)").all_inner_texts() == expected


def test_report_says_what_was_run_and_on_what(folder, written, errors):
    text = written.read_text()
    record = json.loads((folder / "model" / "run.json").read_text())
    for fact in (record["settings"]["data"], record["sittings"][0]["versions"]["torch"], "e-simclr", "table.csv"):
        assert fact in text
    assert f"<td>{errors.mean():.3f}</td><td>{np.median(errors):.3f}</td><td>{errors.max():.3f}</td>" in text
    assert "<h1>&lt;study &amp; co&gt;</h1>" in text
    assert "The file is not where it was" not in text


def test_run_without_test_cells_has_curves_but_no_gallery(folder, tmp_path):
    cli.run(
        "photonic-essl", cli.COMMANDS, ["report", "--run", str(folder / "encoder"), "--out", str(tmp_path / "a.html")]
    )
    text = (tmp_path / "a.html").read_text()
    assert text.count('alt="training curve"') == 4
    pictures = [base64.b64decode(found).decode() for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)]
    assert sum("by chance" in picture for picture in pictures) == 1
    assert "<dt>prediction accuracy by chance</dt><dd>0.25</dd>" in text
    assert "give a labelled file by --data" in text
    assert 'id="gallery"' not in text


def test_representation_of_a_pretraining_needs_no_labels(folder, unlabelled, tmp_path):
    report(folder / "encoder", out=tmp_path / "a.html", data=unlabelled)
    assert (tmp_path / "a.html").read_text().count("cells on two principal components") == 2


def test_image_runs_beside_have_no_representation_of_cells(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "both")
    record = read_record(folder / "encoder" / "run.json")
    record["settings"] = {name: value for name, value in record["settings"].items() if name != "encoder"}
    (tmp_path / "both" / "images").mkdir()
    write_record(tmp_path / "both" / "images" / "run.json", record | {"command": "vision finetune"})
    report(tmp_path / "both", out=tmp_path / "a.html")
    assert "vision finetune" in (tmp_path / "a.html").read_text()


def test_data_that_are_gone_are_called_so(folder, tmp_path):
    shutil.copytree(folder / "encoder", tmp_path / "encoder")
    record = read_record(tmp_path / "encoder" / "run.json")
    record["settings"]["data"] = "0" * 16
    write_record(tmp_path / "encoder" / "run.json", record)
    report(tmp_path / "encoder", out=tmp_path / "a.html")
    assert "The file is not where it was, or holds other cells now" in (tmp_path / "a.html").read_text()


def test_the_code_of_an_encoder_runs_only_if_the_user_names_it(labelled, tmp_path):
    factory = "tests.photonic_essl.test_encoders:own_network"
    finetune(labelled, tmp_path / "model", encoder=factory, labels=12, epochs=1, progress=False)
    test, out = write_cells(tmp_path / "test.h5", 5, seed=3), tmp_path / "a.html"
    with pytest.raises(ValueError, match="whose code runs only if `encoder` names it"):
        report(tmp_path / "model", out=out, data=test)
    report(tmp_path / "model", out=out, data=test, encoder=factory)
    assert out.exists()


def test_cells_of_another_polarization_are_refused(folder, tmp_path):
    test = write_cells(tmp_path / "te.h5", 5, polarization="te")
    with pytest.raises(ValueError, match="the model predicts TM, the cells are for TE"):
        report(folder / "model", out=tmp_path / "a.html", data=test)


def test_bad_input_is_one_line(folder, unlabelled, tmp_path, capsys):
    def refused(*options):
        assert cli.run("photonic-essl", cli.COMMANDS, ["report", *map(str, options)]) == 2
        return capsys.readouterr().err

    out = tmp_path / "a.html"
    assert "holds none: there is no run.json" in refused("--run", tmp_path, "--out", out)
    assert "there is no folder" in refused("--run", folder, "--out", tmp_path / "no" / "a.html")
    assert "must end in .html" in refused("--run", folder, "--out", unlabelled)
    assert "is unlabelled" in refused("--run", folder, "--out", out, "--data", unlabelled)
    assert "must be at least 3" in refused("--run", folder, "--out", out, "--cells", 2)
    (tmp_path / "run.json").write_text("{")
    assert "run.json is damaged" in refused("--run", tmp_path, "--out", out)
    (tmp_path / "run.json").write_text("{}")
    assert "run.json is damaged, or no record of a run" in refused("--run", tmp_path, "--out", out)
    record = (folder / "model" / "run.json").read_text()
    (tmp_path / "run.json").write_text(record.replace('"labels": ', '"labels": 1'))
    assert "run.json is damaged: it is not what was written" in refused("--run", tmp_path, "--out", out)
    assert not out.exists()


def test_runs_are_those_of_the_folder_or_else_of_the_folders_in_it(folder):
    assert [path.name for path in read_records(folder)] == ["encoder", "model"]
    assert list(read_records(folder / "model")) == [folder / "model"]


@pytest.mark.parametrize(("cells", "count"), [(1000, 30), (31, 30), (10, 30), (50, 3)])
def test_shown_cells_hold_best_median_and_worst(cells, count):
    errors = np.random.default_rng(0).permutation(cells).astype(float)
    shown = errors[shown_cells(errors, count)]
    assert len(shown) == len(set(shown)) <= count
    assert (np.diff(shown) > 0).all()
    assert {0, cells // 2, cells - 1} <= set(shown)


def test_paths_are_within_half_a_step_of_the_curve_everywhere():
    depth = np.random.default_rng(0).uniform(size=400)
    start, steps = re.fullmatch(r"M0 (\d+)l(.*)", _path(depth)).groups()
    drawn = int(start) + np.concatenate([[0], np.cumsum([int(step) for step in steps.split()[1::2]])])
    np.testing.assert_allclose(drawn, 1000 * depth, atol=0.5)


def test_images_are_placed_on_the_lattice():
    lattice = np.array([[1.0, 0.0], [-0.5, np.sqrt(3) / 2]])
    a, b, c, d, e, f = map(float, placement(lattice)[0].split())
    for u, v in np.random.default_rng(0).uniform(size=(5, 2)):  # to the right and upwards from the lower left corner
        x, y = (u - 0.5, v - 0.5) @ lattice
        assert (a * u + c * (1 - v) + e, -(b * u + d * (1 - v) + f)) == pytest.approx((x, y), abs=1e-5)


def test_pictures_are_whole(written):
    pictures = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)"', written.read_text())
    assert len(pictures) == 1 + 3 + 4 + 2
    assert all(base64.b64decode(picture).rstrip().endswith(b"</svg>") for picture in pictures)


def test_a_table_with_rows_of_different_lengths_is_refused(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match=r"table\.csv is not a table: its rows are of different lengths"):
        _table(tmp_path / "table.csv")
