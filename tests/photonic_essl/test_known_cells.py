import itertools

import numpy as np
import pytest
import torch
import xarray as xr

from data_gen.unit_cells import unit_cell_family
from photonic_essl.data import load_cells
from photonic_essl.finetuning import finetune, split
from photonic_essl.known_cells import TRAINED_ON, VALIDATED_ON, KnownCells, cell_hashes
from photonic_essl.prediction import evaluate
from photonic_essl.regression import load_regressor
from photonic_essl.reporting import report
from photonic_essl.symmetry import lattice_symmetries

from .conftest import SMALL, write_cells


def part_of(path, rows, out):
    with xr.load_dataset(path) as cells:
        cells.isel(sample=rows).to_netcdf(out, engine="h5netcdf")
    return out


def numbers(known, use, cells):
    return set(np.flatnonzero(known.among(use, cells.hashes)))


SQUARE = torch.eye(2)


def orbits(cells, lattice):
    """Return the least of all copies of each cell, as bytes: equal for two exactly if they are symmetric copies."""
    copies, _ = lattice_symmetries(cells.shape[2:], lattice).orbit(cells)
    whole = copies.view(-1, len(cells), cells[0].numel()).numpy()
    return [min(copy.tobytes() for copy in whole[:, index]) for index in range(len(cells))]


def test_cells_are_told_apart_by_their_pixels(cells):
    hashes = cell_hashes(cells.epsilon, SQUARE)
    assert len(hashes.unique()) == len(cells)
    torch.testing.assert_close(cell_hashes(cells.epsilon.double().flip(0), SQUARE), hashes.flip(0))
    assert torch.equal(cells.hashes, hashes)
    assert len(cell_hashes(cells.epsilon[:0], SQUARE)) == 0
    changed = cells.epsilon.clone()
    changed[3, 0, 5, 7] += 1e-5
    assert (cell_hashes(changed, SQUARE) != hashes).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    ("lattice", "grid"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], (6, 6)),
        ([[0.0, 2.0], [2.0, 0.0]], (7, 7)),
        ([[1.0, 0.0], [-0.5, 0.75**0.5]], (6, 6)),
        ([[1.0, 0.0], [-0.5, 0.75**0.5]], (7, 7)),
        ([[1.0, 0.3], [1.0, -0.3]], (6, 6)),
        ([[1.0, 0.0], [0.0, 1.7]], (6, 6)),
        ([[1.0, 0.0], [0.0, 1.5]], (4, 6)),
        ([[1.0, 0.0], [0.2, 1.1]], (6, 6)),
    ],
)
def test_symmetric_copies_and_no_others_share_a_hash(lattice, grid):
    # All cells of one, two and three odd pixels, and random ones.
    points = grid[0] * grid[1]
    odd = [(0, *rest) for more in range(3) for rest in itertools.combinations(range(1, points), more)]
    cells = torch.ones(len(odd), 1, points)
    for cell, pixels in zip(cells, odd):
        cell[0, list(pixels)] = 5.0
    random = torch.randint(1, 3, (200, 1, points), generator=torch.Generator().manual_seed(0))
    cells = torch.cat([cells, random.float()]).view(-1, 1, *grid)
    lattice = torch.tensor(lattice)
    hashes, expected = cell_hashes(cells, lattice).tolist(), orbits(cells, lattice)
    assert len(set(hashes)) == len(set(expected)) == len(set(zip(hashes, expected)))


