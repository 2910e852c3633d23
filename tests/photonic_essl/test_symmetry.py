import pytest
import torch

from photonic_essl import symmetry
from photonic_essl.symmetry import Elements, group, published_groups

GROUPS = [
    "identity",
    "quarter-turns",
    "mirrors",
    "square",
    "hexagon",
    "rhombus",
    "half-turn",
    "translations/2",
    "translations",
    "mirrors * quarter-turns",
    "translations * mirrors",
    "hexagon * translations/3",
]
SQUARE = torch.eye(2)
HEXAGONAL = torch.tensor([[1.0, 0.0], [-0.5, 3**0.5 / 2]])
GRID = (6, 6)


def cells(count=3, channels=2, grid=GRID, seed=0):
    return torch.rand(count, channels, *grid, generator=torch.Generator().manual_seed(seed)) * 19 + 1


def copies_of(chosen, x):
    return chosen.orbit(x)[0].view(chosen.order(x.shape[2:]), *x.shape)


def test_elements_are_drawn_uniformly():
    labels = group("square").draw(8000, GRID, torch.Generator().manual_seed(0)).labels
    assert (labels.bincount(minlength=8) - 1000).abs().max() < 150


def test_the_names_mean_what_they_say():
    x = cells()
    assert torch.equal(copies_of(symmetry.quarter_turns(), x)[1], torch.rot90(x, 1, (2, 3)))
    flips = [torch.flip(x, axes) for axes in ((), (2,), (3,), (2, 3))]
    assert all(torch.equal(copy, flip) for copy, flip in zip(copies_of(symmetry.mirrors(), x), flips))
    rolls = [torch.roll(x, (i, j), (2, 3)) for i in (0, 3) for j in (0, 3)]
    assert all(torch.equal(copy, roll) for copy, roll in zip(copies_of(symmetry.translations(2), x), rolls))
    assert symmetry.square().order(GRID) == 8
    assert symmetry.hexagon().order(GRID) == 12
    assert group("mirrors * quarter-turns").order(GRID) == 8
    assert group("translations * mirrors").order(GRID) == 36 * 4


def test_one_group_contains_another():
    for larger, smaller in (
        ("square", "mirrors"),
        ("square", "quarter-turns"),
        ("translations", "translations/4"),
        ("translations/6 * mirrors", "translations/2 * half-turn"),
        ("rescaling * mirrors", "rescaling"),
        ("mirrors", "identity"),
    ):
        assert group(larger).contains(group(larger))
        assert group(larger).contains(group(smaller))
        assert not group(smaller).contains(group(larger))
    for one, other in (("mirrors", "quarter-turns"), ("translations/2", "translations/3"), ("mirrors", "rescaling")):
        assert not group(one).contains(group(other))
    for family in ("blob", "gpm"):
        views, predicted = published_groups(family)
        assert not views.contains(predicted)


def test_groups_fit_the_lattices_they_are_of():
    symmetry.square().check_fits(GRID, SQUARE)
    symmetry.mirrors().check_fits((4, 6), torch.tensor([[1.0, 0.0], [0.0, 1.5]]))
    symmetry.hexagon().check_fits(GRID, HEXAGONAL)


def test_a_sixth_turn_keeps_distances_on_the_hexagonal_lattice():
    basis = HEXAGONAL
    for matrix in symmetry.hexagon().matrices:
        turned = torch.tensor(matrix).float().T @ basis
        torch.testing.assert_close(turned @ turned.T, basis @ basis.T)


def test_shifts_are_parts_of_the_cell():
    chosen = symmetry.translations()
    labels = chosen.draw(10, GRID, torch.Generator().manual_seed(0)).labels
    x = cells(10, 1)
    shift = (chosen.shifts(labels, GRID) * 6).round().int()
    moved = chosen.apply(x, Elements(labels))
    for i in range(10):
        assert torch.equal(moved[i], torch.roll(x[i], tuple(shift[i].tolist()), (1, 2)))


