import hashlib

import numpy as np
import pytest

from data_gen.unit_cells import EPSILON_RANGE, FAMILIES, unit_cell_family


@pytest.mark.parametrize("name", FAMILIES)
def test_cells_of_other_seeds_and_indices_are_others(name):
    family = unit_cell_family(name)
    assert set(family.draw(3, 7, 16).parameters) == set(family.parameters)
    digests = {hashlib.sha256(family.draw(s, i, 16).epsilon.tobytes()).digest() for s in (0, 1) for i in range(10)}
    assert len(digests) == 20


@pytest.mark.parametrize(
    ("name", "plane_group", "outline", "inside", "outside", "filling"),
    [
        ("blob", None, "ffe8f8528619", 5.148604456, 16.633781551, 0.182243441),
        ("gpm", None, "e7c36603d3c5", 7.90222903, 17.88546155, 0.063850309),
        ("p1", None, "3688e4e5b4d0", 6.505305024, 10.57742748, 0.940345293),
        ("rods", None, "5771f28acce4", 15.859627084, 7.741806971, 0.505979938),
        ("level-set", "p4gm", "80fdc0252f4e", 16.924207685, 12.793535376, 0.109567901),
        ("level-set", "p6mm", "3b1590373ad3", 2.178150083, 12.771374492, 0.537181713),
        ("level-set", "cm", "acdcec4b511a", 4.600412732, 15.734862834, 0.510271991),
    ],
)
def test_a_cell_of_a_seed_stays_what_it_is(name, plane_group, outline, inside, outside, filling):
    cell = unit_cell_family(name, plane_group).draw(12, 34, 16)
    drawn = [float(cell.parameters[key]) for key in ("epsilon_inside", "epsilon_outside", "filling")]
    assert drawn == pytest.approx([inside, outside, filling], abs=1e-9)
    covered = np.packbits(cell.epsilon == cell.parameters["epsilon_inside"])
    assert hashlib.sha256(covered.tobytes()).hexdigest()[:12] == outline


@pytest.mark.parametrize("name", FAMILIES)
def test_cells_have_two_materials_within_range_and_the_recorded_filling(name):
    for index in range(20):
        cell = unit_cell_family(name).draw(0, index)
        inside, outside = cell.parameters["epsilon_inside"], cell.parameters["epsilon_outside"]
        assert set(np.unique(cell.epsilon)) <= {float(inside), float(outside)}
        assert EPSILON_RANGE[0] <= min(inside, outside)
        assert max(inside, outside) <= EPSILON_RANGE[1]
        assert (cell.epsilon == inside).mean() == pytest.approx(float(cell.parameters["filling"]))


def test_blob_never_touches_its_neighbours():
    for index in range(50):
        cell = unit_cell_family("blob").draw(1, index)
        inside = cell.epsilon == cell.parameters["epsilon_inside"]
        assert inside.any()
        assert not inside[[0, -1]].any()
        assert not inside[:, [0, -1]].any()


def test_gpm_has_its_mirror_and_in_general_no_quarter_turn():
    mirrored, turned = 0, 0
    for index in range(20):
        epsilon = unit_cell_family("gpm").draw(0, index).epsilon
        mirrored += np.array_equal(epsilon, epsilon[::-1])
        turned += np.array_equal(epsilon, np.rot90(epsilon))
    assert mirrored == 20
    assert turned < 5


def test_level_sets_do_not_repeat_the_edge():
    # Shifting by one sample changes as much at the seam as elsewhere; a repeated edge would leave no change there.
    seam, inner = 0, 0
    for index in range(100):
        epsilon = unit_cell_family("p1").draw(0, index, 4).epsilon
        seam += (epsilon[0] != epsilon[-1]).sum()
        inner += (epsilon[10] != epsilon[9]).sum()
    assert 0.5 < seam / inner < 2


def test_rod_radius_is_the_recorded_one():
    for index in range(10):
        cell = unit_cell_family("rods").draw(2, index, 64)
        area = (cell.epsilon == cell.parameters["epsilon_inside"]).mean()
        assert area == pytest.approx(np.pi * cell.parameters["radius"] ** 2, rel=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_choosing_what_was_drawn_changes_nothing_and_another_value_is_taken(name):
    family = unit_cell_family(name)
    drawn = family.draw(0, 1, 16)
    chosen = {each: float(drawn.parameters[each]) for each in family.ranges}
    np.testing.assert_array_equal(family.draw(0, 1, 16, chosen).epsilon, drawn.epsilon)
    for each, (low, high) in family.ranges.items():
        changed = family.draw(0, 1, 16, {each: (low + 2 * high) / 3}).parameters
        assert changed[each] == pytest.approx((low + 2 * high) / 3, abs=1e-3)
        others = set(chosen) - {each}
        assert all(changed[other] == pytest.approx(chosen[other], abs=1e-3) for other in others)


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="unknown family 'blobb'; the families are blob"):
        unit_cell_family("blobb")
