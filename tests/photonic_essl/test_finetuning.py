import json
import shutil

import numpy as np
import pytest
import torch
import xarray as xr

import data_gen
from data_gen.unit_cells import unit_cell_family
from photonic_essl.data import load_cells
from photonic_essl.encoders import Encoder
from photonic_essl.finetuning import copy_weights, finetune, new_regressor, split
from photonic_essl.metrics import empty_lattice, relative_error
from photonic_essl.prediction import evaluate
from photonic_essl.pretraining import pretrain
from photonic_essl.recipes import load_recipe
from photonic_essl.records import read_record, write_record
from photonic_essl.regression import Regressor, load_regressor

from .conftest import LIGHT, SMALL, write_cells
from .test_encoders import own_network


def test_a_run_leaves_model_settings_and_logs(finished, labelled):
    record = json.loads((finished / "run.json").read_text())
    assert record["finished"]
    assert (record["settings"]["labels"], record["settings"]["invariance"]) == (10, "translations * square")
    validated_on = split(load_cells(labelled, labelled=True), 10)[1]
    error = relative_error(load_regressor(finished).predict(validated_on.epsilon[:, 0]), validated_on.dos)
    assert record["results"]["validation_relative_error"] == pytest.approx(error, rel=1e-5)
    assert not [file for file in finished.rglob("*") if file.suffix in (".pt", ".pkl", ".bin")]


def test_it_learns(tmp_path, labelled, cells):
    finetune(labelled, tmp_path / "run", labels=12, **SMALL | {"epochs": 60})
    trained_on, _ = split(cells, 12)
    model = load_regressor(tmp_path / "run")
    guess = relative_error(np.tile(empty_lattice()[:400], (12, 1)), trained_on.dos)
    assert relative_error(model.predict(trained_on.epsilon[:, 0]), trained_on.dos) < guess / 2


def test_the_same_seeds_give_the_same_model(finished, labelled, cells, tmp_path):
    again = finetune(labelled, tmp_path / "again", labels=10, **LIGHT)
    assert torch.equal(again(cells.epsilon), load_regressor(finished)(cells.epsilon))
    other = finetune(labelled, tmp_path / "other", labels=10, label_seed=1, **LIGHT)
    assert not torch.equal(again(cells.epsilon), other(cells.epsilon))


def test_stopped_and_started_again_it_ends_with_the_same_model(finished, labelled, cells, tmp_path, monkeypatch):
    from photonic_essl import finetuning, training

    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    whole = finetuning.FineTuning.losses

    def stopped(self, rows, generator):
        if self.current_epoch == 2:
            raise OSError("the power went out")
        return whole(self, rows, generator)

    monkeypatch.setattr(finetuning.FineTuning, "losses", stopped)
    with pytest.raises(OSError, match="the power went out"):
        finetune(labelled, tmp_path / "run", labels=10, **LIGHT)
    assert read_record(tmp_path / "run" / "run.json")["seconds"] > 0.01
    monkeypatch.setattr(finetuning.FineTuning, "losses", whole)
    resumed = finetune(labelled, tmp_path / "run", labels=10, **LIGHT)
    assert torch.equal(resumed(cells.epsilon), load_regressor(finished)(cells.epsilon))


def test_killed_between_its_last_step_and_its_end_it_only_ends(finished, labelled, cells, tmp_path):
    again = shutil.copytree(finished, tmp_path / "again")
    write_record(again / "run.json", read_record(again / "run.json") | {"finished": False})
    (again / "model.safetensors").unlink()
    ended = finetune(labelled, again, labels=10, **LIGHT)
    assert torch.equal(ended(cells.epsilon), load_regressor(finished)(cells.epsilon))


def test_a_pretrained_encoder_is_where_it_starts(unlabelled, labelled, tmp_path, monkeypatch):
    pretrain(unlabelled, tmp_path / "encoder", **SMALL)
    from photonic_essl import finetuning

    started, begin = {}, finetuning.FineTuning.on_fit_start

    def remember(module):
        started.update({name: value.clone() for name, value in module.regressor.encoder.state_dict().items()})
        begin(module)

    monkeypatch.setattr(finetuning.FineTuning, "on_fit_start", remember)
    finetune(labelled, tmp_path / "run", labels=10, pretrained=tmp_path / "encoder", **SMALL)
    saved = Encoder.from_pretrained(tmp_path / "encoder").state_dict()
    assert all(torch.equal(started[name], value) for name, value in saved.items())
    with pytest.raises(ValueError, match="holds a run of `pretrain`, not of `finetune`"):
        finetune(labelled, tmp_path / "encoder", labels=10, **SMALL)
    with pytest.raises(ValueError, match="holds the encoder `light`, not `paper`"):
        finetune(labelled, tmp_path / "new", labels=10, pretrained=tmp_path / "encoder", encoder="paper", **SMALL)