@pytest.mark.parametrize(
    ("lattice", "grid", "elements"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], (8, 8), 8),
        ([[1.0, 0.0], [1.0, 1.0]], (8, 8), 8),
        ([[1.0, 0.0], [-0.5, 0.866]], (8, 8), 12),
        ([[1.0, 0.0], [-0.5, 0.86595]], (8, 8), 12),
        ([[1.0, 0.0], [0.5, 0.75**0.5]], (8, 8), 12),
        ([[1.0, 0.0], [1.5, 0.75**0.5]], (8, 8), 12),
        ([[1.0, 0.0], [-0.5, 0.75**0.5]], (12, 6), 4),
        ([[1.0, 0.0], [0.5, 1.7]], (8, 8), 4),
        ([[1.0, 0.0], [0.5, 2.0]], (8, 8), 4),
        ([[1.0, 0.0], [0.5, 1.0]], (16, 8), 4),
        ([[1.0, 0.0], [0.2, 1.1]], (6, 8), 2),
    ],
)
def test_copies_under_every_symmetry_of_any_lattice_share_a_hash(lattice, grid, elements):
    lattice, shape = torch.tensor(lattice), torch.tensor(grid)
    cells = torch.rand(3, 1, *grid, generator=torch.Generator().manual_seed(0))
    index = torch.stack(torch.meshgrid(*(torch.arange(points) for points in grid), indexing="ij"), -1)
    metric = lattice @ lattice.T
    matrices = torch.cartesian_prod(*[torch.arange(-4, 5)] * 4).view(-1, 2, 2)  # of lattice vectors, one a row
    of_pixels = matrices * shape / shape[:, None]
    kept = (matrices.float() @ metric @ matrices.mT.float() - metric).abs().amax((1, 2)) < 3e-4
    kept &= (of_pixels == of_pixels.round()).all(2).all(1)
    assert kept.sum() == elements
    for matrix in of_pixels[kept].long():
        x, y = ((index @ matrix) % shape).unbind(-1)
        assert torch.equal(cell_hashes(cells[..., x, y], lattice), cell_hashes(cells, lattice))


def test_more_than_one_channel_counts(cells):
    two = torch.cat([cells.epsilon, cells.epsilon.roll(1, 0)], 1)
    assert not torch.isin(cell_hashes(two.flip(1), SQUARE), cell_hashes(two, SQUARE)).any()
    assert torch.equal(cell_hashes(two.roll(5, 2), SQUARE), cell_hashes(two, SQUARE))


def test_a_model_knows_what_it_was_made_with_wherever_it_goes(finished, cells, tmp_path):
    trained_on, validated_on = split(cells, 10)
    load_regressor(finished).save_pretrained(tmp_path / "elsewhere")
    known = load_regressor(tmp_path / "elsewhere").known
    assert known.among(TRAINED_ON, trained_on.hashes).all()
    assert known.among(VALIDATED_ON, validated_on.hashes).all()
    assert len(numbers(known, TRAINED_ON, cells)) == len(numbers(known, VALIDATED_ON, cells)) == 10


def test_measuring_a_model_on_cells_that_it_knows_is_warned_of(finished, labelled, cells, tmp_path, recwarn):
    known = load_regressor(finished).known
    trained_on, validated_on = (sorted(numbers(known, use, cells)) for use in (TRAINED_ON, VALIDATED_ON))
    mixed = part_of(labelled, [*trained_on[:2], *validated_on[:3]], tmp_path / "mixed.nc")
    message = (
        "of these 5 cells, symmetric copies counted, the model was trained on 2 and validated or calibrated on 3 others"
    )
    with pytest.warns(UserWarning, match=message):
        evaluate(mixed, finished)
    with pytest.warns(UserWarning, match=message.replace("the model", f"the model in {finished}")):
        report(finished, out=tmp_path / "report.html", data=mixed)
    recwarn.clear()
    evaluate(write_cells(tmp_path / "new.nc", 5, seed=11), finished)
    assert not [one for one in recwarn if "the model was trained on" in str(one.message)]


def test_what_a_model_started_from_is_never_validated_on(finished, labelled, cells, tmp_path, capsys):
    before = load_regressor(finished).known
    again = finetune(labelled, tmp_path / "again", labels=4, label_seed=1, pretrained=finished, **SMALL)
    first = numbers(before, TRAINED_ON, cells)
    new = set(np.flatnonzero(torch.isin(cells.hashes, split(cells, 4, 1)[0].hashes)))
    assert new - first, "it is trained on cells that its start was not"
    assert numbers(again.known, TRAINED_ON, cells) == first | new
    assert f"{len(first - new)} cells that `pretrained` was trained on are not validated on" in capsys.readouterr().out
    validated = numbers(again.known, VALIDATED_ON, cells)
    assert validated >= set(range(20)) - first - new
    assert not (validated - numbers(before, VALIDATED_ON, cells)) & first
    with pytest.raises(ValueError, match="leaves none of the 20 labelled cells to validate on that was not trained on"):
        finetune(labelled, tmp_path / "all", labels=19, label_seed=3, pretrained=finished, **SMALL)
    given = part_of(labelled, sorted(first - new)[:2], tmp_path / "given.nc")
    with pytest.raises(ValueError, match="2 of the cells to validate on are among those that `pretrained` was trained"):
        finetune(labelled, tmp_path / "g", labels=4, label_seed=1, validation=given, pretrained=finished, **SMALL)


