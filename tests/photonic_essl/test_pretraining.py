import inspect
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tqdm.std
import xarray as xr
from safetensors.torch import load_file

from data_gen.command_line import run
from photonic_essl import cuda_graphs, distributed, pretraining, training
from photonic_essl.cli import COMMANDS
from photonic_essl.data import load_cells
from photonic_essl.encoders import DivergenceError, Encoder
from photonic_essl.finetuning import finetune
from photonic_essl.metrics import empty_lattice, relative_error
from photonic_essl.plotting import read_log
from photonic_essl.pretraining import Pretraining, check_can_tell_apart, named_groups, pretrain
from photonic_essl.probing import probe_error
from photonic_essl.recipes import load_recipe, recipe_names
from photonic_essl.records import read_record, write_record
from photonic_essl.runs import Run
from photonic_essl.symmetry import group

from .conftest import write_cells

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
SMALL = {"epochs": 2, "batch_size": 8, "device": "cpu", "progress": False}


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def command(data, out, *options):
    program = str(Path(sys.executable).with_name("photonic-essl"))
    return [program, "pretrain", "--data", str(data), "--out", str(out), "--device", "cpu", "--no-progress", *options]


@pytest.fixture(scope="module")
def finished(unlabelled, labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    pretrain(unlabelled, out, probe=labelled, probe_every=1, **SMALL)
    return out


def test_a_run_leaves_encoder_settings_logs_and_cost(finished, unlabelled):
    record = json.loads((finished / "run.json").read_text())
    assert record["finished"]
    assert record["seconds"] > 0
    assert record["settings"]["invariance"] == "mirrors * quarter-turns"
    assert record["settings"]["equivariance"] == "translations/2"
    assert record["settings"]["weight"] == 5.0
    assert record["settings"]["data"] == load_cells(unlabelled).fingerprint
    assert torch.__version__.startswith(record["sittings"][0]["versions"]["torch"])
    assert record["results"]["steps"] == 6
    assert list(finished.glob("tensorboard/*/events*"))
    assert not [file for file in finished.rglob("*") if file.suffix in (".pt", ".pkl", ".part")]
    for quantity in ("loss", "invariance_loss", "prediction_loss", "prediction_accuracy"):
        assert math.isfinite(read_log(finished, quantity)[1][0])
    assert list(read_log(finished, "probe_relative_error")[0]) == [3, 6]


def test_the_same_seed_gives_the_same_weights_and_another_others(finished, unlabelled, labelled, tmp_path):
    pretrain(unlabelled, tmp_path / "again", probe=labelled, probe_every=1, **SMALL)
    assert same(weights(finished), weights(tmp_path / "again"))
    pretrain(unlabelled, tmp_path / "other", seed=1, **SMALL)
    assert not same(weights(finished), weights(tmp_path / "other"))


def test_training_leaves_torch_as_it_was(unlabelled, tmp_path, monkeypatch):
    trying, whole = [], Pretraining.losses

    def watched(self, rows, generator):
        trying.append(torch.backends.cudnn.benchmark)
        return whole(self, rows, generator)

    monkeypatch.setattr(Pretraining, "losses", watched)
    numbers = torch.get_rng_state()
    pretrain(unlabelled, tmp_path / "run", **SMALL)
    assert trying == [True] * 6
    assert not torch.backends.cudnn.benchmark
    assert torch.equal(torch.get_rng_state(), numbers)


def test_probing_changes_nothing(finished, unlabelled, tmp_path):
    pretrain(unlabelled, tmp_path / "unprobed", **SMALL)
    assert same(weights(finished), weights(tmp_path / "unprobed"))


def test_a_finished_run_is_left_alone(finished, unlabelled, labelled, capsys):
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    pretrain(unlabelled, finished, probe=labelled, probe_every=1, **SMALL)
    assert "finished; nothing was changed" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in finished.rglob("*")}


def test_other_settings_over_a_run_are_refused(finished, unlabelled, labelled):
    with pytest.raises(ValueError, match=r"weight: 5.0 there, 2.0 asked"):
        pretrain(unlabelled, finished, probe=labelled, probe_every=1, weight=2.0, **SMALL)