def test_rectangular_cells_can_be_mirrored_but_not_turned():
    x = cells(grid=(4, 6))
    assert torch.equal(copies_of(symmetry.mirrors(), x)[1], torch.flip(x, (2,)))
    with pytest.raises(ValueError, match=r"quarter-turns.*as many points along x as along y, got 4 × 6"):
        symmetry.quarter_turns().sample(x)


@pytest.mark.parametrize(
    ("name", "grid", "lattice", "message"),
    [
        (
            "quarter-turns",
            (6, 6),
            HEXAGONAL,
            r"`quarter-turns` does not map a cell with lattice vectors .* onto itself",
        ),
        ("hexagon", (6, 6), SQUARE, r"does not map a cell with lattice vectors \(1, 0\) and \(0, 1\) onto itself"),
        ("translations/4", (6, 6), SQUARE, "divisible by 4, got 6 × 6"),
        ("mirrors", (6, 6), HEXAGONAL, "does not map a cell"),
        ("square", (6, 6), torch.tensor([[0.01, 0.0], [0.0, 0.014]]), "does not map a cell"),
    ],
)
def test_groups_that_do_not_fit_are_refused(name, grid, lattice, message):
    with pytest.raises(ValueError, match=message):
        group(name).check_fits(grid, lattice)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"unknown group 'spin'; there are identity, half-turn"):
        group("mirrors * spin")
    with pytest.raises(ValueError, match="unknown group 'translations/²'"):
        group("translations/²")
    with pytest.raises(ValueError, match="unknown group 'mirrors/2'"):
        group("mirrors/2")
    with pytest.raises(ValueError, match=r"`hexagon \* mirrors` is the symmetry of no lattice"):
        group("hexagon * mirrors")
    with pytest.raises(
        ValueError, match=r"`parts` must be 0 \(any translation\) or a positive number of parts, got -1"
    ):
        symmetry.translations(-1)
    with pytest.raises(ValueError, match="`lowest` and `highest` must be positive and in order, got 5 and 1"):
        symmetry.rescaling(5, 1)
    with pytest.raises(ValueError, match="rescale within different ranges of ε"):
        symmetry.rescaling(1, 5) * symmetry.rescaling(1, 6)
    with pytest.raises(ValueError, match="no finite orbit"):
        symmetry.rescaling().orbit(cells())
    with pytest.raises(ValueError, match="no groups were published for the family 'rods'"):
        published_groups("rods")


def test_an_empty_lattice_has_all_its_symmetries():
    names = {"square": SQUARE, "hexagon": HEXAGONAL, "mirrors": torch.tensor([[1.0, 0.0], [0.0, 1.5]])}
    assert symmetry.lattice_symmetries((4, 6), SQUARE).name == "translations * mirrors"
    rounded, strained = (torch.tensor([[1.0, 0.0], [-0.5, y]]) for y in (0.866, 0.87))
    assert symmetry.lattice_symmetries((8, 8), rounded).name == "translations * hexagon"
    assert symmetry.lattice_symmetries((8, 8), strained).name != "translations * hexagon"
    names |= {"rhombus": torch.tensor([[0.8, -0.6], [0.8, 0.6]]), "half-turn": torch.tensor([[1.0, 0.0], [0.3, 1.2]])}
    for name, lattice in names.items():
        chosen = symmetry.lattice_symmetries(GRID, lattice)
        assert chosen.name == f"translations * {name}"
        assert group(chosen.name).order(GRID) == 36 * symmetry.NAMED_GROUPS[name]().order(GRID)


def test_published_groups():
    invariance, equivariance = published_groups("blob")
    assert (invariance.order((32, 32)), equivariance.order((32, 32))) == (8, 4)
    invariance, equivariance = published_groups("gpm")
    assert (invariance.order((32, 32)), equivariance.order((32, 32))) == (4 * 32**2, 4)
