import pickle

import numpy as np
import pytest
import torch
import xarray as xr

import data_gen
from data_gen import dos, labels
from data_gen.labels import AccuracyError, LabelSettings, distance, label_cells
from data_gen.solvers import rbme
from data_gen.solvers.contract import ConvergenceError, SolverError
from data_gen.unit_cells import unit_cell_family

CELL = unit_cell_family("blob").draw(0, 6, 8).epsilon


def test_a_label_that_the_finest_grid_leaves_too_far_is_never_returned(monkeypatch):
    monkeypatch.setattr(labels, "GRIDS", (3, 9))
    with pytest.raises(AccuracyError, match=r"cell 0: the 9 × 9 grid leaves the label .* over 1e-05"):
        data_gen.label(CELL, accuracy=1e-5, resolution=8)


def test_many_cells_are_labelled_in_parts_as_at_once(monkeypatch):
    cells = np.stack([unit_cell_family("blob").draw(0, index, 8).epsilon for index in range(5)])
    settings = {"resolution": 8, "k_points": 9, "bands": 10}
    at_once = data_gen.label(cells, **settings)
    monkeypatch.setattr(labels, "CELLS_AT_ONCE", 2)
    xr.testing.assert_allclose(data_gen.label(cells, **settings), at_once, rtol=1e-9)


def test_an_error_names_the_cell_by_its_number_among_all(monkeypatch):
    monkeypatch.setattr(labels, "CELLS_AT_ONCE", 2)
    monkeypatch.setattr(labels, "GRIDS", (9, 27))
    uniform = np.full_like(CELL, 3.0)  # the first grid is enough for it
    cells = np.stack([uniform, uniform, uniform, CELL])
    with pytest.raises(AccuracyError, match=r"^cell 3: the 27 × 27 grid leaves"):
        data_gen.label(cells, accuracy=6e-4, resolution=8)
    solve_bands = rbme.solve_bands

    def failing_for_one_cell(cells, wavevectors, **options):
        if len(cells) == 1:
            raise ConvergenceError("it does not converge", 0)
        return solve_bands(cells, wavevectors, **options)

    monkeypatch.setattr(rbme, "solve_bands", failing_for_one_cell)
    with pytest.raises(ConvergenceError, match=r"^cell 3: it does not converge") as caught:
        data_gen.label(cells, accuracy=5e-3, resolution=8)
    assert caught.value.cell == 3
    monkeypatch.setattr(labels, "BANDS", 5)  # not enough for the uniform cell, which is solved again
    with pytest.raises(ConvergenceError, match=r"^cell 1: it does not converge"):
        data_gen.label(np.stack([CELL, uniform]), k_points=5, resolution=8)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("index", [0, 6])
def test_a_default_label_is_as_near_to_the_limit_as_it_says(index):
    cell = unit_cell_family("blob").draw(0, index, 8).epsilon
    label = data_gen.label(cell, resolution=8)
    fine = data_gen.label(cell, resolution=8, k_points=151)
    assert 0 < off(label, fine) <= float(label["dos_error"]) + float(fine["dos_error"])
    assert float(label["dos_error"]) <= 5e-4


def off(label, reference):
    """Distance of a label from another in the paper's metric."""
    return distance(*(torch.from_numpy(one["dos"].values)[None] for one in (label, reference))).item()


@pytest.mark.parametrize("n", [4, 8, 15, 25])
def test_the_error_of_a_label_on_any_grid_is_not_understated(n):
    label, fine = (data_gen.label(CELL, resolution=8, k_points=points, bands=12) for points in (n, 101))
    assert off(label, fine) <= 1.1 * float(label["dos_error"])


@pytest.mark.parametrize("lattice", ["oblique", "centred"])
@pytest.mark.parametrize("n", [6, 9])
def test_nor_on_a_coarse_grid_of_another_lattice(n, lattice):
    x, y = np.meshgrid(*[np.arange(12) / 12] * 2, indexing="ij")
    cell = np.where(np.cos(2 * np.pi * x) + np.cos(2 * np.pi * (y - 0.2 * x)) > -0.5, 5.0, 1.0)
    settings = {"lattice": lattice, "bands": 14}
    label, fine = (data_gen.label(cell, k_points=points, **settings) for points in (n, 61))
    assert 0 < off(label, fine) <= float(label["dos_error"])