def test_what_is_compiled_is_what_trains(labelled, tmp_path, compiled):
    factory = "tests.photonic_essl.test_encoders:own_network"
    finetune(labelled, tmp_path / "run", labels=10, encoder=factory, compile=True, **SMALL)
    assert compiled.steps >= 6, "three epochs of two batches each"


def test_splits_are_nested_and_share_no_cell(cells):
    rows = {cell.numpy().tobytes(): i for i, cell in enumerate(cells.epsilon)}

    def numbers(part):
        return [rows[cell.numpy().tobytes()] for cell in part.epsilon]

    few, many = (split(cells, labels, label_seed=3) for labels in (5, 12))
    assert numbers(many[0])[:5] == numbers(few[0])
    for trained_on, validated_on in (few, many):
        assert not set(numbers(trained_on)) & set(numbers(validated_on))
        assert len(trained_on) + len(validated_on) == len(cells)
    assert numbers(split(cells, 5, label_seed=4)[0]) != numbers(few[0])
    given = split(many[0], 12, validation=many[1])
    assert len(given[0]) == 12
    assert numbers(given[1]) == numbers(many[1])


def test_published_settings():
    recipe = load_recipe("supervised", "paper")
    published = {"optimizer": "adam", "learning_rate": 1e-4, "weight_decay": 1e-5, "batch_size": 64, "epochs": 100}
    published |= {"loss": "squared", "head": [1024, 1024, 512], "cosine": False, "minimum_steps": 0}
    published |= {"smoothing": 0, "plane_waves": 0}
    assert recipe == published
    head = [tuple(layer.weight.shape) for layer in Regressor("paper", head=recipe["head"]).head[::2]]
    assert head == [(1024, 1024), (1024, 1024), (512, 1024), (400, 512)]


def test_a_run_may_start_from_a_regressor_head_and_all(finished, labelled, cells, tmp_path):
    again = finetune(labelled, tmp_path / "run", labels=10, pretrained=finished, **SMALL | {"learning_rate": 1e-12})
    torch.testing.assert_close(again.head.state_dict(), load_regressor(finished).head.state_dict())
    with pytest.raises(ValueError, match=r"has a head of widths \[656, 256, 256, 400\], the recipe asks for \[256, "):
        copy_weights(again, Regressor("light"))


def test_few_labels_never_end_worse_on_validation_than_without_labels(labelled, cells, tmp_path):
    new = new_regressor("none", (32, 32), 0, plane_waves=2.3)
    torch.testing.assert_close(new.difference(cells.epsilon), new.approximations(cells.epsilon), rtol=0, atol=0)
    spoilt = finetune(labelled, tmp_path / "run", labels=10, **SMALL | {"learning_rate": 1e3})
    record = read_record(tmp_path / "run" / "run.json")
    assert record["results"]["best_epoch"] == 0
    approximation = spoilt.approximations(cells.epsilon)
    torch.testing.assert_close(spoilt.difference(cells.epsilon), approximation, rtol=0, atol=0)


def test_labels_that_are_hardly_of_the_cells_are_warned_of(tmp_path, recwarn):
    family = unit_cell_family("blob")
    fine = np.stack([family.draw(3, index, 32).epsilon for index in range(6)])
    label = data_gen.label(fine, resolution=32)
    data = write_cells(tmp_path / "cells.nc", 6)
    with xr.load_dataset(data) as cells:
        cells["epsilon"][:] = fine.reshape(6, 32, 9, 32, 9).mean((2, 4))
        cells["epsilon_mean"][:] = fine.mean((1, 2))
        cells["dos"][:] = label["dos"].values
        cells.to_netcdf(data, engine="h5netcdf")
        finetune(data, tmp_path / "right", labels=4, **SMALL)
        assert not [one for one in recwarn if "plane waves differ" in str(one.message)]
        cells["dos"][:] *= 1.5
        cells.to_netcdf(data, engine="h5netcdf")
    with pytest.warns(UserWarning, match="plane waves differ from the labels by 33 %"):
        finetune(data, tmp_path / "wrong", labels=4, **SMALL)


