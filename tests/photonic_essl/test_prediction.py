import shutil

import numpy as np
import pytest
import torch
import xarray as xr

import photonic_essl
from data_gen import open_dataset
from photonic_essl.data import load_cells
from photonic_essl.finetuning import finetune, new_regressor
from photonic_essl.metrics import SCORED, empty_lattice, relative_error
from photonic_essl.prediction import evaluate, predict
from photonic_essl.regression import Regressor, gaussian_kernel, load_regressor
from photonic_essl.saving import weights_fingerprint
from photonic_essl.symmetry import group

from .conftest import SMALL, write_cells


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated")
    data = write_cells(folder / "cells.nc", 200, seed=5, polarization="tm")
    finetune(data, folder / "model", labels=100, **SMALL)
    return folder / "model"


def test_data_are_not_written_over(finished, labelled, tmp_path):
    file, other = (shutil.copy(labelled, tmp_path / name) for name in ("cells.nc", "others.h5"))
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"`out` must end in \.nc, got .*others\.h5"):
        predict(file, other, finished)
    with pytest.raises(ValueError, match="`out` must be another file than `data`"):
        predict(file, file, finished)
    assert file.read_bytes() == other.read_bytes() == before


def test_predictions_carry_their_frequencies_and_units(finished, labelled, cells):
    model = photonic_essl.load_regressor(finished)
    stored = xr.load_dataset(labelled)["epsilon"]
    predicted = model.predict(stored)
    assert predicted.dims == ("sample", "frequency")
    assert predicted.attrs["units"]
    assert predicted.frequency.attrs["units"] == "2πc/a"
    np.testing.assert_allclose(predicted.frequency, np.linspace(0, 1.2, 500)[:400])
    one = model.predict(stored.values[3])
    assert one.dims == ("frequency",)
    np.testing.assert_allclose(one, predicted[3], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(model.predict(cells.epsilon[:, 0]), predicted)
    np.testing.assert_allclose(model.predict(stored.values.astype("f8"), batch_size=20), predicted, rtol=0, atol=1e-5)


def test_smoothing_widens_a_line_by_its_width_and_keeps_its_weight():
    kernel = gaussian_kernel(0.01).double()
    frequency = torch.linspace(0, 1.2, 500, dtype=torch.float64)[:400]
    line = torch.exp(-((frequency - 0.5) ** 2) / (2 * 0.02**2))
    smooth = kernel @ line
    assert float(smooth.sum()) == pytest.approx(float(line.sum()), rel=1e-5)
    variance = ((frequency - 0.5) ** 2 * smooth).sum() / smooth.sum()
    assert float(variance) == pytest.approx(0.02**2 + 0.01**2, rel=1e-3)
    torch.testing.assert_close(kernel @ torch.ones(400).double(), torch.ones(400).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        (np.ones((16, 16)), r"grid of 32 × 32, or one finer by a whole factor, got \(16, 16\)"),
        (np.ones((2, 1, 32, 32)), r"must have shape \(x, y\) or \(sample, x, y\)"),
        (np.zeros((32, 32)), "finite and positive everywhere, got 0"),
        (np.full((32, 32), 2 + 1j), "must be real, got complex128"),
        (np.full((32, 32), np.nan), "finite and positive"),
    ],
)
def test_cells_that_do_not_fit_are_refused(finished, epsilon, message):
    with pytest.raises(ValueError, match=message):
        load_regressor(finished).predict(epsilon)


def test_evaluate_prints_and_returns_the_metric(finished, labelled, cells, capsys):
    error = evaluate(labelled, finished)
    assert error == pytest.approx(relative_error(load_regressor(finished).predict(cells.epsilon[:, 0]), cells.dos))
    assert f"relative error on 20 cells: {100 * error:.3g} %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: np.save(file, np.full((32, 32), 2 + 1j)), "it holds complex128"),
        (lambda file: np.save(file, np.full((32, 32), "air")), "it holds <U3"),
        (lambda file: np.savez(file, a=np.ones((32, 32))), "it holds several arrays"),
        (lambda file: file.write(b"\x93NUMPY"), "is no .npy file of numbers"),
    ],
)
def test_arrays_that_are_no_permittivities_are_refused(write, message, finished, tmp_path):
    with (tmp_path / "cell.npy").open("wb") as file:
        write(file)
    with pytest.raises(ValueError, match=message):
        predict(tmp_path / "cell.npy", tmp_path / "dos.nc", finished)
    assert not (tmp_path / "dos.nc").exists()


