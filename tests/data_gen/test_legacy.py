import re

import h5py
import numpy as np
import pytest

import data_gen
from data_gen.cli import COMMANDS
from data_gen.command_line import run
from data_gen.dataset import write_dataset
from data_gen.legacy import import_legacy
from data_gen.unit_cells import unit_cell_family

from .test_dataset import arrays, kind


def run_data_gen(*words):
    return run("data-gen", COMMANDS, [str(word) for word in words])


@pytest.fixture
def published(tmp_path):
    """A file as the published pipeline writes it, with a gap in its numbers."""
    path = tmp_path / "mf1-sg3-tm.h5"
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["universal/rvecs"] = np.eye(2)
        for number in (1, 2, 4):
            epsilon = generator.uniform(1, 20, (32, 32))
            file[f"unitcell/mpbepsimage/{number}"] = epsilon
            file[f"unitcell/epsavg/{number}"] = epsilon.mean()
            file[f"unitcell/epsin/{number}"] = 3.0
            file[f"unitcell/uccoefs/{number}"] = generator.normal(size=9) + 1j
            file[f"mpbcal/efreq/{number}"] = generator.uniform(size=(625, 10))
            file[f"mpbcal/DOS/{number}"] = generator.uniform(size=500)
    return path


def test_import_divides_by_the_index_and_keeps_the_numbers(published, tmp_path):
    out = tmp_path / "a.h5"
    assert run_data_gen("import-legacy", published, "--out", out) == 0
    with data_gen.open_dataset(out) as dataset, h5py.File(published) as file:
        assert dataset["legacy_number"].values.tolist() == [1, 2, 4]
        assert dataset.attrs["family"] == "gpm"
        index = np.sqrt(file["unitcell/epsavg/4"][()])
        np.testing.assert_allclose(dataset["dos"][2], file["mpbcal/DOS/4"][()] / index, rtol=1e-6)
        np.testing.assert_allclose(dataset["epsilon"][1], file["unitcell/mpbepsimage/2"], rtol=1e-6)


@pytest.mark.parametrize("labelled", [True, False])
def test_round_trip(labelled, tmp_path):
    first, legacy, again = (tmp_path / name for name in ("first.h5", "legacy.h5", "again.h5"))
    options = ["--k-points", 5] if labelled else ["--unlabelled"]
    run_data_gen("generate", "gpm", "--out", first, "--samples", 3, "--workers", 1, *options)
    assert run_data_gen("export-legacy", first, "--out", legacy) == 0
    assert run_data_gen("import-legacy", legacy, "--out", again) == 0
    with data_gen.open_dataset(first) as a, data_gen.open_dataset(again) as b:
        assert ("dos" in b) == labelled
        for name in ("epsilon", "epsilon_mean", "filling", "level", *(["dos"] if labelled else [])):
            np.testing.assert_allclose(a[name], b[name], rtol=2e-7)
    with h5py.File(legacy) as file:
        assert ("mpbcal" in file) == labelled
        assert sorted(file["unitcell/uccoefs"]) == ["1", "2", "3"]


def test_export_into_a_folder_takes_the_trainers_name(tmp_path):
    run_data_gen("generate", "blob", "--out", tmp_path / "a.h5", "--samples", 1, "--unlabelled", "--workers", 1)
    assert run_data_gen("export-legacy", tmp_path / "a.h5", "--out", tmp_path) == 0
    assert (tmp_path / "sq-blob-ul-15k-tm.h5").exists()


