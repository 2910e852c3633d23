import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr

import data_gen
from data_gen import generation
from data_gen.cli import COMMANDS
from data_gen.command_line import run
from data_gen.unit_cells import unit_cell_family
from data_gen.verification import verify
from photonic_essl.data import load_cells

SMALL = {"k_points": 5, "bands": 12, "workers": 1}
RECTANGULAR = [[1.0, 0.0], [0.0, 1.5]]


def ellipses(count, grid=(48, 72), seed=0):
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(*((np.arange(points) + 0.5) / points - 0.5 for points in grid), indexing="ij")
    radii, epsilon = random.uniform(0.1, 0.4, (2, count, 1, 1)), random.uniform(2, 12, (count, 1, 1))
    return np.where((x / radii[0]) ** 2 + (y / radii[1]) ** 2 < 1, epsilon, 1.0)


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "cells.npy", ellipses(3))
    return tmp_path / "cells.npy"


def test_own_cells_are_labelled_as_label_does_and_read_by_all(source, tmp_path):
    out, settings = tmp_path / "own.h5", {"polarization": "te", "k_points": 5, "bands": 12, "lattice": RECTANGULAR}
    data_gen.import_cells(source, out=out, name="ellipses", resolution=16, workers=1, **settings)
    expected = data_gen.label(ellipses(3), resolution=16, **settings)
    with data_gen.open_dataset(out) as file:
        assert file["epsilon"].shape == (3, 16, 24)
        np.testing.assert_allclose(file["epsilon"], ellipses(3).reshape(3, 16, 3, 24, 3).mean((2, 4)), rtol=1e-6)
        np.testing.assert_allclose(file["dos"], expected["dos"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(file["dos_error"], expected["dos_error"], rtol=1e-5)
        assert (file.attrs["family"], file.attrs["fine_samples_per_pixel"]) == ("ellipses", 3)
    cells = load_cells(out, labelled=True)
    assert (cells.grid, cells.lattice.tolist(), cells.attributes["polarization"]) == ((16, 24), RECTANGULAR, "te")


def test_cells_of_a_family_get_the_label_that_they_are_generated_with(tmp_path):
    fine = np.stack([unit_cell_family("gpm").draw(3, index, 16).epsilon for index in range(2)])
    np.save(tmp_path / "gpm.npy", fine)
    data_gen.import_cells(tmp_path / "gpm.npy", out=tmp_path / "own.h5", resolution=16, **SMALL)
    data_gen.generate("gpm", out=tmp_path / "gpm.h5", samples=2, seed=3, resolution=16, **SMALL)
    with data_gen.open_dataset(tmp_path / "own.h5") as own, data_gen.open_dataset(tmp_path / "gpm.h5") as drawn:
        np.testing.assert_array_equal(own["epsilon"], drawn["epsilon"])
        np.testing.assert_allclose(own["dos"], drawn["dos"], rtol=1e-4, atol=1e-4)  # without the mirror's help


def test_one_cell_without_labels(tmp_path):
    np.save(tmp_path / "cell.npy", ellipses(1)[0])
    data_gen.import_cells(tmp_path / "cell.npy", out=tmp_path / "own.h5", unlabelled=True)
    with data_gen.open_dataset(tmp_path / "own.h5") as file:
        assert file["epsilon"].shape == (1, 48, 72)
        assert "dos" not in file


@pytest.mark.slow
def test_stopped_and_started_again_it_is_the_same_file(tmp_path):
    np.save(tmp_path / "cells.npy", ellipses(24, (8, 12)))
    words = ["import-cells", tmp_path / "cells.npy", "--k-points", "5", "--bands", "12", "--workers", "1"]
    command = [sys.executable, "-m", "data_gen.cli", *words, "--out", tmp_path / "killed.h5"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("killed.h5.part/*.shard")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.h5").exists()
    for name in ("killed.h5", "calm.h5"):
        assert run("data-gen", COMMANDS, [*map(str, words), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "calm.h5").read_bytes()


def test_the_command_in_the_file_makes_the_same_file(source, tmp_path, monkeypatch):
    data_gen.import_cells(source, out=tmp_path / "a.h5", lattice=RECTANGULAR, resolution=8, **SMALL)
    with data_gen.open_dataset(tmp_path / "a.h5") as file:
        program, *words = shlex.split(file.attrs["command"])
    monkeypatch.chdir(tmp_path)
    assert run(program, COMMANDS, [*words, "--out", "b.h5"]) == 0
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path, monkeypatch):
    source, out, options = tmp_path / "cells.npy", tmp_path / "own.h5", {"k_points": 3, "bands": 8, "workers": 1}
    np.save(source, ellipses(20, (8, 12)))
    whole, calls = generation.label_cells, []

    def changed(*arguments, **settings):
        calls.append(None)
        if len(calls) == 2:
            np.save(tmp_path / "other.npy", ellipses(20, (8, 12), seed=1))
            (tmp_path / "other.npy").rename(source)
        return whole(*arguments, **settings)

    monkeypatch.setattr(generation, "label_cells", changed)
    with pytest.raises(OSError, match="cells 0 to 7 were changed meanwhile; run it again"):
        data_gen.import_cells(source, out=out, **options)
    assert not out.exists()
    np.save(source, ellipses(20, (8, 12)))
    with pytest.raises(OSError, match="cells 16 to 19 were changed meanwhile"):
        data_gen.import_cells(source, out=out, **options)
    data_gen.import_cells(source, out=out, **options)
    data_gen.import_cells(source, out=tmp_path / "calm.h5", **options)
    assert out.read_bytes() == (tmp_path / "calm.h5").read_bytes()


def test_numbers_of_numpys_are_numbers(tmp_path):
    np.save(tmp_path / "cells.npy", ellipses(2).astype(np.longdouble))
    data_gen.import_cells(tmp_path / "cells.npy", out=tmp_path / "own.h5", resolution=np.int64(16), **SMALL)
    with data_gen.open_dataset(tmp_path / "own.h5") as file:
        assert file.attrs["resolution"] == 16


def test_other_cells_in_the_same_file_are_another_run(source, tmp_path):
    data_gen.import_cells(source, out=tmp_path / "a.h5", unlabelled=True)
    np.save(source, ellipses(3, seed=1))
    with pytest.raises(ValueError, match=r"a\.h5 exists, and was made from other cells; give another `out`"):
        data_gen.import_cells(source, out=tmp_path / "a.h5", unlabelled=True)


@pytest.mark.mpb
def test_own_cells_agree_with_mpb(source, tmp_path):
    out = tmp_path / "own.h5"
    data_gen.import_cells(source, out=out, lattice=RECTANGULAR, resolution=16, k_points=9, bands=8, workers=1)
    assert 0 < verify(out, samples=1, source=source)["frequency largest"] < 1e-4
    with pytest.raises(ValueError, match=r"`source` must name the \.npy file that these cells are from"):
        verify(out, samples=1)
    np.save(source, ellipses(3, seed=1))
    with pytest.raises(ValueError, match="is not what these cells are from, or was changed"):
        verify(out, samples=1, source=source)


UPRIGHT = ["--lattice", "[[1, 0], [0, 1.5]]", "--resolution", "16"]


def test_what_is_hardly_meant_is_warned_of(tmp_path):
    np.save(tmp_path / "cells.npy", ellipses(3))
    with pytest.warns(UserWarning, match=r"48 and 72 samples along them: are the axes of the array \(sample, x, y\)\?"):
        data_gen.import_cells(tmp_path / "cells.npy", out=tmp_path / "own.h5", resolution=16, unlabelled=True)
    np.save(tmp_path / "coarse.npy", ellipses(2, (8, 8)))
    with pytest.warns(UserWarning, match="one sample a pixel: labels are those of crystals whose interfaces are as"):
        data_gen.import_cells(tmp_path / "coarse.npy", out=tmp_path / "coarse.h5", k_points=3, bands=4, workers=1)


def spoilt(value):
    cells = ellipses(3)
    cells[1, 3, 4] = value
    return cells


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        *(
            (lambda value=value: spoilt(value), UPRIGHT, "in single precision, which it is not in cell 1")
            for value in (-1.0, np.nan, 1e60, 1e-60)
        ),
        (lambda: ellipses(3) + 0j, [], "is no .npy file of real numbers: it holds complex128"),
        (lambda: np.ones(5), [], "must hold one cell (x, y) or several (sample, x, y), got shape (5,)"),
        (lambda: np.ones((0, 8, 8)), [], "holds no cells"),
        (lambda: np.array([[object()]]), [], "is no .npy file of numbers"),
        (lambda: ellipses(3), ["--resolution", "7"], "`resolution` must divide the fine grid 48 x 72"),
        (lambda: ellipses(3), ["--lattice", "[[1, 0], [2, 0]]"], "must be two finite, independent vectors"),
        (lambda: ellipses(3), ["--lattice", "triangular"], "(the triangular lattice is called hexagonal here)"),
        (lambda: ellipses(3), ["--unlabelled", "--bands", "9"], "`unlabelled` cells have no use for `bands`"),
        (lambda: ellipses(3, (44, 44)), ["--solver", "mpb", "--resolution", "22"], "MPB needs a grid of even sides"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_input_is_one_line_and_leaves_nothing(content, words, message, tmp_path, capsys):
    np.save(tmp_path / "cells.npy", content())
    source, out = str(tmp_path / "cells.npy"), str(tmp_path / "own.h5")
    assert run("data-gen", COMMANDS, ["import-cells", source, "--out", out, *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(re.escape(message), error)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.npy"]
    assert run("data-gen", COMMANDS, ["import-cells", source, "--out", source]) == 2
    assert "`out` must be another file than `source`" in capsys.readouterr().err
    assert run("data-gen", COMMANDS, ["info", source]) == 2
    assert "is an array, not a dataset file; `data-gen import-cells` makes one of it" in capsys.readouterr().err
    assert run("data-gen", COMMANDS, ["import-cells", str(tmp_path / "none.npy"), "--out", out]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_verify_takes_no_source_for_a_family(tmp_path):
    data_gen.generate("rods", out=tmp_path / "rods.h5", samples=1, resolution=8, **SMALL)
    with pytest.raises(ValueError, match="`source` is for cells of one's own, these are of family rods"):
        verify(tmp_path / "rods.h5", samples=1, source=tmp_path / "cells.npy")
    with xr.load_dataset(tmp_path / "rods.h5") as cells:
        assert "source" not in cells.attrs