def test_few_labels_begin_with_plane_waves_and_end_as_smooth_as_labels(labelled, cells, tmp_path):
    model = finetune(labelled, tmp_path / "run", labels=10, **SMALL)
    settings = read_record(tmp_path / "run" / "run.json")["settings"]
    assert (settings["encoder"], settings["plane_waves"]) == ("none", 6.5)
    assert torch.equal(load_regressor(tmp_path / "run")(cells.epsilon), model(cells.epsilon))
    rough, smooth = (new_regressor("none", (32, 32), 0, plane_waves=2.3, smoothing=width) for width in (0, 0.01))
    with torch.no_grad():
        for one in (rough, smooth):
            one.head[-1].bias.copy_(torch.randn(400, generator=torch.Generator().manual_seed(0)))
        rough_steps, steps = (
            (one.difference(cells.epsilon) - one.approximations(cells.epsilon)).diff().abs().mean()
            for one in (rough, smooth)
        )
    assert steps < rough_steps / 3
    with pytest.raises(ValueError, match="without an encoder needs `plane_waves`, got 0"):
        finetune(labelled, tmp_path / "blind", labels=10, plane_waves=0, **SMALL)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_plane_waves_stay_in_single_precision_whatever_the_rest_is_in(precision, labelled, cells, tmp_path):
    model = finetune(labelled, tmp_path / "run", labels=10, precision=precision, **SMALL)
    expected = new_regressor("none", (32, 32), 0, plane_waves=6.5).approximations(cells.epsilon)
    assert model.approximate.momenta.dtype == torch.float32
    torch.testing.assert_close(model.approximations(cells.epsilon).float(), expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [SMALL, LIGHT], ids=["plane waves", "images"])
def test_what_a_gpu_trained_is_for_any_device(settings, labelled, cells, tmp_path):
    trained = finetune(labelled, tmp_path / "run", labels=10, **settings | {"device": "gpu"})
    assert read_record(tmp_path / "run" / "run.json")["settings"]["precision"] == "bf16-mixed"
    here = load_regressor(tmp_path / "run").predict(cells.epsilon[:, 0])
    there = trained.cuda().predict(cells.epsilon[:, 0])
    np.testing.assert_allclose(there.values, here.values, rtol=0, atol=1e-2)


def test_what_a_pretrained_encoder_takes_for_its_range_is_kept(labelled, tmp_path):
    Encoder("paper", permittivity_range=(1, 12)).save_pretrained(tmp_path / "encoder")
    settings = {"pretrained": tmp_path / "encoder", "recipe": "supervised"}
    finetune(labelled, tmp_path / "run", labels=10, **settings, **SMALL)
    assert load_regressor(tmp_path / "run").encoder.standardise.highest == 12