def test_export_writes_over_nothing(tmp_path, capsys):
    file = tmp_path / "a.h5"
    run_data_gen("generate", "blob", "--out", file, "--samples", 1, "--unlabelled", "--workers", 1)
    before = file.read_bytes()
    assert run_data_gen("export-legacy", file, "--out", file) == 2
    assert "a.h5 is there already; remove it first" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_place_that_is_not_there_is_named(published, tmp_path, capsys):
    assert run_data_gen("import-legacy", published, "--out", tmp_path / "none" / "a.h5") == 2
    assert f"No such file or directory: '{tmp_path}/none/a.h5'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "cannot be read as HDF5"),
        (lambda path: _edit(path, lambda file: file.pop("unitcell")), "not of the published layout"),
        (lambda path: _edit(path, lambda file: file["mpbcal/DOS"].pop("2")), "mpbcal/DOS/2 is missing or damaged"),
        (
            lambda path: _edit(path, lambda file: _replace(file, "mpbcal/DOS/2", np.ones(7))),
            "must hold numbers of shape",
        ),
        (lambda path: _edit(path, lambda file: _replace(file, "mpbcal/DOS/2", np.full(500, np.nan))), "not finite"),
        (lambda path: _edit(path, lambda file: _replace(file, "unitcell/mpbepsimage/2", b"x")), "must hold numbers"),
        (
            lambda path: _edit(path, lambda file: _replace(file, "unitcell/epsavg/4", 2.0)),
            "cell 4 .* mean of its image",
        ),
        (lambda path: _edit(path, _outside_of_its_materials), "of cell 1 it does not hold that its image lies between"),
        (lambda path: _edit(path, _of_another_filling), "of cell 1 it does not hold that epsavg is the mean of epsin"),
        (lambda path: _edit(path, lambda file: _replace(file, "mpbcal/DOS/2", -np.ones(500))), "DOS is not negative"),
        (
            lambda path: _edit(path, lambda file: _replace(file, "mpbcal/DOS/2", np.full(500, 1e9))),
            "states of ten bands",
        ),
        (lambda path: _edit(path, lambda file: file.move("unitcell/mpbepsimage/4", "unitcell/mpbepsimage/²")), "holds"),
        (lambda path: _edit(path, _of_terabytes), "must be images"),
        (lambda path: _edit(path, lambda file: file["unitcell/mpbepsimage"].move("4", "four")), "holds 'four'"),
        (
            lambda path: _edit(path, lambda file: _replace(file, "unitcell/mpbepsimage/2", np.zeros((32, 32)))),
            "its images and their means must be positive",
        ),
        (
            lambda path: _edit(path, lambda file: file.create_dataset("unitcell/epsout/4", data=300.0)),
            "unitcell/epsout/1 is missing or damaged",
        ),
        (lambda path: path.unlink(), "no file at"),
    ],
)
def test_damaged_and_foreign_files_get_one_line(published, tmp_path, capsys, damage, message):
    damage(published)
    assert run_data_gen("import-legacy", published, "--out", tmp_path / "a.h5") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not (tmp_path / "a.h5").exists()


def _outside_of_its_materials(file):
    file["unitcell/epsout/1"], file["unitcell/epsout/2"], file["unitcell/epsout/4"] = 2.0, 2.0, 2.0


def _of_another_filling(file):
    for number in (1, 2, 4):
        _replace(file, f"unitcell/epsin/{number}", 20.0)
        file[f"unitcell/epsout/{number}"], file[f"unitcell/filling/{number}"] = 1.0, 0.9


def _of_terabytes(file):
    del file["unitcell/mpbepsimage/1"]
    file.create_dataset("unitcell/mpbepsimage/1", (2**20, 2**20), "f8", chunks=(64, 64))


def test_a_file_as_the_published_program_writes_it_is_consistent(tmp_path):
    """Single precision, ε of the boundary's pixels averaged by MPB's rule, `filling` of what is outside."""
    path, generator = tmp_path / "published.h5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(1, 21):
            inside, outside = generator.uniform(1, 20, 2)
            cell = unit_cell_family("gpm").draw(0, number, 32).epsilon
            part = (cell == cell.max()).reshape(32, 9, 32, 9).mean((1, 3))
            inverse = part / inside + (1 - part) / outside
            mixed = part * inside + (1 - part) * outside
            averages = {
                "mpbepsimage": 3 / (inverse + 2 / mixed), "epsavg": mixed.mean(), "epsin": inside, "epsout": outside,
                "filling": 1 - part.mean(), "uclevel": 0.3,
            }  # fmt: skip
            for name, value in averages.items():
                file.create_dataset(f"unitcell/{name}/{number}", dtype="f", data=value)
    import_legacy(path, out=tmp_path / "a.h5")
    with data_gen.open_dataset(tmp_path / "a.h5") as dataset:
        assert dataset.sizes["sample"] == 20


def _edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def _replace(file, name, value):
    del file[name]
    file[name] = value


def test_a_file_that_is_there_is_not_written_over(published, capsys):
    before = published.read_bytes()
    assert run_data_gen("import-legacy", published, "--out", published) == 2
    assert "is there already; remove it first" in capsys.readouterr().err
    assert published.read_bytes() == before


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            "blob",
            {"lattice": [1.0, 0.0, 0.0, 1.5]},
            "the published layout is for the square lattice, got [1. 0. 0. 1.5]",
        ),
        ("blob", {"polarization": "te"}, "the published layout holds labels for TM, these are for te"),
        ("blob", {"frequency": np.linspace(0, 0.9, 500)}, "needs labels on its 500 scaled frequencies, 0 … 1.2"),
        ("rods", {}, "the published trainer knows no family rods; give `out` a file name"),
    ],
)
def test_what_the_published_layout_cannot_hold_is_refused(family, change, message, tmp_path, capsys):
    file, settings = tmp_path / "a.h5", kind(family=family)
    settings["fixed"] |= {name: value for name, value in change.items() if name == "frequency"}
    settings["attributes"] |= {name: value for name, value in change.items() if name != "frequency"}
    write_dataset(file, [arrays(2)], samples=2, **settings)
    assert run_data_gen("export-legacy", file, "--out", tmp_path) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]