@pytest.mark.parametrize(("smoothing", "accuracy"), [("published", 5e-4), (0.003, 5e-4), (0.001, 0.02)])
def test_nor_is_that_of_a_label_smoothed_otherwise(smoothing, accuracy):
    cell = unit_cell_family("blob").draw(50, 1, 8).epsilon
    settings = {"resolution": 8, "smoothing": smoothing, "bands": 10}
    label = data_gen.label(cell, accuracy=accuracy, **settings)
    fine = data_gen.label(cell, k_points=251, **settings)
    assert 0 < off(label, fine) <= 1.1 * float(label["dos_error"])


@pytest.mark.parametrize(("n", "smoothing"), [(25, 5e-4), (13, 5e-4), (25, 0.003)])
def test_nor_on_a_grid_that_is_asked_for(n, smoothing):
    cell = unit_cell_family("rods").draw(50, 1, 8).epsilon
    settings = {"resolution": 8, "smoothing": smoothing, "bands": 10}
    label, fine = (data_gen.label(cell, k_points=points, **settings) for points in (n, 165))
    assert 0 < off(label, fine) <= float(label["dos_error"])


@pytest.mark.parametrize("n", [13, 25])
def test_nor_in_a_small_cell(n):
    cell = np.where(np.arange(9) < 4, 9.0, 1.0)[:, None] * np.ones(9)
    settings = {"polarization": "te", "lattice": 0.3 * np.eye(2), "bands": 6}
    label, fine = (data_gen.label(cell, k_points=points, **settings) for points in (n, 201))
    assert 0 < off(label, fine) <= float(label["dos_error"])


def test_a_grid_that_cannot_hold_a_label_says_so():
    with pytest.raises(SolverError, match="cell 0: all 2 bands that there are do not cover the density up to"):
        data_gen.label(np.ones((1, 2)), k_points=4)


def test_the_bend_of_bands_brings_a_label_several_times_nearer(monkeypatch):
    fine = data_gen.label(CELL, resolution=8, k_points=151, bands=12)
    corrected = data_gen.label(CELL, resolution=8, k_points=25, bands=12)
    monkeypatch.setattr(dos, "bend", lambda velocity, n, basis: torch.zeros_like(velocity[..., 0]))
    plain = data_gen.label(CELL, resolution=8, k_points=25, bands=12)
    assert off(corrected, fine) < off(plain, fine) / 5


def test_a_mesh_of_fewer_waves_than_ten_is_labelled_with_those_it_has():
    dos = data_gen.label(np.full((3, 3), 4.0))["dos"].sel(frequency=slice(0.1, 0.45))
    np.testing.assert_allclose(dos, 2 * np.pi * dos["frequency"], rtol=2e-3)


def test_an_unknown_polarization_is_refused_before_anything_is_solved():
    with pytest.raises(ValueError, match="`polarization` must be one of tm, te, got 'tem'"):
        data_gen.label(CELL, polarization="tem")


def test_bands_are_kept_on_one_grid_alone(monkeypatch):
    monkeypatch.setattr(labels, "GRIDS", (9,))
    settings = LabelSettings(accuracy=0.1)
    with pytest.raises(ValueError, match="`keep_bands` needs `k_points`: one grid for every cell"):
        label_cells(torch.from_numpy(CELL)[None], np.eye(2), 8, settings, keep_bands=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": "8"}, "`resolution` must divide the fine grid 72 x 72 by a whole factor, got '8'"),
        ({"accuracy": "fine"}, "`accuracy` must be a number from 1e-5 to 0.1, got 'fine'"),
        ({"lattice": 3}, r"`lattice` must be two finite, independent vectors of shape \(2, 2\), got 3"),
    ],
)
def test_settings_of_another_kind_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        data_gen.label(CELL, **settings)
