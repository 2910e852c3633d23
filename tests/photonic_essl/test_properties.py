"""What holds of symmetry groups, metrics, predictions and recipes whatever they are given: tried at random.

`pytest --hypothesis-profile many tests/photonic_essl/test_properties.py` tries many more.
"""

import copy
import functools

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as some

import data_gen
from photonic_essl.metrics import FREQUENCIES, PREDICTED, SCORED, relative_error, relative_errors
from photonic_essl.recipes import load_recipe, overridden, recipe_names
from photonic_essl.regression import Regressor
from photonic_essl.symmetry import Elements, group, rescaling

SEEDS = some.integers(0, 2**63 - 1)
CONTAINERS = some.sampled_from([np.asarray, torch.as_tensor, xr.DataArray])
SQUARE = ["identity", "quarter-turns", "mirrors", "square"]
TRANSLATIONS = some.one_of(some.just("translations"), some.integers(1, 4).map(lambda n: f"translations/{n}"))
GROUPS = some.builds(
    lambda names: group(" * ".join(names)),
    some.one_of(
        some.lists(some.one_of(some.sampled_from(SQUARE), TRANSLATIONS), min_size=1, max_size=3),
        some.lists(some.one_of(some.just("hexagon"), TRANSLATIONS), min_size=1, max_size=2),
    ),
)