def test_what_was_learnt_is_beside_what_needs_no_labels(labelled, cells, tmp_path, capsys):
    model = finetune(labelled, tmp_path / "model", labels=8, epochs=1, device="cpu", progress=False)
    assert "It has no intervals: they need 50 validation cells, labelled ones beyond" in capsys.readouterr().out
    waves = model.uncorrected(cells.epsilon[:, 0])
    new = new_regressor("none", (32, 32), 0, plane_waves=6.5)
    np.testing.assert_allclose(waves, new.predict(cells.epsilon[:, 0]), atol=1e-5)
    evaluate(labelled, tmp_path / "model")
    expected = [relative_error(dos, cells.dos) for dos in (np.tile(empty_lattice()[:400], (20, 1)), waves)]
    printed = capsys.readouterr().out
    empty, uncorrected = (f"{100 * error:.3g} %" for error in expected)
    assert f"nothing learnt: empty lattice {empty}, 137 plane waves {uncorrected}" in printed
    with pytest.raises(ValueError, match="the model starts from no plane waves"):
        new_regressor("light", (32, 32), 0).uncorrected(cells.epsilon[:, 0])


def test_predictions_say_of_what_and_by_what_they_are(finished, unlabelled, tmp_path):
    attributes = predict(unlabelled, tmp_path / "predictions.nc", finished).attrs
    assert attributes["data"] == load_cells(unlabelled).fingerprint
    assert attributes["model"] == weights_fingerprint(load_regressor(finished))
    assert (attributes["polarization"], attributes["lattice"]) == ("tm", [1, 0, 0, 1])


def test_predict_writes_a_file(finished, unlabelled, tmp_path):
    predicted = predict(unlabelled, tmp_path / "predictions.nc", finished)
    written = xr.load_dataset(tmp_path / "predictions.nc")
    np.testing.assert_array_equal(written["dos"], predicted["dos"])
    assert written["dos"].attrs["units"]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        predict(unlabelled, tmp_path / "nowhere" / "predictions.nc", finished)


def test_no_room_for_predictions_is_said_and_leaves_those_that_were_there(
    finished, unlabelled, labelled, files_up_to, tmp_path
):
    before = predict(labelled, tmp_path / "predictions.nc", finished)
    with files_up_to(10_000), pytest.raises(OSError, match=r"File too large: '.*predictions.nc'"):
        predict(unlabelled, tmp_path / "predictions.nc", finished)
    np.testing.assert_array_equal(xr.load_dataset(tmp_path / "predictions.nc")["dos"], before["dos"])
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.nc"]


def test_a_prediction_is_the_mean_over_symmetric_copies(finished):
    model, cell = load_regressor(finished), np.random.default_rng(0).uniform(1, 20, (32, 32)).astype("f4")
    model.invariance = group("mirrors * quarter-turns")
    copies = [turned[::step] for turned in map(np.rot90, [cell] * 4, range(4)) for step in (1, -1)]
    stacked = torch.from_numpy(np.stack(copies))[:, None]
    approximation = model.approximations(torch.from_numpy(cell)[None, None])
    single = model.predicted(stacked, approximation.expand(len(stacked), -1))
    assert single.std(0).max() > 1e-4
    np.testing.assert_allclose(model.predict(cell), single.mean(0), rtol=1e-5, atol=1e-5)
    for copy in copies:  # plane waves are in single precision
        np.testing.assert_allclose(model.predict(copy), model.predict(cell), atol=2e-3)