def moved(path, out, **steps):
    """Write the cells of a file translated by so many pixels."""
    with xr.load_dataset(path) as cells:
        cells["epsilon"] = cells["epsilon"].roll(steps)
        cells.to_netcdf(out, engine="h5netcdf")
    return out


@pytest.mark.parametrize("by", [0, 5])
def test_copies_of_what_is_trained_on_are_not_validated_on(by, labelled, cells, tmp_path, capsys):
    copies = moved(labelled, tmp_path / "copies.nc", x=by, y=2 * by)
    with xr.load_dataset(labelled) as first, xr.load_dataset(copies) as second:
        both = xr.concat([first, second], "sample", data_vars="minimal")
        both.to_netcdf(tmp_path / "both.nc", engine="h5netcdf")
    known = finetune(tmp_path / "both.nc", tmp_path / "run", labels=8, **SMALL).known
    assert "20 cells are translated, turned or mirrored copies of others, and left out." in capsys.readouterr().out
    trained_on, validated_on = (numbers(known, use, cells) for use in (TRAINED_ON, VALIDATED_ON))
    assert (len(trained_on), len(validated_on)) == (8, 12)
    assert not trained_on & validated_on
    with pytest.raises(ValueError, match="the 20 labelled cells there are, symmetric copies counted once, got 21"):
        finetune(tmp_path / "both.nc", tmp_path / "many", labels=21, **SMALL)
    with pytest.warns(UserWarning, match="symmetric copies counted, the model was trained on 8 and validated"):
        evaluate(copies, tmp_path / "run")
    with pytest.warns(UserWarning, match="these 40 cells are 20, if symmetric copies are counted once"):
        evaluate(tmp_path / "both.nc", tmp_path / "run")
    with pytest.raises(ValueError, match="10 of the cells to validate on are among those to train on, or symmetric"):
        finetune(labelled, tmp_path / "given", labels=10, validation=copies, **SMALL)


def test_what_intervals_were_calibrated_on_is_known(finished, cells, tmp_path):
    model = load_regressor(finished)
    with pytest.raises(ValueError, match="10 of the cells to calibrate on are among those that the model was trained"):
        model.calibrate(cells.epsilon[:, 0], cells.dos)
    more = load_cells(write_cells(tmp_path / "more.nc", 60, seed=12), labelled=True)
    few = np.arange(60) % 40
    with pytest.raises(ValueError, match="a calibration needs 50 cells or more, got 40"):
        model.calibrate(more.epsilon[few, 0], more.dos[few])
    model.calibrate(more.epsilon[:, 0], more.dos)
    assert model.known.among(VALIDATED_ON, more.hashes).all()


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_the_models_of_the_package_know_theirs(polarization):
    known = load_regressor(polarization=polarization).known
    for seed, use in ((7001, TRAINED_ON), (7002, VALIDATED_ON)):
        fine = np.stack([unit_cell_family("gpm").draw(seed, index, 32).epsilon for index in range(3)])
        pixels = torch.from_numpy(fine.reshape(3, 32, 9, 32, 9).mean((2, 4)).astype("f4"))[:, None]
        assert known.among(use, cell_hashes(pixels.roll(3, 2).transpose(2, 3), SQUARE)).all()


def test_state_of_another_number_of_cells_is_taken_up(cells):
    known, other = KnownCells(), KnownCells()
    known.add(TRAINED_ON, cells.hashes)
    other.load_state_dict(known.state_dict())
    assert torch.equal(other.hashes_trained_on, known.hashes_trained_on)
    with pytest.raises(RuntimeError, match=TRAINED_ON):
        other.load_state_dict({TRAINED_ON: torch.zeros(2, 2, dtype=torch.long), VALIDATED_ON: torch.zeros(0).long()})
