import json
import os
import signal
import subprocess
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
import xarray as xr

import data_gen
from data_gen.lattices import wavevector_grid
from data_gen.solvers import mpb
from data_gen.solvers.contract import ConvergenceError
from data_gen.solvers.mpb_worker import make_solver
from data_gen.unit_cells import unit_cell_family

pytestmark = pytest.mark.mpb

BY_HAND = """
import sys, json
import numpy as np, meep as mp
from meep import mpb
mp.verbosity(0)
request = json.load(open(sys.argv[1]))
epsilon = np.array(request["epsilon"])
n = len(epsilon)
def material(p):
    return mp.Medium(epsilon=epsilon[round((p.x + .5) * n) % n, round((p.y + .5) * n) % n])
solver = mpb.ModeSolver(num_bands=8, resolution=n, mesh_size=1, default_material=material, tolerance=1e-9,
                        geometry_lattice=mp.Lattice(size=mp.Vector3(1, 1)),
                        k_points=[mp.Vector3(*k) for k in request["k"]])
(solver.run_tm if request["polarization"] == "tm" else solver.run_te)()
json.dump(np.array(solver.all_freqs).tolist(), open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def blob():
    return unit_cell_family("blob").draw(0, 6).epsilon.reshape(32, 9, 32, 9).mean(axis=(1, 3))


@pytest.fixture(scope="module")
def density(blob):
    return data_gen.density_of_states(data_gen.solve(blob, 9, bands=6), epsilon_mean=blob.mean())


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_mpb_through_us_is_mpb_by_hand(blob, polarization, tmp_path):
    k = np.array([[0.11, 0.23], [-0.4, 0.1], [0.5, 0.5]])
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"epsilon": blob.tolist(), "k": k.tolist(), "polarization": polarization}))
    subprocess.run([mpb.interpreter(), "-c", BY_HAND, str(request)], check=True, capture_output=True)
    by_hand = np.array(json.loads(request.read_text()))
    through_us = data_gen.solve(blob, k, bands=8, polarization=polarization)["frequency"]
    np.testing.assert_allclose(through_us, by_hand, atol=1e-6)


@pytest.mark.parametrize("bands", [5, 6, 10])
def test_nearly_degenerate_levels_are_told_apart(bands):
    """At M the bands 5 … 12 of a nearly uniform cell lie within 1e-4; MPB's own frequencies are off by as much."""
    rods = np.where(np.hypot(*np.meshgrid(*[(np.arange(16) + 0.5) / 16 - 0.5] * 2)) < 0.33, 15.695, 15.703)
    corner = np.array([[0.5, 0.5]])
    by_mpb = data_gen.solve(rods, corner, bands=bands, solver="mpb")["frequency"]
    by_rbme = data_gen.solve(rods, corner, bands=bands, solver="rbme")["frequency"]
    assert float(by_rbme[0, 4:].max() / by_rbme[0, 4:].min()) - 1 < 5e-4
    np.testing.assert_allclose(by_mpb, by_rbme, rtol=2e-6)


@pytest.mark.parametrize(("side", "nearest"), [(22, "20 and 24"), (15, "14 and 16"), (26, "24 and 28")])
def test_grids_that_mpb_would_change_are_refused_beforehand(side, nearest):
    with pytest.raises(ValueError, match=f"factors are 2, 3, 5 and 7, got {side} × {side}; the nearest are {nearest}"):
        data_gen.solve(np.ones((side, side)), 1, bands=1)
    with pytest.raises(ValueError, match=f"got {side} × {side}"):
        data_gen.generate("p1", out="never.h5", samples=1, resolution=side, solver="mpb")


def test_a_worker_that_died_leaves_no_pipes_behind(blob):
    k = np.array([[0.1, 0.1]])
    counts = []
    for _ in range(3):
        data_gen.solve(blob, k, bands=1)
        counts.append(len(os.listdir("/proc/self/fd")))
        process = mpb.worker().process
        process.kill()
        process.wait()
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_empty_lattice(polarization):
    bands = data_gen.solve(np.full((16, 16), 5.0), 25, bands=10, polarization=polarization)
    shifts = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 2), axis=-1).reshape(-1, 2)
    exact = np.sort(np.linalg.norm(wavevector_grid(25)[:, None] + shifts, axis=-1), axis=1)[:, :10] / np.sqrt(5)
    np.testing.assert_allclose(bands["frequency"], exact, atol=1e-5)
    density = data_gen.density_of_states(bands, epsilon_mean=5.0)
    inside = (density["frequency"] > 0.1) & (density["frequency"] < 0.96)
    error = np.abs(density / (2 * np.pi * density["frequency"]) - 1)[inside]
    assert error.mean() < 5e-4
    assert error.max() < 5e-3


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_wavevectors_that_differ_by_a_reciprocal_vector_have_the_same_bands(blob, polarization):
    far, near = (
        data_gen.solve(blob, np.array([k]), bands=4, polarization=polarization)["frequency"].values
        for k in ((20.3, -13.9), (0.3, 0.1))
    )
    np.testing.assert_allclose(far, near, rtol=1e-9)