def test_intervals_hold_new_cells_and_are_written(calibrated, tmp_path, capsys):
    data = write_cells(tmp_path / "test.nc", 100, seed=6, polarization="tm")
    evaluate(data, calibrated)
    share = float(capsys.readouterr().out.split("within its 90 % interval: ")[1].split(" %")[0])
    assert share == pytest.approx(90, abs=6)
    predict(data, tmp_path / "predictions.nc", calibrated)
    written = xr.load_dataset(tmp_path / "predictions.nc")
    assert written.attrs["coverage"] == 0.9
    assert (written["lowest"] >= 0).all()
    assert (written["lowest"] <= written["dos"]).all()
    assert (written["dos"] <= written["highest"]).all()
    assert written["highest"].attrs["units"] == written["dos"].attrs["units"]


def test_a_model_is_calibrated_anew_on_other_cells(calibrated, tmp_path):
    model = load_regressor(calibrated)
    cells = load_cells(write_cells(tmp_path / "cells.nc", 100, seed=7, polarization="tm"), labelled=True)
    epsilon, twice = cells.epsilon[:, 0], 2 * cells.dos
    before = model.predict(epsilon)
    assert within(model, epsilon, twice) < 0.5
    np.testing.assert_array_equal(model.calibrate(epsilon, twice), before)
    assert within(model, epsilon, twice) == pytest.approx(0.9, abs=0.03)
    model.save_pretrained(tmp_path / "model")
    kept = load_regressor(tmp_path / "model").predict_interval(epsilon)
    xr.testing.assert_identical(kept, model.predict_interval(epsilon))


def within(model, epsilon, dos):
    interval = model.predict_interval(epsilon)
    return float(((interval["lowest"] <= dos.numpy()) & (dos.numpy() <= interval["highest"])).values[:, SCORED].mean())


@pytest.mark.parametrize(
    ("cells", "dos", "message"),
    [
        (49, (49, 400), "needs 50 cells or more, got 49"),
        (60, (59, 400), r"`dos` must have shape \(60, 400 or more\), as there are 60 cells, got \(59, 400\)"),
        (60, (60, 399), r"got \(60, 399\)"),
    ],
)
def test_cells_that_do_not_calibrate_are_refused(calibrated, cells, dos, message):
    model = load_regressor(calibrated)
    with pytest.raises(ValueError, match=message):
        model.calibrate(np.random.default_rng(0).uniform(1, 9, (cells, 32, 32)), np.ones(dos))


@pytest.mark.parametrize("lattice", [((1.0, 0.0), (0.0, 1.0)), ((1.0, 0.0), (-0.5, 0.75**0.5))])
def test_uniform_cells_are_the_easiest_on_every_lattice(lattice):
    model = new_regressor("none", (32, 32), 0, plane_waves=3, lattice=lattice)
    uniform, _ = model.mean_and_spread(torch.full((1, 1, 32, 32), 2.0))
    assert float(model.difficulty(uniform)) == pytest.approx(0, abs=1e-5)
    assert float(model.difficulty(uniform + 0.1)) == pytest.approx(0.1, abs=1e-5)


def test_cells_of_a_file_are_refused_by_a_model_of_another_lattice(calibrated, tmp_path):
    model = load_regressor(calibrated)
    for name, attributes in (
        ("lattice", {"lattice": [1.0, 0.0, 0.0, 1.5]}),
        ("cells are for TE", {"polarization": "te"}),
    ):
        cells = open_dataset(write_cells(tmp_path / f"{name}.nc", 60, **attributes))
        for use in (
            model.predict,
            model.predict_interval,
            lambda epsilon: model.calibrate(epsilon, np.ones((60, 400))),
        ):
            with pytest.raises(ValueError, match=name):
                use(cells["epsilon"])
        assert model.predict(cells["epsilon"].values).shape == (60, 400)  # an array says nothing of itself


