import pytest
import xarray as xr

from data_gen.generation import generate
from data_gen.verification import _report, tolerances, verify


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    file = tmp_path_factory.mktemp("verification") / "a.h5"
    generate("rods", out=file, samples=2, resolution=16, k_points=9, bands=6, workers=1)
    return file


@pytest.mark.mpb
def test_a_file_agrees_with_mpb_and_a_changed_label_does_not(labelled, tmp_path, capsys):
    found = verify(labelled, samples=1)
    assert 0 < found["frequency largest"] < 1e-4
    assert "verified: 1 cells" in capsys.readouterr().out
    changed = tmp_path / "changed.h5"
    with xr.load_dataset(labelled) as cells:
        cells["dos"][:, 200:210] *= 1.1
        cells.to_netcdf(changed, engine="h5netcdf")
    with pytest.raises(RuntimeError, match="beyond tolerance in label over 1 cells"):
        verify(changed, samples=1)
    assert "BEYOND TOLERANCE" in capsys.readouterr().out


def test_what_is_not_a_number_is_beyond_tolerance():
    with pytest.raises(RuntimeError, match="beyond tolerance in label"):
        _report([{name: (0.0, float("nan") if name == "label" else 0.0) for name in tolerances("tm")}], "tm")


def test_what_cannot_be_verified_is_refused(labelled, tmp_path):
    with pytest.raises(ValueError, match=r"`samples` must be from 1 to the 2 solved cells of .*, got 3"):
        verify(labelled, samples=3)
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
        verify(labelled, samples=1, seed=-1)
    with xr.load_dataset(labelled) as cells:
        foreign = {"drawn.h5": {"seed": -1}, "odd.h5": {"resolution": 15}}
        for name, attributes in foreign.items():
            cells.assign_attrs(attributes).to_netcdf(tmp_path / name, engine="h5netcdf")
        del cells.attrs["k_points"]
        cells.to_netcdf(tmp_path / "own.h5", engine="h5netcdf")
    with pytest.raises(ValueError, match="was not made by `generate` or `import_cells`: its seed is -1"):
        verify(tmp_path / "drawn.h5", samples=1)
    with pytest.raises(ValueError, match=r"MPB needs a grid of even sides .* got 15 × 15"):
        verify(tmp_path / "odd.h5", samples=1)
    with pytest.raises(ValueError, match="was not made by `generate` or `import_cells`: it does not say its k_points"):
        verify(tmp_path / "own.h5", samples=1)
    generate("rods", out=tmp_path / "cells.h5", samples=1, resolution=8, unlabelled=True, workers=1)
    with pytest.raises(ValueError, match=r"cells\.h5 holds no labels to verify"):
        verify(tmp_path / "cells.h5", samples=1)