def test_a_folder_of_something_else_is_refused(unlabelled, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not the folder of a run"):
        pretrain(unlabelled, tmp_path, **SMALL)


def test_killed_and_started_again_it_ends_with_the_same_weights(unlabelled, tmp_path):
    options = ("--epochs", "12", "--batch-size", "8")
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(unlabelled, killed, *options), env=ONE_THREAD)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model.safetensors").exists()

    settings = {**SMALL, "epochs": 12}
    pretrain(unlabelled, killed, **settings)
    pretrain(unlabelled, tmp_path / "whole", **settings)
    assert same(weights(killed), weights(tmp_path / "whole"))
    assert len(json.loads((killed / "run.json").read_text())["sittings"]) == 2


def test_a_full_disk_is_one_line_and_loses_nothing(finished, unlabelled, labelled, files_up_to, tmp_path, capsys):
    asked = ("pretrain", "--data", unlabelled, "--out", tmp_path / "run", "--probe", labelled, "--probe-every", 1)
    small = ("--epochs", 2, "--batch-size", 8, "--device", "cpu", "--no-progress")
    words = [str(word) for word in (*asked, *small)]
    with files_up_to(20_000):
        assert run("photonic-essl", COMMANDS, words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "photonic-essl: error: [Errno 27] File too large" in error
    assert run("photonic-essl", COMMANDS, words) == 0
    assert same(weights(tmp_path / "run"), weights(finished))


def failing_at(step, error):
    """Return a step of pre-training that fails at one of them."""
    whole = Pretraining.losses

    def losses(self, rows, generator):
        if self.global_step == step:
            raise error
        return whole(self, rows, generator)

    return losses


def test_a_gpu_that_disappears_is_one_line_and_the_run_goes_on(
    finished, unlabelled, labelled, tmp_path, monkeypatch, capsys
):
    lost = RuntimeError("CUDA error: device not ready\nCompile with `TORCH_USE_CUDA_DSA` to enable assertions.\n")
    monkeypatch.setattr(Pretraining, "losses", failing_at(4, lost))
    asked = ("pretrain", "--data", unlabelled, "--out", tmp_path / "run", "--probe", labelled, "--probe-every", 1)
    words = [str(word) for word in (*asked, "--epochs", 2, "--batch-size", 8, "--no-progress", "--device")]
    assert run("photonic-essl", COMMANDS, [*words, "cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("photonic-essl: error: CUDA error: device not ready")
    assert error.count("\n") == 1
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("photonic-essl", COMMANDS, [*words, "gpu"]) == 2
    error = capsys.readouterr().err
    assert error == "photonic-essl: error: `device` is gpu, but torch finds no CUDA device here.\n"
    pretrain(unlabelled, tmp_path / "run", probe=labelled, probe_every=1, **SMALL)
    assert same(weights(tmp_path / "run"), weights(finished))


def test_a_clock_that_goes_backwards_changes_nothing(finished, unlabelled, labelled, tmp_path, monkeypatch):
    backwards = itertools.count(2e9, -3600)
    for module in (time, tqdm.std):
        monkeypatch.setattr(module, "time", lambda: next(backwards))
    settings = {**SMALL, "progress": True, "probe": labelled, "probe_every": 1}
    out = tmp_path / "run"
    with monkeypatch.context() as stopped:
        stopped.setattr(Pretraining, "losses", failing_at(4, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            pretrain(unlabelled, out, **settings)
    for file in out.rglob("*"):
        os.utime(file, (4e9, 4e9))  # it has come from the future
    pretrain(unlabelled, out, **settings)
    assert same(weights(out), weights(finished))
    record = json.loads((out / "run.json").read_text())
    assert record["seconds"] > 0
    assert len(record["sittings"]) == 2


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_stopped_in_any_precision_it_ends_with_the_same_weights(precision, unlabelled, tmp_path, monkeypatch):
    settings = SMALL | {"precision": precision}
    with monkeypatch.context() as stopped:
        stopped.setattr(Pretraining, "losses", failing_at(4, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            pretrain(unlabelled, tmp_path / "run", **settings)
    for name in ("run", "whole"):
        pretrain(unlabelled, tmp_path / name, **settings)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_killed_between_its_last_step_and_its_end_it_only_ends(finished, unlabelled, labelled, tmp_path):
    again = shutil.copytree(finished, tmp_path / "again")
    write_record(again / "run.json", read_record(again / "run.json") | {"finished": False})
    (again / "model.safetensors").unlink()
    pretrain(unlabelled, again, probe=labelled, probe_every=1, **SMALL)
    assert same(weights(again), weights(finished))


def test_a_damaged_checkpoint_is_not_gone_on_from(finished, unlabelled, labelled, tmp_path):
    again = shutil.copytree(finished, tmp_path / "again")
    write_record(again / "run.json", read_record(again / "run.json") | {"finished": False})
    checkpoint = again / "checkpoints" / "last.ckpt"
    body = bytearray(checkpoint.read_bytes())
    body[len(body) // 2] ^= 1
    checkpoint.write_bytes(body)
    with pytest.raises(ValueError, match=r"last.ckpt is damaged"):
        pretrain(unlabelled, again, probe=labelled, probe_every=1, **SMALL)
    torch.save({"state_dict": {}}, checkpoint)
    with pytest.raises(ValueError, match=r"last.ckpt is no checkpoint of a run; without it, the run begins anew"):
        pretrain(unlabelled, again, probe=labelled, probe_every=1, **SMALL)


def test_a_checkpoint_of_another_architecture_is_not_gone_on_from(finished, unlabelled, labelled, tmp_path):
    again = shutil.copytree(finished, tmp_path / "again")
    write_record(again / "run.json", read_record(again / "run.json") | {"finished": False})
    checkpoint = again / "checkpoints" / "last.ckpt"
    held = torch.load(checkpoint, weights_only=True)
    held["state_dict"]["projector.0.weight"] = held["state_dict"]["projector.0.weight"][:, :9]
    torch.save(held, checkpoint)
    message = r"the shape of `projector.0.weight` is \(256, 9\) there, \(256, 256\) here; without it"
    with pytest.raises(ValueError, match=message):
        pretrain(unlabelled, again, probe=labelled, probe_every=1, **SMALL)


@pytest.mark.slow
def test_two_processes_take_the_step_that_one_takes(unlabelled, tmp_path):
    # One step of plain gradient descent at rate 1: the weights move by the gradient. In float32, the rounding of
    # torch's own batch normalisation, magnified by a new network, would hide what is tested.
    options = ("--epochs", "1", "--batch-size", "24", "--optimizer", "sgd", "--learning-rate", "1")
    options += ("--precision", "64-true")
    for name, devices in (("one", "1"), ("two", "2")):
        asked = command(unlabelled, tmp_path / name, *options, "--devices", devices)
        subprocess.run(asked, check=True, timeout=300, env=ONE_THREAD)
    cells = load_cells(unlabelled)
    settings = load_recipe("e-simclr", "light") | {"batch_size": 24}
    start = Pretraining(cells, "light", settings, named_groups(cells, "predicted")).encoder
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    gradient = torch.cat([(start.state_dict()[name] - one[name]).flatten() for name, _ in start.named_parameters()])
    difference = torch.cat([(two[name] - one[name]).flatten() for name, _ in start.named_parameters()])
    assert difference.norm() <= 1e-5 * gradient.norm()
    for name, _ in start.named_buffers():
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6)


PRETRAINING = [name for name in recipe_names() if "transformation" in load_recipe(name, "light")]


@pytest.mark.parametrize("recipe", PRETRAINING)
def test_every_recipe_learns(recipe, unlabelled, tmp_path):
    encoder = pretrain(unlabelled, tmp_path / "run", recipe=recipe, **SMALL)
    cells = load_cells(unlabelled).epsilon
    assert torch.isfinite(encoder(cells)).all()
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["objective"] in recipe
    if recipe == "simclr+t":
        assert settings["invariance"] == "mirrors * quarter-turns * translations/2"
    if not recipe.startswith("e-"):
        assert settings["equivariance"] == "identity"


@pytest.mark.parametrize(("task", "asked"), [("relative", "quarter-turns"), ("continuous", "translations")])
def test_other_prediction_tasks(task, asked, unlabelled, tmp_path):
    pretrain(unlabelled, tmp_path / "run", prediction=task, equivariance=asked, **SMALL)
    assert 0 <= read_log(tmp_path / "run", "prediction_accuracy")[1][0] <= 1


@pytest.mark.parametrize("encoder", ["paper", "light"])
def test_recipes_hold_the_published_hyperparameters(encoder):
    recipe = load_recipe("e-simclr", encoder)
    assert (recipe["objective"], recipe["temperature"], recipe["weight"]) == ("simclr", 0.1, 5.0)
    if encoder == "paper":
        published = {"optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.9, "weight_decay": 0.0}
        published |= {"batch_size": 256, "epochs": 200, "projector": [512, 512, 256], "classifier": [512, 512]}
        assert recipe.items() >= published.items()


def test_the_equivariance_branch_sees_all_copies_of_the_untransformed_batch(unlabelled):
    cells = load_cells(unlabelled)
    settings = load_recipe("e-simclr", "light") | {"batch_size": 8}
    module = Pretraining(cells, "light", settings, named_groups(cells, "predicted"))
    seen = []
    module.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.losses(torch.arange(8), torch.Generator().manual_seed(0))
    views, copies = seen
    assert len(views) == 16
    assert torch.equal(copies, group("translations/2").orbit(cells.epsilon[:8])[0])


def test_what_is_compiled_is_what_trains(unlabelled, tmp_path, compiled):
    factory = "tests.photonic_essl.test_encoders:own_network"
    pretrain(unlabelled, tmp_path / "run", encoder=factory, compile=True, **SMALL)
    assert compiled.steps >= 12, "two epochs of three batches: views together, and transformed copies"


def test_code_is_compiled_for_the_two_batches_of_a_step_alone(unlabelled, labelled, tmp_path, compiled):
    factory, probe = "tests.photonic_essl.test_encoders:own_network", {"probe": labelled, "probe_every": 1}
    pretrain(unlabelled, tmp_path / "run", encoder=factory, compile=True, **SMALL, **probe)
    values = list(itertools.chain.from_iterable(compiled.inputs))
    assert all(isinstance(value, torch.Tensor) for value in values), "sizes are not left open"
    assert {len(value) for value in values if value.ndim == 4} == {2 * 8, 4 * 8}, "the probe sees 20 cells"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("recipe", "prediction"),
    [(name, "absolute") for name in ("e-simclr", "e-simsiam", "e-barlow")]
    + [("e-simclr", name) for name in ("relative", "continuous")],
)
@pytest.mark.parametrize("captures_it", [True, False])
def test_a_step_on_a_gpu_never_waits_for_it(recipe, prediction, captures_it, unlabelled):
    cells = load_cells(unlabelled)
    settings = load_recipe(recipe, "paper") | {"batch_size": 8, "prediction": prediction}
    module = Pretraining(cells, "paper", settings, named_groups(cells, "predicted")).cuda()
    module.cells, rows = module.cells.cuda(), torch.arange(8, device="cuda")
    module.may_capture = captures_it
    generator = torch.Generator("cuda").manual_seed(0)
    try:
        for mode in ("default", "error"):  # some constants are taken there in the first step
            torch.cuda.set_sync_debug_mode(mode)
            with torch.autocast("cuda", torch.bfloat16):
                loss = module.losses(rows, generator)["loss"]
            loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.gpu
@pytest.mark.parametrize("encoder", ["paper", "light"])
def test_what_a_gpu_trained_is_for_any_device(encoder, unlabelled, labelled, tmp_path):
    on_gpu = SMALL | {"device": "gpu"}
    trained = pretrain(unlabelled, tmp_path / "run", encoder=encoder, probe=labelled, probe_every=1, **on_gpu)
    assert read_record(tmp_path / "run" / "run.json")["settings"]["precision"] == "bf16-mixed"
    cells = load_cells(unlabelled).epsilon
    here, there = trained(cells), trained.cuda()(cells.cuda()).cpu()
    assert (here - there).abs().max() < 1e-2 * here.abs().max()
    assert same(weights(tmp_path / "run"), trained.cpu().state_dict())


@pytest.fixture
def captures(monkeypatch):
    """How often steps were captured."""
    made = []
    monkeypatch.setattr(pretraining, "captured", lambda *call: made.append(call) or cuda_graphs.captured(*call))
    return made


@pytest.mark.gpu
@pytest.mark.parametrize("prediction", ["absolute", "relative", "continuous"])
@pytest.mark.parametrize("encoder", ["paper", "light"])
def test_a_step_that_a_gpu_repeats_is_the_step(
    encoder, prediction, unlabelled, labelled, tmp_path, captures, monkeypatch
):
    options = SMALL | {"device": "gpu", "precision": "64-true", "optimizer": "sgd", "encoder": encoder}
    options |= {"prediction": prediction, "probe": labelled, "probe_every": 1}
    monkeypatch.setattr(training, "STEPS_BETWEEN_LOGS", 1)
    repeated = pretrain(unlabelled, tmp_path / "repeated", **options).state_dict()
    assert len(captures) == 1
    monkeypatch.setattr(Pretraining, "may_capture", property(lambda self: False, lambda self, value: None))
    stepwise = pretrain(unlabelled, tmp_path / "stepwise", **options).state_dict()
    assert len(captures) == 1
    for name, value in stepwise.items():
        torch.testing.assert_close(repeated[name], value, rtol=1e-7, atol=1e-9)
    for quantity in ("loss", "invariance_loss", "prediction_loss"):
        logged = [read_log(tmp_path / run, quantity)[1] for run in ("repeated", "stepwise")]
        np.testing.assert_allclose(*logged, rtol=1e-6)
        assert len(logged[0]) == 6


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("encoder", ["paper", "light"])
def test_a_step_that_a_gpu_repeats_is_the_step_in_less_precision_too(
    encoder, precision, unlabelled, tmp_path, captures, monkeypatch
):
    options = SMALL | {"device": "gpu", "precision": precision, "encoder": encoder}
    monkeypatch.setattr(training, "STEPS_BETWEEN_LOGS", 1)
    for name in ("repeated", "stepwise"):
        pretrain(unlabelled, tmp_path / name, **options)
        monkeypatch.setattr(Pretraining, "may_capture", property(lambda self: False, lambda self, value: None))
    assert len(captures) == 1
    first, second = (read_log(tmp_path / run, "loss")[1][:3] for run in ("repeated", "stepwise"))
    np.testing.assert_allclose(first, second, rtol=0.05)


def test_a_step_that_cannot_be_captured_is_launched_kernel_by_kernel(unlabelled, monkeypatch):
    def refuse(*call):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    cells = load_cells(unlabelled)
    settings = load_recipe("e-simclr", "light") | {"batch_size": 8}
    module = Pretraining(cells, "light", settings, named_groups(cells, "predicted"))
    assert module.may_capture
    monkeypatch.setattr(pretraining, "captured", refuse)
    with pytest.warns(UserWarning, match="cannot be captured here: operation not permitted when stream is capturing"):
        module._capture(cells.epsilon[:8])
    assert not module.may_capture
    assert module.losses(torch.arange(8), torch.Generator().manual_seed(0))["loss"].isfinite()


@pytest.mark.parametrize(
    ("device", "precision", "dtype", "fused"),
    [
        ("cuda", "bf16-mixed", torch.float32, True),
        ("cuda", "16-mixed", torch.float32, False),
        ("cuda", "32-true", torch.complex64, False),
        ("cpu", "32-true", torch.float32, False),
    ],
)
def test_weights_are_moved_by_one_kernel_where_it_is_safe(device, precision, dtype, fused):
    module = SimpleNamespace(device=torch.device(device), trainer=SimpleNamespace(precision=precision))
    groups = [{"params": [torch.ones(1)]}, {"params": [torch.ones(1, dtype=dtype)]}]
    assert training.SeededModule._may_fuse(module, groups) is fused


@pytest.mark.gpu
@pytest.mark.parametrize("encoder", ["paper", "light"])
def test_a_run_goes_on_where_a_gpu_was_stopped(encoder, unlabelled, tmp_path, captures, monkeypatch):
    options = SMALL | {"device": "gpu", "precision": "64-true", "encoder": encoder}
    whole = pretrain(unlabelled, tmp_path / "whole", **options).state_dict()
    with monkeypatch.context() as stopped:
        stopped.setattr(Pretraining, "losses", failing_at(4, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            pretrain(unlabelled, tmp_path / "run", **options)
    for name, value in pretrain(unlabelled, tmp_path / "run", **options).state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-8)
    assert len(captures) == 3


def test_an_encoder_that_cannot_know_is_refused_by_name(unlabelled, tmp_path):
    with pytest.raises(ValueError, match="`paper-circular` is invariant by construction to `translations/2`"):
        pretrain(unlabelled, tmp_path / "run", encoder="paper-circular", **SMALL)
    cells = load_cells(unlabelled).epsilon
    check_can_tell_apart(Encoder("paper-circular"), group("quarter-turns"), cells)
    check_can_tell_apart(Encoder("paper"), group("translations/2"), cells)
    with pytest.raises(ValueError, match="`mirrors` leaves these cells as they are: which element was applied cannot"):
        check_can_tell_apart(Encoder("light"), group("mirrors"), cells[:, :, :1, :1].expand_as(cells))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(unlabelled, tmp_path, monkeypatch):
    whole = Pretraining.losses

    def spoilt(self, rows, generator):
        losses = whole(self, rows, generator)
        return losses if self.global_step != 4 else losses | {"loss": losses["loss"] * float("nan")}

    monkeypatch.setattr(Pretraining, "losses", spoilt)
    with pytest.raises(DivergenceError, match=r"not finite at step 4 \(epoch 2\).*; the last good checkpoint is kept"):
        pretrain(unlabelled, tmp_path / "run", **SMALL)
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())
    monkeypatch.undo()
    pretrain(unlabelled, tmp_path / "run", **SMALL)


def test_a_diverged_encoder_is_called_so_by_the_probe_too(unlabelled, labelled, tmp_path):
    wild = SMALL | {"learning_rate": 1e30, "optimizer": "sgd", "probe": labelled, "probe_every": 1}
    with pytest.raises(DivergenceError, match=r"not finite.*Try a lower learning rate"):
        pretrain(unlabelled, tmp_path / "run", **wild)


def test_a_run_that_diverged_before_its_first_checkpoint_is_in_nobodys_way(unlabelled, tmp_path, monkeypatch):
    wild = SMALL | {"learning_rate": 1e30, "optimizer": "sgd"}
    monkeypatch.setattr(training, "STEPS_BETWEEN_LOGS", 1)
    with pytest.raises(DivergenceError, match=r"not finite at step 1 \(epoch 1\). Try a lower learning rate.$"):
        pretrain(unlabelled, tmp_path / "run", **wild)
    pretrain(unlabelled, tmp_path / "run", **SMALL)
    record = read_record(tmp_path / "run" / "run.json")
    assert record["settings"]["learning_rate"] == 1e-3
    assert len(record["sittings"]) == 1
    assert [file.parent.name for file in (tmp_path / "run").rglob("metrics.csv")] == ["0"]


def test_every_setting_of_a_recipe_can_be_overridden():
    of_the_recipe_itself = {"objective", "transformation", "cosine", "warmup_epochs"}
    for name in ("simclr", "simclr+t", "e-simclr", "e-simsiam", "e-barlow"):
        assert set(load_recipe(name, "paper")) - of_the_recipe_itself <= set(inspect.signature(pretrain).parameters)
    for name in ("few-labels", "supervised"):
        assert set(load_recipe(name, "paper")) <= set(inspect.signature(finetune).parameters)


def test_overridden_widths_are_those_of_the_layers(unlabelled, tmp_path, monkeypatch):
    modules = []
    monkeypatch.setattr(pretraining, "carry_out", lambda module, *_, **__: modules.append(module))
    widths = {"projector": [24, 12], "classifier": [20]}
    pretrain(unlabelled, tmp_path / "run", optimizer="sgd", momentum=0.5, **widths, **SMALL)
    assert [layer.out_features for layer in modules[0].projector if hasattr(layer, "out_features")] == [24, 12]
    assert [layer.out_features for layer in modules[0].classifier if hasattr(layer, "out_features")] == [20, 4]
    settings = read_record(tmp_path / "run" / "run.json")["settings"]
    assert {"momentum": 0.5, **widths}.items() <= settings.items()


def test_views_may_be_by_all_that_no_density_of_states_sees(unlabelled, tmp_path):
    pretrain(unlabelled, tmp_path / "run", recipe="simclr", invariance="lattice", **SMALL)
    assert read_record(tmp_path / "run" / "run.json")["settings"]["invariance"] == "translations * square"


def test_views_that_hold_what_is_to_be_predicted_are_warned_of(unlabelled, tmp_path):
    with pytest.warns(UserWarning, match="`square` holds all of `quarter-turns`: the representation is asked to be"):
        pretrain(unlabelled, tmp_path / "run", invariance="square", equivariance="quarter-turns", **SMALL)


def test_the_last_scores_survive_a_stop(unlabelled, labelled, tmp_path, monkeypatch):
    settings = SMALL | {"probe": labelled, "probe_every": 1}
    monkeypatch.setattr(Run, "finish", lambda self, **results: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pretrain(unlabelled, tmp_path / "run", **settings)
    monkeypatch.undo()
    pretrain(unlabelled, tmp_path / "run", **settings)
    pretrain(unlabelled, tmp_path / "whole", **settings)
    results = [read_record(tmp_path / name / "run.json")["results"] for name in ("run", "whole")]
    assert results[0] == results[1]
    assert "probe_relative_error" in results[0]


def test_what_symmetric_cells_hide_is_said_at_the_start(tmp_path):
    data = write_cells(tmp_path / "cells.nc", 24, labelled=False)
    cells = xr.load_dataset(data)
    epsilon = cells["epsilon"].values
    epsilon = np.maximum(epsilon, epsilon[:, ::-1])
    cells["epsilon"][:] = np.maximum(epsilon, epsilon[:, :, ::-1])
    cells["epsilon_mean"][:] = cells["epsilon"].mean(("x", "y"), dtype="f8")
    cells.to_netcdf(data, engine="h5netcdf")
    with pytest.warns(UserWarning, match="under several elements of `mirrors \\* translations/2`: .* at most 25 % of"):
        pretrain(data, tmp_path / "run", equivariance="mirrors * translations/2", **SMALL)


def test_the_probe_is_a_ridge_regression_scored_on_the_other_half(labelled):
    cells = load_cells(labelled, labelled=True)
    guess = relative_error(empty_lattice()[None, :400].repeat(10, 0), cells.dos[10:])
    assert 0 < probe_error(Encoder("light"), cells) < 2 * guess


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "magic"}, "unknown recipe 'magic'; the recipes are e-barlow, e-simclr"),
        ({"recipe": "supervised"}, "has no pre-training"),
        ({"encoder": "tiny"}, "unknown encoder 'tiny'"),
        ({"family": "rods"}, "no groups were published for the family 'rods'"),
        ({"invariance": "spin"}, "unknown group 'spin'"),
        ({"equivariance": "hexagon"}, "`hexagon` does not map a cell"),
        ({"equivariance": "translations/5"}, "divisible by 5"),
        ({"equivariance": "identity"}, "`equivariance` must have elements to tell apart, `identity` has one"),
        ({"equivariance": "rescaling"}, "`rescaling` rescales ε by any factor, which no task here predicts"),
        ({"prediction": "guess"}, "`prediction` must be one of absolute, relative, continuous, got 'guess'"),
        ({"prediction": "continuous", "equivariance": "mirrors"}, "continuous prediction is for translations"),
        ({"equivariance": "translations"}, "1024 elements are too many to tell apart one by one"),
        ({"batch_size": 1}, "`batch_size` must be at least 2"),
        ({"batch_size": 25}, "`batch_size` 25 is larger than the 24 cells there are"),
        ({"epochs": 0}, "`epochs` must be at least 1"),
        ({"learning_rate": -1.0}, "`learning_rate` must be positive"),
        ({"optimizer": "lbfgs"}, "`optimizer` must be one of adam, sgd"),
        ({"device": "tpu"}, "`device` must be one of auto, cpu, gpu"),
        pytest.param({"device": "gpu"}, "torch finds no CUDA device here", marks=WITHOUT_GPU),
        ({"recipe": "e-barlow", "temperature": 1.0}, "this recipe has no temperature"),
        ({"precision": "exact"}, "`precision` must be one of 32-true, 64-true, bf16-mixed, 16-mixed, got 'exact'"),
        ({"devices": 0}, "`devices` must be at least 1, got 0"),
        ({"devices": 3}, "a batch of 8 cannot be shared equally by 3 processes"),
        ({"seed": -1}, "seeds must be at least 0, got -1"),
        ({"momentum": 0.8}, "the optimizer adam has no use for `momentum`, got 0.8"),
        ({"optimizer": "sgd", "momentum": 1.0}, "`momentum` must be from 0 to less than 1, got 1"),
        ({"projector": [64, 0]}, r"`projector` must be widths of layers, at least 1 each, got \[64, 0\]"),
        ({"classifier": []}, r"`classifier` must be widths of layers, at least 1 each, got \[\]"),
        ({"recipe": "simclr", "classifier": [8]}, "predicts nothing, and has no use for `classifier`"),
        ({"off_diagonal_weight": 0.1}, "this recipe has no off_diagonal_weight"),
        ({"encoder": "none"}, "the encoder `none` has no weights to pre-train"),
        ({"recipe": "simclr", "equivariance": "mirrors"}, "'simclr' has no use for `equivariance`, got 'mirrors'"),
        ({"recipe": "simclr", "weight": 2.0}, "'simclr' predicts nothing, and has no use for `weight`, got 2"),
        ({"recipe": "simclr+t", "prediction": "relative"}, "predicts nothing, and has no use for `prediction`"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(settings, message, unlabelled, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain(unlabelled, tmp_path / "run", **SMALL | settings)
    assert not (tmp_path / "run").exists()


def test_an_unlabelled_or_too_small_file_is_no_probe(unlabelled, labelled, tmp_path):
    with pytest.raises(ValueError, match="is unlabelled"):
        pretrain(unlabelled, tmp_path / "run", probe=unlabelled, **SMALL)
    few = write_cells(tmp_path / "few.nc", 3)
    with pytest.raises(ValueError, match="a probe needs at least 4 labelled cells, got 3"):
        pretrain(unlabelled, tmp_path / "run", probe=few, **SMALL)
    for change in ({"grid": (16, 16)}, {"lattice": [1.0, 0.0, 0.0, 1.5]}):
        other = write_cells(tmp_path / "other.nc", 8, **change)
        with pytest.raises(ValueError, match="cells to probe with have grid and lattice vectors"):
            pretrain(unlabelled, tmp_path / "run", probe=other, **SMALL)
    with pytest.raises(ValueError, match="`probe_every` must be at least 1, got 0"):
        pretrain(unlabelled, tmp_path / "run", probe=labelled, probe_every=0, **SMALL)
    assert not (tmp_path / "run").exists()


def test_roles_and_warm_up_out_of_their_range_are_refused(unlabelled):
    cells = load_cells(unlabelled)
    with pytest.raises(ValueError, match="`transformation` must be one of predicted, invariance, unused, got 'maybe'"):
        named_groups(cells, "maybe")
    settings = load_recipe("simclr", "light") | {"batch_size": 8, "epochs": 2, "warmup_epochs": 3}
    with pytest.raises(ValueError, match="`warmup_epochs` must be from 0 to the 2 epochs of the run, got 3"):
        Pretraining(cells, "light", settings, (group("mirrors"), group("identity")))


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    with pytest.raises(ValueError, match="a batch of 3 cannot be shared equally by 2 processes"):
        distributed.own_part(3)


def test_only_a_stop_by_the_user_is_taken_for_one():
    with pytest.raises(KeyboardInterrupt), training._interruptible(SimpleNamespace(interrupted=True)):
        raise SystemExit(1)
    with pytest.raises(SystemExit), training._interruptible(SimpleNamespace(interrupted=False)):
        raise SystemExit(3)