def test_samples_finer_than_pixels_are_averaged(finished, tmp_path):
    model, fine = load_regressor(finished), np.random.default_rng(0).uniform(1, 20, (2, 96, 96)).astype("f4")
    pixels = fine.astype("f8").reshape(2, 32, 3, 32, 3).mean((2, 4))
    np.testing.assert_allclose(model.predict(fine), model.predict(pixels), rtol=1e-5, atol=1e-5)
    np.save(tmp_path / "fine.npy", fine)
    np.testing.assert_array_equal(
        predict(tmp_path / "fine.npy", tmp_path / "dos.nc", finished)["dos"], model.predict(fine)
    )
    for shape in ((48, 48), (64, 96), (16, 16)):
        with pytest.raises(ValueError, match=r"with a grid of 32 × 32, or one finer by a whole factor, got \("):
            model.predict(np.ones(shape))
    fine[1, 5, 7] = np.nan
    with pytest.raises(ValueError, match="must be finite and positive everywhere, got nan in cell 1"):
        model.predict(fine)


def test_named_dimensions_say_where_x_and_y_are(finished, tmp_path):
    model, epsilon = load_regressor(finished), open_dataset(write_cells(tmp_path / "cells.nc", 3))["epsilon"]
    predicted = model.predict(epsilon)
    np.testing.assert_array_equal(model.predict(epsilon.transpose("y", "sample", "x")), predicted)
    np.testing.assert_array_equal(model.predict(epsilon[1].transpose("y", "x")), model.predict(epsilon[1]))
    np.testing.assert_array_equal(model.predict(torch.tensor(epsilon.values, requires_grad=True)), predicted)


def test_what_plane_waves_cannot_be_solved_for_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"ε from 1 to 1e\+37 is beyond what plane waves can be solved for"):
        load_regressor().uncorrected(np.where(np.eye(32), 1e37, 1.0))


def test_a_model_without_intervals_says_so(finished):
    with pytest.raises(ValueError, match="the model has no intervals"):
        load_regressor(finished).predict_interval(np.ones((32, 32)))


def test_predict_takes_arrays(calibrated, tmp_path):
    cell = np.random.default_rng(0).uniform(1, 20, (32, 32))
    for name, epsilon in (("one", cell), ("two", np.stack([cell, cell]))):
        np.save(tmp_path / f"{name}.npy", epsilon)
        predicted = predict(tmp_path / f"{name}.npy", tmp_path / "predictions.nc", calibrated)
        np.testing.assert_array_equal(predicted["dos"], load_regressor(calibrated).predict(epsilon))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    for name in ("objects", "text"):
        with pytest.raises(ValueError, match=f"{name}.npy is no .npy file of numbers"):
            predict(tmp_path / f"{name}.npy", tmp_path / "predictions.nc", calibrated)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        predict(tmp_path / "missing.npy", tmp_path / "predictions.nc", calibrated)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"polarization": "te"}, "the model predicts TM, the cells are for TE"),
        (
            {"lattice": [1.0, 0.0, 0.5, 0.75**0.5]},
            r"trained on the lattice \[\[1\.0, 0\.0\], .*, the cells have",
        ),
    ],
)
def test_other_physics_is_refused(calibrated, tmp_path, attributes, message):
    data = write_cells(tmp_path / "other.nc", 3, **attributes)
    for use in (lambda: evaluate(data, calibrated), lambda: predict(data, tmp_path / "predictions.nc", calibrated)):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize(
    ("encoder", "epsilon", "scope"),
    [
        ("paper", 0.5, "ε from 1 to 20"),
        ("paper", 25.0, "ε from 1 to 20"),
        ("paper", 3.0, None),
        ("light", 25.0, None),
        ("light", 50.0, "a contrast of ε of 20 at most"),
    ],
)
def test_cells_outside_of_what_a_model_is_made_for_are_warned_of(recwarn, encoder, epsilon, scope):
    cells = np.full((2, 32, 32), 2.0)
    cells[0, :, 16:] = epsilon
    Regressor(encoder).predict(cells)
    assert [str(warning.message) for warning in recwarn] == [
        f"the model was made for {scope}: do not trust its predictions where that does not hold (1 of 2 cells)."
    ] * (scope is not None)
