import json

import numpy as np
import pytest

import data_gen
from data_gen.explorer_worker import answer
from data_gen.unit_cells import unit_cell_family

RESOLUTION = 16


def ask(task, **cell):
    return answer(task, json.dumps({"resolution": RESOLUTION, **cell}))


def painted(*pixels):
    epsilon = np.zeros((RESOLUTION, RESOLUTION))
    for x, y, value in pixels:
        epsilon[x, y] = value
    return epsilon.reshape(-1).tolist()


def test_a_cell_is_the_familys_and_its_label_is_that_of_a_dataset():
    drawn = unit_cell_family("gpm").draw(3, 7, RESOLUTION).epsilon
    solved = ask("solve", family="gpm", seed=3, index=7, polarization="te")
    np.testing.assert_allclose(solved["epsilon"], drawn.reshape(16, 9, 16, 9).mean((1, 3)), rtol=1e-6)
    label = data_gen.label(drawn, polarization="te", resolution=RESOLUTION)
    np.testing.assert_allclose(solved["dos"], label["dos"], atol=1e-2)
    assert abs(solved["dos"] - label["dos"].values).mean() < 1e-4
    bands = data_gen.solve(drawn, solved["wavevector"], polarization="te", resolution=RESOLUTION, solver="rbme")
    np.testing.assert_allclose(solved["band_frequency"], bands["frequency"], rtol=1e-4, atol=1e-7)


def test_paint_covers_whole_pixels_and_takes_no_symmetry_for_granted():
    bare = ask("solve", family="rods")
    changed = ask("solve", family="rods", painted=painted((2, 5, 20.0), (3, 5, 1.0)))
    epsilon = bare["epsilon"].copy()
    epsilon[2, 5], epsilon[3, 5] = 20.0, 1.0
    np.testing.assert_array_equal(changed["epsilon"], epsilon)
    assert not bare["changed"]
    assert changed["changed"]
    # Rods have equal frequencies at X and Y; what was painted has not.
    for cell, equal in ((bare, True), (changed, False)):
        own = data_gen.solve(cell["epsilon"], np.array([[0.5, 0], [0, 0.5]]), bands=4, solver="rbme")[
            "frequency"
        ].values
        assert np.allclose(own[0], own[1], atol=1e-5) == equal
        x = np.flatnonzero((cell["wavevector"] == (0.5, 0)).all(1))[0]
        np.testing.assert_allclose(cell["band_frequency"][x, :4], own[0], atol=1e-5)


def test_chosen_parameters_are_taken_and_the_rest_is_as_drawn():
    drawn, chosen = ask("draw", family="blob"), ask("draw", family="blob", parameters={"epsilon_inside": 4})
    first, second = (json.loads(cell["parameters"]) for cell in (drawn, chosen))
    assert second == {**first, "epsilon_inside": 4.0}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"family": "bolb"}, "unknown family 'bolb'; the families are blob"),
        ({"family": "level-set", "plane_group": "p5"}, "`plane_group` must be one of p1"),
        ({"family": "rods", "seed": -1}, "non-negative"),
        ({"family": "rods", "parameters": {"radius": 0.6}}, "`radius` must be from 0.1 to 0.45, got 0.6"),
        ({"family": "rods", "parameters": {"filling": 0.5}}, "of family rods one chooses radius, epsilon_inside"),
        ({"family": "rods", "painted": [1.0]}, "`painted` must hold 256 numbers, got 1"),
        ({"family": "rods", "painted": painted((0, 0, -3.0))}, "`painted` must be 0, or from 1 to 20"),
        ({"family": "rods", "colour": 3}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_mistake_is_one_line(cell, message):
    error = ask("draw", **cell)["error"]
    assert message in error
    assert "\n" not in error


@pytest.mark.mpb
def test_mpb_agrees():
    fast, reference = (ask(task, family="rods") for task in ("solve", "compare"))
    np.testing.assert_allclose(reference["band_frequency"], fast["band_frequency"], rtol=1e-4, atol=1e-5)
    assert abs(reference["dos"] - fast["dos"]).sum() < 0.02 * fast["dos"].sum()