def test_group_velocity_is_the_slope_of_the_band(blob):
    step = 1e-3
    centre = np.array([0.13, 0.21])
    k = np.stack([centre, *(centre + step * np.array(d) for d in ((1, 0), (-1, 0), (0, 1), (0, -1)))])
    for polarization in ("tm", "te"):
        bands = data_gen.solve(blob, k, bands=6, polarization=polarization)
        f = bands["frequency"].values
        slope = np.stack([f[1] - f[2], f[3] - f[4]], axis=-1) / (2 * step)
        np.testing.assert_allclose(bands["group_velocity"][0], slope, atol=2e-3)


def test_only_half_the_grid_is_solved_and_the_rest_is_its_mirror(blob):
    bands = data_gen.solve(blob, 5, bands=4)
    np.testing.assert_array_equal(bands["frequency"], bands["frequency"][::-1])
    velocity = bands["group_velocity"].values
    np.testing.assert_array_equal(velocity[:12], -velocity[::-1][:12])
    other_half = data_gen.solve(blob, wavevector_grid(5)[13:], bands=4)
    np.testing.assert_allclose(bands["frequency"][13:], other_half["frequency"], atol=2e-6)


@pytest.mark.parametrize(
    "move",
    [
        lambda e: np.roll(e, (5, 11), axis=(0, 1)),
        lambda e: np.rot90(e),
        lambda e: e[::-1],
    ],
    ids=["translated", "rotated", "mirrored"],
)
def test_density_of_states_is_unchanged_by_symmetry(blob, density, move):
    moved = np.ascontiguousarray(move(blob))
    moved_density = data_gen.density_of_states(data_gen.solve(moved, 9, bands=6), epsilon_mean=blob.mean())
    np.testing.assert_allclose(moved_density[:300], density[:300], atol=5e-4)


def test_scaling_permittivity_scales_frequency(blob):
    k = np.array([[0.2, 0.3]])
    one, four = (data_gen.solve(factor * blob, k, bands=6)["frequency"] for factor in (1, 4))
    np.testing.assert_allclose(four * 2, one, atol=2e-6)


def test_published_gap_of_rods():
    # Joannopoulos et al., Photonic Crystals: rods ε = 8.9, r = 0.2 a in air have a TM gap from 0.32 to 0.44.
    x = (np.arange(256) + 0.5) / 256 - 0.5
    epsilon = np.where(np.hypot(*np.meshgrid(x, x)) < 0.2, 8.9, 1.0)
    bands = data_gen.solve(epsilon, np.array([[0, 0], [0.5, 0], [0.5, 0.5]]), bands=2, resolution=32)["frequency"]
    assert float(bands[:, 0].max()) == pytest.approx(0.322, rel=0.01)
    assert float(bands[:, 1].min()) == pytest.approx(0.443, rel=0.01)


def test_te_long_wave_index_of_a_checkerboard():
    # Dykhne and Mendelson: the effective permittivity is exactly the geometric mean.
    epsilon = np.where(np.indices((2, 2)).sum(axis=0) % 2, 1.0, 4.0).repeat(32, axis=0).repeat(32, axis=1)
    k = 0.01
    bands = data_gen.solve(epsilon, np.array([[k, 0]]), bands=1, polarization="te")
    assert k / float(bands["frequency"][0, 0]) == pytest.approx(np.sqrt(2.0), rel=0.02)


def test_a_crash_costs_one_cell_and_names_it(blob, monkeypatch):
    worker = mpb.worker()
    ask = worker.ask

    def crash(**request):
        os.kill(worker.process.pid, signal.SIGSEGV)
        return ask(**request)

    monkeypatch.setattr(worker, "ask", crash)
    with pytest.raises(mpb.MPBError, match="cell 0: MPB's process died"):
        data_gen.solve(blob, np.array([[0.1, 0.1]]), bands=2)
    assert data_gen.solve(blob, np.array([[0.1, 0.1]]), bands=2)["frequency"].shape == (1, 2)