@some.composite
def grids(draw, chosen):
    """A small grid that the group maps onto itself."""
    unit = chosen.parts or 1
    x, y = (unit * draw(some.integers(1, max(1, 6 // unit))) for _ in range(2))
    return (x, x) if any(matrix[0][1] or matrix[1][0] for matrix in chosen.matrices) else (x, y)


@some.composite
def groups_and_cells(draw):
    """A group, and cells of any number, channels and dtype, no two points of a channel alike."""
    chosen = draw(GROUPS)
    samples, channels, grid = draw(some.integers(1, 3)), draw(some.integers(1, 3)), draw(grids(chosen))
    dtype = draw(some.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    planes = [1 + torch.randperm(grid[0] * grid[1], generator=generator) for _ in range(samples * channels)]
    return chosen, torch.stack(planes).view(samples, channels, *grid).to(dtype)


def by_element(chosen, x):
    return chosen.orbit(x)[0].view(chosen.order(tuple(x.shape[2:])), *x.shape)


@given(groups_and_cells())
def test_an_orbit_holds_every_element_once_beginning_with_the_identity(case):
    chosen, x = case
    copies, labels = chosen.orbit(x)
    order = chosen.order(tuple(x.shape[2:]))
    assert copies.dtype == x.dtype
    assert torch.equal(labels.view(order, -1), torch.arange(order)[:, None].expand(-1, len(x)))
    copies = by_element(chosen, x)
    assert torch.equal(copies[0], x)
    assert torch.equal(copies.flatten(3).sort(3).values, x.flatten(2).sort(2).values.expand(order, -1, -1, -1))
    if min(x.shape[2:]) > 2:  # on fewer points, different operations move them alike
        assert len({each.view(torch.uint8).numpy().tobytes() for each in copies}) == order


@given(groups_and_cells(), SEEDS)
def test_labels_compose_as_the_elements_do_and_every_element_has_an_inverse(case, seed):
    chosen, x = case
    grid = tuple(x.shape[2:])
    copies = by_element(chosen, x)
    first, then = torch.randint(len(copies), (2, 8), generator=torch.Generator().manual_seed(seed))
    both, back = chosen.compose(first, then, grid), chosen.inverse(first, grid)
    for i in range(len(first)):
        moved = copies[first[i]]
        assert torch.equal(chosen.apply(moved, Elements(then[i].repeat(len(x)))), copies[both[i]])
        assert torch.equal(chosen.apply(moved, Elements(back[i].repeat(len(x)))), x)
    assert not chosen.compose(first, back, grid).any()
    assert not chosen.compose(back, first, grid).any()


@given(groups_and_cells(), SEEDS)
def test_a_sample_is_an_element_of_the_orbit_for_each_cell_and_follows_from_the_seed(case, seed):
    chosen, x = case
    sampled, again = (chosen.sample(x, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(sampled, again)
    labels = chosen.draw(len(x), tuple(x.shape[2:]), torch.Generator().manual_seed(seed)).labels
    copies = by_element(chosen, x)
    for i, label in enumerate(labels):
        assert torch.equal(sampled[i], copies[label, i])


@given(groups_and_cells(), SEEDS, some.floats(0.1, 1.0), some.floats(1.5, 30.0))
def test_rescaling_keeps_the_pattern_and_the_range(case, seed, lowest, ratio):
    x = case[1].float()
    x = lowest * (ratio ** (0.9 * x / x.max()))
    scaled = rescaling(lowest, lowest * ratio).sample(x, torch.Generator().manual_seed(seed))
    factor = (scaled / x).flatten(1)
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))
    assert len(factor[:, 0].unique()) == len(x), "cells do not get factors of their own"
    assert scaled.min() >= lowest * (1 - 1e-4)
    assert scaled.max() <= lowest * ratio * (1 + 1e-4)


@given(
    some.sampled_from(SQUARE),
    some.booleans(),
    SEEDS,
    some.sampled_from(["tm", "te"]),
)
def test_transformed_copies_of_a_cell_have_one_spectrum_over_the_zone(point_group, rescaled, seed, polarization):
    chosen = group(f"{point_group} * translations" + " * rescaling" * rescaled)
    generator = torch.Generator().manual_seed(seed)
    # An odd number of points: on few and even ones, the wave of highest frequency along both axes breaks mirrors in TE.
    cell = 1 + 8 * (torch.rand(1, 1, 7, 7, generator=generator) > 0.5).double()
    spectra = []
    for each in (cell, chosen.sample(cell, generator)):
        epsilon = each[0, 0].numpy()
        bands = data_gen.solve(epsilon, 7, bands=4, polarization=polarization, solver="rbme")
        spectra.append(np.sort(epsilon.mean() ** 0.5 * bands["frequency"].values, axis=0))
    np.testing.assert_allclose(*spectra, rtol=1e-4, atol=1e-6)


@some.composite
def densities(draw):
    """Densities of states of some cells, `(..., frequency)`, on 400 or 500 frequencies."""
    lead = tuple(draw(some.lists(some.integers(1, 3), max_size=2)))
    random = np.random.default_rng(draw(SEEDS))
    return random.uniform(0.1, 9.0, (*lead, draw(some.sampled_from([PREDICTED, len(FREQUENCIES)]))))


@given(densities(), some.floats(-0.9, 3.0), some.floats(1e-3, 1e3), CONTAINERS, CONTAINERS)
def test_the_metric_is_the_relative_deviation_and_has_no_units(true, deviation, units, first, second):
    predicted = (1 + deviation) * true
    errors = relative_errors(first(units * predicted), second(units * true))
    np.testing.assert_allclose(errors, np.full(true.shape[:-1], abs(deviation)), atol=1e-9)
    assert relative_error(predicted, true) == pytest.approx(abs(deviation), abs=1e-9)


@given(densities(), SEEDS, some.sampled_from([np.float32, np.float64]))
def test_the_metric_is_a_distance_of_the_scored_part(true, seed, dtype):
    random = np.random.default_rng([seed, 1])  # not the true ones, should their seed be the same
    predicted, between = random.uniform(0.1, 9.0, (2, *true.shape))
    outside = np.ones(true.shape[-1], bool)
    outside[SCORED] = False
    errors = relative_errors(predicted, true)
    np.testing.assert_array_equal(errors, relative_errors(np.where(outside, 99.0, predicted), true))
    np.testing.assert_array_equal(errors, relative_errors(predicted[..., :PREDICTED], true[..., :PREDICTED]))
    np.testing.assert_allclose(errors, relative_errors(predicted.astype(dtype), true.astype(dtype)), rtol=1e-5)
    total = np.abs(true[..., SCORED]).sum(-1)
    np.testing.assert_allclose(errors * total, np.abs(predicted - true)[..., SCORED].sum(-1))
    detour = np.abs(predicted - between)[..., SCORED].sum(-1) / total + relative_errors(between, true)
    assert (errors <= detour * (1 + 1e-12)).all()
    assert (errors > 0).all()
    assert not relative_errors(true, true).any()


@functools.cache
def regressor():
    torch.manual_seed(0)
    return Regressor("light", grid=(8, 16), head=[16])


@given(
    some.integers(1, 5),
    some.integers(1, 6),
    CONTAINERS,
    some.sampled_from([np.float16, np.float32, np.float64, np.int64]),
    some.booleans(),
    SEEDS,
)
def test_predictions_depend_on_the_cell_alone(count, batch_size, container, dtype, fortran, seed):
    cells = np.random.default_rng(seed).integers(1, 20, (count, 8, 16)).astype(dtype)
    given_ = np.asfortranarray(cells) if fortran else cells
    model = regressor()
    mode = model.training
    predicted = model.predict(container(given_), batch_size=batch_size)
    assert model.training == mode
    assert predicted.dims == ("sample", "frequency")
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted.frequency, FREQUENCIES[:PREDICTED])
    for cell, expected in zip(cells, predicted):
        alone = model.predict(container(cell))
        assert alone.dims == ("frequency",)
        np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-5)


VALUES = some.one_of(some.none(), some.integers(), some.floats(allow_nan=False), some.text(max_size=5))


@given(some.sampled_from(recipe_names()), some.sampled_from(["light", "paper", "own:network"]), some.data())
def test_a_recipe_is_overridden_by_what_is_given_and_by_nothing_else(name, encoder, data):
    recipe = load_recipe(name, encoder)
    before = copy.deepcopy(recipe)
    values = data.draw(some.dictionaries(some.sampled_from(sorted(recipe)), VALUES))
    changed = overridden(recipe, **values)
    assert recipe == before
    assert list(changed) == list(recipe)
    for key, value in changed.items():
        assert value == (recipe[key] if values.get(key) is None else values[key])
    unknown = data.draw(some.from_regex("[a-z]{3,8}", fullmatch=True).filter(lambda key: key not in recipe))
    assert overridden(recipe, **{unknown: None}) == recipe
    with pytest.raises(ValueError, match=f"this recipe has no {unknown}; its settings are "):
        overridden(recipe, **{unknown: 1})
