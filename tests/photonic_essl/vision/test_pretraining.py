import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from photonic_essl.plotting import read_log
from photonic_essl.recipes import recipe_names
from photonic_essl.symmetry import identity, quarter_turns
from photonic_essl.vision.augmentation import PUBLISHED_AUGMENTATIONS
from photonic_essl.vision.datasets import STANDARDISATIONS, load_images
from photonic_essl.vision.images import MemoryImages
from photonic_essl.vision.pretraining import ImagePretraining, pretrain
from photonic_essl.vision.recipes import HOME, load_recipe

from .conftest import TINY

RECIPES = [name for name in recipe_names(HOME) if name not in ("linear", "finetune")]
SMALL = {"encoder": TINY, "epochs": 3, "batch_size": 32, "device": "cpu", "progress": False}


@pytest.fixture
def few_digits(monkeypatch):
    """Digits, but a tenth as many."""
    images = load_images("digits")
    few = type(images)("digits", images.train.subset(torch.arange(96)), images.test.subset(torch.arange(40)))
    monkeypatch.setattr("photonic_essl.vision.pretraining.load_images", lambda *_: few)
    return few


def module(recipe, preset="digits", count=12, **settings):
    settings = load_recipe(recipe, preset) | {"batch_size": count} | settings
    shape = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "imagenet": (3, 224, 224)}[preset]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    predicted = quarter_turns() if settings["transformation"] == "predicted" else identity()
    standardisation, augmentations = STANDARDISATIONS[preset], PUBLISHED_AUGMENTATIONS[preset]
    images = MemoryImages(pixels, torch.zeros(count, dtype=torch.long))
    return ImagePretraining(images, standardisation, settings, augmentations, predicted)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def published_loss(network, recipe, settings, first, second, smaller):
    """The loss of a step as the papers and their code have it, image by image, entry by entry."""
    z1, z2 = (network.projector(network.encoder(view)) for view in (first, second))
    n, loss = len(z1), 0.0
    if "simclr" in recipe:
        for a, b in ((z1, z2), (z2, z1)):
            for i in range(n):
                similarity = torch.stack([cosine(a[i], b[j]) for j in range(n)]) / settings["temperature"]
                loss = loss - (similarity[i] - similarity.exp().sum().log()) / n / 2
    elif "simsiam" in recipe:
        p1, p2 = network.predictor(z1), network.predictor(z2)
        for i in range(n):
            loss = loss - (cosine(p1[i], z2[i].detach()) + cosine(p2[i], z1[i].detach())) / 2 / n
    else:
        a, b = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z1, z2))
        correlation = a.T @ b / n
        for i in range(len(correlation)):
            loss = loss + (1 - correlation[i, i]) ** 2
            loss = loss + settings["off_diagonal_weight"] * (correlation[i].square().sum() - correlation[i, i] ** 2)
    if recipe.startswith("e-"):
        turned = torch.cat([torch.rot90(smaller, turns, (2, 3)) for turns in range(4)])
        answers = network.classifier(network.encoder(turned))
        for row, answer in enumerate(answers):
            right = row // n
            loss = loss - settings["weight"] * (answer[right] - answer.exp().sum().log()) / len(answers)
    return loss


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_is_that_of_the_published_formulas(recipe):
    ours = module(recipe).double()
    ours.train()
    theirs, settings = copy.deepcopy(ours), ours.settings
    ours.on_train_epoch_start()
    views = [view.double() for view in next(ours.views)]
    ours.views = iter([views])

    optimizer = ours.configure_optimizers()["optimizer"]
    loss = ours.losses(torch.arange(12), torch.Generator())["loss"]
    loss.backward()
    optimizer.step()

    expected = published_loss(theirs, recipe, settings, *views, *([None] if len(views) == 2 else []))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    gradients = torch.autograd.grad(expected, list(theirs.parameters()))
    rate = settings["learning_rate"] * 12 / 256
    steps = 1 * settings["warmup_epochs"]
    for (name, value), before, gradient in zip(ours.named_parameters(), theirs.parameters(), gradients):
        factor = 1 if name.startswith("predictor.") else 1 / steps  # the first step of the warm-up
        moved = before - factor * rate * (gradient + settings["weight_decay"] * before)
        torch.testing.assert_close(value, moved, atol=1e-6, rtol=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_smaller_view_is_turned_and_the_views_are_not(recipe):
    trained = module(recipe, "cifar10" if "barlow" not in recipe else "digits", count=4, encoder=TINY)
    seen = []
    trained.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trained.on_train_epoch_start()
    trained.losses(torch.arange(4), torch.Generator())
    side = 8 if "barlow" in recipe else 32
    assert [view.shape[2] for view in seen[:2]] == [side, side]
    assert not torch.equal(seen[0], seen[1])
    if recipe.startswith("e-"):
        copies = seen[2].view(4, 4, *seen[2].shape[1:])
        assert copies.shape[3] == (16 if side == 32 else 8)
        for turns in range(4):
            assert torch.equal(copies[turns], torch.rot90(copies[0], turns, (2, 3)))
    else:
        assert len(seen) == 2


def test_recipes_hold_the_published_hyperparameters():
    for recipe, rate in (("simclr", 0.03), ("simsiam", 0.03), ("e-simclr", 0.06), ("e-simsiam", 0.06)):
        settings = load_recipe(recipe, "cifar10")
        published = {"learning_rate": rate, "weight": 0.4, "epochs": 800, "batch_size": 512, "warmup_epochs": 10}
        assert settings.items() >= (published | {"weight_decay": 5e-4, "momentum": 0.9, "optimizer": "sgd"}).items()
        assert settings["projector"] == settings["classifier"] == [2048, 2048]
    large = {recipe: load_recipe(recipe, "imagenet") for recipe in RECIPES}
    assert [large[recipe]["weight"] for recipe in ("e-simclr", "e-barlow", "e-simsiam")] == [0.4, 8.0, 0.08]
    assert large["e-simclr"]["learning_rate"] * large["e-simclr"]["batch_size"] / 256 == pytest.approx(4.8)
    assert large["e-simclr"].items() >= {"temperature": 0.2, "optimizer": "lars", "weight_decay": 1e-6}.items()
    with pytest.raises(ValueError, match="'barlow' has hyperparameters for digits, imagenet, not for cifar10"):
        load_recipe("barlow", "cifar10")


def test_lars_without_weight_decay_is_refused():
    with pytest.raises(ValueError, match="`weight_decay` must be positive with lars"):
        module("barlow", optimizer="lars", weight_decay=0.0)


def test_lars_leaves_biases_and_scales_alone_and_the_predictor_keeps_its_rate():
    barlow = module("e-barlow", optimizer="lars", bias_learning_rate=0.0048, warmup_epochs=0).configure_optimizers()
    matrices, vectors = barlow["optimizer"].param_groups
    assert all(parameter.ndim > 1 for parameter in matrices["params"])
    assert all(parameter.ndim == 1 for parameter in vectors["params"])
    assert vectors["weight_decay"] == 0
    assert vectors["lr"] == pytest.approx(0.0048 * 12 / 256)

    simsiam = module("e-simsiam", epochs=4, warmup_epochs=1).configure_optimizers()
    optimizer, schedule = simsiam["optimizer"], simsiam["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(4):
        rates.append([group["lr"] / group["initial_lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = [1, *(0.5 + 0.5 * math.cos(math.pi * step / 3) for step in range(3))]
    assert [rate[0] for rate in rates] == pytest.approx(expected)
    assert [rate[1] for rate in rates] == [1, 1, 1, 1]


def test_a_run_leaves_encoder_settings_logs_and_accuracy(few_digits, tmp_path):
    pretrain("digits", out=tmp_path / "run", probe_every=2, **SMALL)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["finished"]
    assert record["command"] == "vision pretrain"
    assert record["settings"]["equivariance"] == "quarter-turns"
    assert record["settings"]["augmentations"]["copied"]["size"] == 8
    assert record["settings"]["images"] == {"train": 96, "test": 40}
    assert record["settings"]["warmup_epochs"] == 0  # a tenth of three epochs
    steps, accuracies = read_log(tmp_path / "run", "knn_accuracy")
    assert list(steps) == [6, 9]
    assert record["results"]["knn_accuracy"] == pytest.approx(accuracies[-1])
    for quantity in ("loss", "invariance_loss", "prediction_loss", "prediction_accuracy"):
        assert math.isfinite(read_log(tmp_path / "run", quantity)[1][0])


def test_stopped_and_started_again_it_ends_with_the_same_weights(few_digits, tmp_path, monkeypatch):
    pretrain("digits", out=tmp_path / "whole", **SMALL)
    monkeypatch.setattr("photonic_essl.training.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    whole = ImagePretraining.losses

    def stopping(self, rows, generator):
        if self.global_step == 7:
            raise KeyboardInterrupt
        return whole(self, rows, generator)

    with monkeypatch.context() as patch:
        patch.setattr(ImagePretraining, "losses", stopping)
        with pytest.raises(KeyboardInterrupt):
            pretrain("digits", out=tmp_path / "stopped", **SMALL)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    pretrain("digits", out=tmp_path / "stopped", **SMALL)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    pretrain("digits", out=tmp_path / "other", seed=1, **SMALL)
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "other"))


def test_the_turn_between_two_copies_can_be_predicted_as_well(few_digits, tmp_path):
    pretrain("digits", out=tmp_path / "run", prediction="relative", **SMALL | {"epochs": 1})
    assert 0 <= read_log(tmp_path / "run", "prediction_accuracy")[1][0] <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["e-simclr", "e-simsiam", "e-barlow"])
def test_what_a_gpu_trained_is_for_any_device(recipe, few_digits, tmp_path):
    trained = pretrain("digits", out=tmp_path / "run", recipe=recipe, **SMALL | {"device": "gpu", "encoder": "small"})
    assert math.isfinite(read_log(tmp_path / "run", "loss")[1][-1])
    images = few_digits.train.pixels[:8] / 255
    here, there = trained(images), trained.cuda()(images.cuda()).cpu()
    assert (here - there).abs().max() < 1e-2 * here.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["cifar10", "imagenet"])
def test_a_step_on_a_gpu_sees_all_changes_of_colours(preset):
    trained = module("e-simclr", preset, count=4).cuda()
    trained.on_train_epoch_start()
    with torch.autocast("cuda", torch.bfloat16):
        loss = trained.losses(torch.arange(4, device="cuda"), torch.Generator("cuda"))["loss"]
    assert loss.isfinite()


@pytest.mark.slow
def test_two_processes_take_the_step_that_one_takes(tmp_path):
    command = [str(Path(sys.executable).with_name("photonic-essl")), "vision", "pretrain", "--data", "digits"]
    command += ["--recipe", "e-simclr", "--encoder", "small", "--epochs", "1", "--batch-size", "1436"]
    command += ["--learning-rate", "0.1", "--precision", "64-true", "--device", "cpu", "--no-progress"]
    for name, devices in (("one", "1"), ("two", "2")):
        asked = [*command, "--out", str(tmp_path / name), "--devices", devices]
        subprocess.run(asked, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "magic"}, "unknown recipe 'magic'; the recipes are barlow, e-barlow"),
        ({"recipe": "linear"}, "'linear' has no pre-training"),
        ({"encoder": "huge"}, "unknown encoder 'huge'; there are small, resnet18-cifar"),
        ({"batch_size": 97}, "`batch_size` 97 is larger than the 96 images there are"),
        ({"batch_size": 1}, "`batch_size` must be at least 2"),
        ({"recipe": "e-simsiam", "temperature": 0.1}, "this recipe has no temperature"),
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"probe_every": 0}, "`probe_every` must be at least 1"),
        ({"prediction": "continuous"}, "continuous prediction is for translations"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(settings, message, few_digits, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain("digits", out=tmp_path / "run", **SMALL | settings)
    assert not (tmp_path / "run").exists()