def test_ones_own_network_is_given_again_to_load(labelled, cells, tmp_path):
    factory = "tests.photonic_essl.test_encoders:own_network"
    trained = finetune(labelled, tmp_path / "run", labels=10, encoder=factory, **SMALL)
    again = finetune(labelled, tmp_path / "again", labels=10, encoder=factory, **SMALL)
    assert torch.equal(again(cells.epsilon), trained(cells.epsilon))
    loaded = load_regressor(tmp_path / "run", network=own_network(1, (32, 32)))
    assert torch.equal(loaded(cells.epsilon), trained(cells.epsilon))
    assert evaluate(labelled, tmp_path / "run", encoder=factory) > 0
    with pytest.raises(ValueError, match="not a preset, and has to be given"):
        load_regressor(tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": 21}, "`labels` must be from 1 to the 20 labelled cells there are, got 21"),
        ({"labels": 0}, "`labels` must be from 1 to"),
        ({"labels": 20}, "leaves none of the 20 labelled cells to validate on that was not trained on"),
        ({"recipe": "magic"}, "unknown recipe 'magic'"),
        ({"recipe": "simclr"}, "the recipe 'simclr' is for pre-training"),
        ({"encoder": "tiny"}, "unknown encoder 'tiny'"),
        ({"head": [0]}, r"`head` must be widths of layers, at least 1 each, got \[0\]"),
        ({"minimum_steps": -5}, "`minimum_steps` must not be negative, got -5"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive, got 0"),
        ({"weight_decay": -1.0}, "`weight_decay` must not be negative, got -1"),
        ({"family": "rods"}, "no groups were published for the family 'rods'"),
        ({"loss": "cubic"}, "`loss` must be one of squared, absolute, got 'cubic'"),
        ({"smoothing": 0.5}, "`smoothing` must be from 0 to 0.1, got 0.5"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"epochs": 0}, "`epochs` must be at least 1"),
        ({"precision": "bf16-true"}, "`precision` must be one of 32-true, 64-true, bf16-mixed, 16-mixed, got 'bf16-t"),
        ({"precision": "16-mixed"}, "`precision` 16-mixed needs a GPU"),
        ({"plane_waves": -1.0}, "the cutoff of plane waves must be positive, got -1"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(settings, message, labelled, tmp_path):
    with pytest.raises(ValueError, match=message):
        finetune(labelled, tmp_path / "run", **{"labels": 10, **SMALL, **settings})
    assert not (tmp_path / "run").exists()


def test_cells_to_validate_on_are_of_the_same_kind_and_not_trained_on(labelled, tmp_path):
    with pytest.raises(ValueError, match="10 of the cells to validate on are among those to train on"):
        finetune(labelled, tmp_path / "run", labels=10, validation=labelled, **SMALL)
    for change in ({"polarization": "te"}, {"grid": (16, 16)}, {"lattice": [1.0, 0.0, 0.0, 1.5]}):
        other = write_cells(tmp_path / "other.nc", 5, seed=9, **change)
        with pytest.raises(ValueError, match="cells to validate on have grid, lattice vectors and polarization"):
            finetune(labelled, tmp_path / "run", labels=10, validation=other, **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mended", [{"lattice": [1.0, 0.0, 0.0, 2.0]}, {"polarization": "te"}])
def test_a_file_whose_physics_was_mended_is_another_run(mended, tmp_path):
    settings = {"labels": 10, "recipe": "supervised", "invariance": "mirrors", **SMALL}
    finetune(write_cells(tmp_path / "cells.nc", 20, lattice=[1.0, 0.0, 0.0, 1.5]), tmp_path / "run", **settings)
    cells = write_cells(tmp_path / "cells.nc", 20, **{"lattice": [1.0, 0.0, 0.0, 1.5], **mended})
    with pytest.raises(ValueError, match=f"holds a run with other settings \\({next(iter(mended))}: "):
        finetune(cells, tmp_path / "run", **settings)


def test_bad_files_are_refused(unlabelled, labelled, tmp_path):
    with pytest.raises(ValueError, match="is unlabelled"):
        finetune(unlabelled, tmp_path / "run", labels=3)
    with pytest.raises(FileNotFoundError):
        finetune(tmp_path / "nothing.nc", tmp_path / "run", labels=3)
    with pytest.raises(FileNotFoundError, match="holds no saved model"):
        finetune(labelled, tmp_path / "run", labels=3, pretrained=tmp_path)
    wide = write_cells(tmp_path / "wide.nc", 6, grid=(64, 64))
    pretrain(wide, tmp_path / "encoder", epochs=1, batch_size=4, progress=False)
    with pytest.raises(ValueError, match=r"an encoder of a \(64, 64\) grid, the cells have \(32, 32\)"):
        finetune(labelled, tmp_path / "run", labels=3, pretrained=tmp_path / "encoder")


def test_a_start_from_other_physics_is_called_so(finished, tmp_path):
    other = write_cells(tmp_path / "te.nc", 12, polarization="te")
    with pytest.warns(UserWarning, match=r"`pretrained` was trained for TM on the lattice .*, these cells are for TE"):
        finetune(other, tmp_path / "run", labels=5, pretrained=finished, **SMALL)


def test_cells_of_an_unpublished_family_are_augmented_by_all_that_changes_nothing(tmp_path):
    own = write_cells(tmp_path / "own.nc", 12, family="ellipses", lattice=[1.0, 0.0, 0.0, 1.5])
    finetune(own, tmp_path / "run", labels=5, recipe="supervised", **SMALL)
    settings = read_record(tmp_path / "run" / "run.json")["settings"]
    assert settings["invariance"] == "translations * mirrors"


def test_training_that_made_nothing_better_is_called_so(labelled, tmp_path, capsys):
    finetune(labelled, tmp_path / "run", labels=10, **SMALL | {"learning_rate": 1000.0})
    assert read_record(tmp_path / "run" / "run.json")["results"]["best_epoch"] == 0
    assert "the model is as it was before training" in capsys.readouterr().out
    finetune(labelled, tmp_path / "other", labels=10, recipe="supervised", **SMALL)
    assert "before training" not in capsys.readouterr().out
