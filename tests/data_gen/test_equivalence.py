import numpy as np
import pytest
import torch

from data_gen.labels import LabelSettings, label_cells
from data_gen.lattices import LATTICES, basis_vectors, reciprocal_vectors, wavevector_grid
from data_gen.plane_groups import PLANE_GROUPS, grid_point_group, lattice_of, operations, point_group
from data_gen.solvers.equivalence import equivalence
from data_gen.unit_cells import FINE_SAMPLES_PER_PIXEL, unit_cell_family


@pytest.mark.parametrize("plane_group", PLANE_GROUPS)
def test_point_group_keeps_lengths_on_its_lattice(plane_group):
    basis = basis_vectors(lattice_of(plane_group))
    cartesian = basis.T @ point_group(plane_group) @ np.linalg.inv(basis.T)
    np.testing.assert_allclose(cartesian @ cartesian.transpose(0, 2, 1), np.eye(2) + 0 * cartesian, atol=1e-12)


@pytest.mark.parametrize(("plane_group", "share"), [("p1", 2), ("pm", 4), ("c2mm", 4), ("p4mm", 8), ("p6mm", 12)])
def test_only_the_wedge_is_solved_and_its_images_have_the_same_length(plane_group, share):
    basis = basis_vectors(lattice_of(plane_group))
    grid = wavevector_grid(25)
    same = equivalence(grid, basis, point_group(plane_group))
    assert len(same.solved) == pytest.approx(625 / share, rel=0.25)
    shifts = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(-1, 2)
    k = (grid[:, None] + shifts) @ reciprocal_vectors(basis)
    shortest = np.linalg.norm(k, axis=-1).min(axis=1)
    np.testing.assert_allclose(shortest, shortest[same.solved][same.source], atol=1e-12)


@pytest.mark.parametrize("plane_group", PLANE_GROUPS)
def test_every_operation_maps_a_cell_onto_itself(plane_group):
    family = unit_cell_family("level-set", plane_group, 2)
    assert family.lattice in LATTICES
    samples = 12 * FINE_SAMPLES_PER_PIXEL
    points = np.stack(np.meshgrid(family.axis(samples), family.axis(samples), indexing="ij"), axis=-1)
    for index in range(2):
        epsilon = family.draw(0, index, 12).epsilon
        for rotation, translation in zip(*operations(plane_group)):
            moved = (points @ rotation.T + translation - family.axis(samples)[0]) * samples
            at = np.rint(moved).astype(int) % samples
            np.testing.assert_allclose(moved, np.rint(moved), atol=1e-9)
            assert (epsilon[at[..., 0], at[..., 1]] != epsilon).mean() == 0


@pytest.mark.mpb
@pytest.mark.parametrize("plane_group", ["pm", "cm", "p4gm", "p31m"])
def test_the_wedge_gives_the_density_of_the_whole_grid(plane_group):
    family = unit_cell_family("level-set", plane_group)
    cell = torch.from_numpy(family.draw(0, 0, 24).epsilon)[None]
    basis = basis_vectors(family.lattice)
    settings = LabelSettings(k_points=9, bands=10, solver="mpb")
    whole, wedge = (
        label_cells(cell, basis, 24, settings, point_group=operations)["dos"]
        for operations in (None, grid_point_group(plane_group))
    )
    distance = np.abs(whole - wedge)[:, 100:400].sum() / whole[:, 100:400].sum()
    assert distance < 1e-3  # MPB's own ω(k) and ω(gk) differ by what it makes of the highest frequency of its mesh


@pytest.mark.parametrize("polarization", ["tm", "te"])
@pytest.mark.parametrize("plane_group", ["pg", "cm", "p4gm", "p3", "p31m", "p6mm"])
def test_pixels_have_the_symmetry_that_spares_wavevectors(plane_group, polarization):
    family = unit_cell_family("level-set", plane_group, 2)
    cell = torch.from_numpy(family.draw(5, 0, 16).epsilon)[None]
    settings = LabelSettings(k_points=9, bands=10, polarization=polarization)
    whole, wedge = (
        label_cells(cell, basis_vectors(family.lattice), 16, settings, point_group=operations)["dos"]
        for operations in (None, grid_point_group(plane_group))
    )
    np.testing.assert_allclose(wedge, whole, atol=1e-5)


def test_pixels_have_no_threefold_symmetry():
    sizes = {"p6mm": 4, "p31m": 2, "p3": 1, "p4mm": 8, "c2mm": 4}
    assert {name: len(grid_point_group(name)) for name in sizes} == sizes


def test_group_velocity_turns_with_the_wavevector():
    basis = basis_vectors("hexagonal")
    k = np.array([[0.1, 0.2]])
    rotations = point_group("p6")
    images = np.einsum("oij,kj->oki", np.linalg.inv(rotations).transpose(0, 2, 1), k).reshape(-1, 2)
    same = equivalence(images, basis, rotations)
    assert same.solved.tolist() == [0]
    q = images @ reciprocal_vectors(basis)
    np.testing.assert_allclose(same.rotation @ q[0], q, atol=1e-12)
