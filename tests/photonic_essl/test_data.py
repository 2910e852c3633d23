import numpy as np
import pytest
import torch
import xarray as xr

from photonic_essl.data import load_cells

from .conftest import FREQUENCY, write_cells


def test_cells_and_labels_come_as_tensors(labelled):
    cells = load_cells(labelled, labelled=True)
    stored = xr.load_dataset(labelled)
    assert cells.epsilon.shape == (20, 1, 32, 32)
    assert cells.epsilon.dtype == torch.float32
    np.testing.assert_array_equal(cells.epsilon[:, 0], stored["epsilon"])
    np.testing.assert_array_equal(cells.dos, stored["dos"][:, :400])
    assert (cells.grid, cells.attributes["family"]) == ((32, 32), "blob")
    assert cells.lattice.tolist() == [[1, 0], [0, 1]]


def test_failed_cells_have_no_labels(tmp_path):
    path = write_cells(tmp_path / "cells.nc", 6)
    stored = xr.load_dataset(path)
    stored["status"][2] = 1
    stored["dos"][2] = np.nan
    stored.to_netcdf(path, engine="h5netcdf")
    assert len(load_cells(path, labelled=True)) == 5
    assert len(load_cells(path)) == 6


def test_the_fingerprint_is_of_the_contents(tmp_path):
    first, again, other = (write_cells(tmp_path / name, 4, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert load_cells(first).fingerprint == load_cells(again).fingerprint != load_cells(other).fingerprint


def test_a_missing_damaged_unlabelled_or_other_file_is_refused(tmp_path, unlabelled, labelled):
    with pytest.raises(FileNotFoundError, match=r"nothing\.nc"):
        load_cells(tmp_path / "nothing.nc")
    damaged = tmp_path / "damaged.nc"
    damaged.write_bytes(labelled.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"damaged\.nc"):
        load_cells(damaged)
    with pytest.raises(ValueError, match="is unlabelled: it has no `dos`"):
        load_cells(unlabelled, labelled=True)
    with pytest.raises(ValueError, match=r"on 500 frequencies from 0 to 0\.9; networks predict the first 400 of 500"):
        load_cells(write_cells(tmp_path / "coarse.nc", 3, frequency=FREQUENCY * 0.75), labelled=True)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_permittivities_that_are_none_are_refused(value, tmp_path):
    path = write_cells(tmp_path / "cells.nc", 3)
    with xr.load_dataset(path) as cells:
        cells["epsilon"][1, 5, 7] = value
        cells.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match=f"`epsilon` must be finite and positive everywhere, got {value}"):
        load_cells(path)


def test_labels_say_of_which_polarization_they_are(tmp_path):
    path = write_cells(tmp_path / "cells.nc", 3)
    with xr.load_dataset(path) as cells:
        del cells.attrs["polarization"]
        cells.to_netcdf(path, engine="h5netcdf")
    assert len(load_cells(path)) == 3
    with pytest.raises(ValueError, match="has labels, and must say in its attribute `polarization`"):
        load_cells(path, labelled=True)


def test_the_mean_is_that_of_the_pixels(tmp_path):
    path = write_cells(tmp_path / "cells.nc", 3)
    with xr.load_dataset(path) as cells:
        cells["epsilon_mean"][1] *= 2
        cells.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match="`epsilon_mean` must be the mean of `epsilon`, in cell 1 "):
        load_cells(path)


def test_densities_that_are_0_everywhere_are_refused(tmp_path):
    path = write_cells(tmp_path / "cells.nc", 3)
    with xr.load_dataset(path) as cells:
        cells["dos"][2] = 0
        cells.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match=r"`dos` must not be 0 all over 0\.24 < ωn < 0\.96, as in cell 2"):
        load_cells(path, labelled=True)


def test_negative_densities_are_refused(tmp_path):
    path = write_cells(tmp_path / "cells.nc", 3)
    with xr.load_dataset(path) as cells:
        cells["dos"][2, 7] = -0.5
        cells.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match=r"cells\.nc: `dos` must not be negative, got -0\.5"):
        load_cells(path, labelled=True)


def test_the_area_is_that_of_the_lattice(tmp_path):
    path = write_cells(tmp_path / "cells.nc", 3, lattice=[1.0, 0.0, -0.5, 0.75**0.5])
    assert load_cells(path).area == pytest.approx(0.75**0.5)


def test_labels_of_too_few_bands_are_refused(tmp_path):
    file = write_cells(tmp_path / "whole.nc", 3)
    with xr.load_dataset(file) as cells:
        cells["covered_frequency"] = ("sample", np.array([1.2, 0.9, 1.0]))
        cells.to_netcdf(tmp_path / "short.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"labels of too few bands: in 1 cells they cover ωn to 0\.900"):
        load_cells(tmp_path / "short.nc", labelled=True)


def test_a_file_of_failures_alone_has_no_labelled_cells(tmp_path):
    path = write_cells(tmp_path / "cells.nc", 2)
    stored = xr.load_dataset(path)
    stored["status"][:] = 1
    stored.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match=r"cells\.nc holds no cells that were solved"):
        load_cells(path, labelled=True)