def test_importing_and_solving_leaves_subnormals_alone(blob):
    data_gen.solve(blob, np.array([[0.1, 0.1]]), bands=1)
    assert np.float64(5e-324) / 1 > 0
    assert "meep" not in sys.modules


def test_missing_mpb_is_one_line_with_both_ways_to_get_it(monkeypatch):
    monkeypatch.setenv("MEEP_PYTHON", sys.executable)
    mpb.interpreter.cache_clear()
    try:
        with pytest.raises(mpb.MPBUnavailableError, match=r"apt install .* `conda install") as caught:
            mpb.interpreter()
        assert "\n" not in str(caught.value)
    finally:
        monkeypatch.undo()
        mpb.interpreter.cache_clear()


@pytest.mark.parametrize(
    ("epsilon", "settings", "message"),
    [
        (np.zeros((8, 8)), {}, "must be positive and finite everywhere, got 0"),
        (np.full((8, 8), np.nan), {}, "must be positive and finite everywhere, got nan"),
        (np.ones(8), {}, "must have shape"),
        (np.ones((8, 8)), {"polarization": "tem"}, "`polarization` must be one of tm, te, got 'tem'"),
        (np.ones((8, 8)), {"bands": 65}, "number of plane waves, 64, got 65"),
        (np.ones((8, 8)), {"resolution": 3}, "`resolution` must divide"),
        (np.ones((8, 8)), {"solver": "mp"}, "`solver` must be one of mpb, rbme, got 'mp'"),
        (np.ones((8, 8)), {"k_points": 0}, "must be at least 1, got 0"),
        (np.ones((8, 8)), {"k_points": np.ones((3, 3))}, "`k_points` must be a whole number or finite wavevectors"),
        (np.ones((8, 8)), {"lattice": "cubic"}, "`lattice` must be one of"),
        (np.ones((8, 8)), {"lattice": [[1, 0], [1]]}, "`lattice` must be two finite, independent vectors"),
        (np.ones((8, 8)), {"lattice": [[500, 0], [0, 500]]}, "`lattice` must be in units of a, with vectors of length"),
        (np.ones((8, 8)), {"bands": 2.5}, "`bands` must be a whole number from 1 to"),
        (np.full((8, 8), "1"), {}, "`epsilon` must hold numbers, got <U1"),
        (
            xr.DataArray(np.ones((8, 8)), attrs={"lattice": [1.0, 0.0, 0.0, 1.5]}),
            {},
            r"`lattice` must be that of the cells, \[\[1\.0, 0\.0\], \[0\.0, 1\.5\]\], got \[\[1\.0, 0\.0\]",
        ),
    ],
)
def test_bad_input_is_refused(epsilon, settings, message):
    with pytest.raises(ValueError, match=message):
        data_gen.solve(epsilon, **settings)


def test_what_mpb_gets_wrong_is_never_returned(blob, monkeypatch):
    k = np.array([[0.1, 0.1]])
    with monkeypatch.context() as patch:
        patch.setattr(mpb, "LARGEST_ERROR", 0.0)
        with pytest.raises(ConvergenceError, match=r"cell 0: MPB's residual puts a frequency off by .*, over 0\.0"):
            data_gen.solve(blob, k, bands=2)
    whole = mpb.worker().ask(
        epsilon=blob, wavevectors=k, basis=np.eye(2), bands=np.array(2), tolerance=np.array(mpb.TOLERANCE)
    )
    with monkeypatch.context() as patch:
        patch.setattr(mpb.worker(), "ask", lambda **_: whole | {"frequency": whole["frequency"] * np.nan})
        with pytest.raises(mpb.MPBError, match="cell 0: MPB gave numbers that are not finite"):
            data_gen.solve(blob, k, bands=2)
    with pytest.raises(mpb.MPBError, match="MPB failed: "):
        mpb.worker().ask(epsilon=blob)
    assert data_gen.solve(blob, k, bands=2)["frequency"].shape == (1, 2)


def test_another_grid_than_asked_for_is_refused():
    asked = {"epsilon": np.ones((4, 6)), "basis": np.eye(2), "bands": np.array(2), "tolerance": np.array(1e-6)}
    meep, theirs = MagicMock(), MagicMock()
    theirs.ModeSolver().get_epsilon.return_value = np.ones((4, 4))
    with pytest.raises(RuntimeError, match=r"MPB chose a grid of \(4, 4\) for an array of \(4, 6\)"):
        make_solver(meep, theirs, asked)
