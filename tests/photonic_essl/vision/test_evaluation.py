"""Each benchmark end to end by the commands, and the measures of accuracy by themselves."""

import json
import re
import shutil
import sys

import pytest
import torch

from photonic_essl import cli
from photonic_essl.vision.classification import labelled_rows
from photonic_essl.vision.datasets import ImageData, load_images
from photonic_essl.vision.images import MemoryImages
from photonic_essl.vision.neighbours import default_neighbours, neighbours_accuracy, pixels

from .conftest import TINY


@pytest.fixture
def call(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["photonic-essl", "vision", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


def accuracy(said):
    status, out, error = said
    assert status == 0, error
    return float(re.fullmatch(r"accuracy: (\d\.\d{3})", out.splitlines()[-1])[1])


def learnt(call, data, out, epochs, *options):
    """Pre-train, and return the accuracies of nearest neighbours and linear classifiers."""
    quick = ("--batch-size", 16, "--device", "cpu", "--no-progress")
    assert call("pretrain", "--data", data, "--out", out, "--epochs", 2, *quick, *options)[0] == 0
    own = ("--encoder", TINY) if TINY in options else ()
    probed = ("probe", "--model", out, "--data", data, "--epochs", epochs, "--seeds", 2, "--learning-rate", 1, *quick)
    assert call(*probed, *own)[0] == 0
    linear = accuracy(call(*probed, *own))  # the second time the runs are finished
    return accuracy(call("knn", "--model", out, "--data", data, "--device", "cpu", *own)), linear


def test_cifar10_from_folder_to_accuracy(call, cifar10, tmp_path):
    out, data = tmp_path / "run", f"cifar10:{cifar10}"
    neighbours, linear = learnt(call, data, out, 20, "--encoder", TINY, "--recipe", "e-simclr")
    assert neighbours > 0.5  # of ten classes
    assert linear > 0.2
    runs = [json.loads((out / "probe" / f"seed-{seed}" / "run.json").read_text()) for seed in (0, 1)]
    assert all(len(run["sittings"]) == 1 and run["settings"]["seed"] == seed for seed, run in enumerate(runs))
    tuned = ("finetune", "--model", out, "--out", tmp_path / "tuned", "--data", data, "--labels", 0.1)
    options = ("--epochs", 3, "--encoder", TINY, "--device", "cpu", "--no-progress")
    assert 0 <= accuracy(call(*tuned, *options)) <= 1
    settings = json.loads((tmp_path / "tuned" / "run.json").read_text())["settings"]
    assert settings["labels"] == 10
    assert accuracy(call("knn", "--data", data)) > 0.9


@pytest.mark.slow
def test_imagenet_from_folder_to_accuracy(call, imagenet, tmp_path):
    options = ("--encoder", TINY, "--recipe", "e-simsiam", "--batch-size", 8)
    neighbours, linear = learnt(call, f"imagenet:{imagenet}", tmp_path / "run", 2, *options)
    assert neighbours > 0.6  # of two classes of different colour
    assert 0 <= linear <= 1
    status, _, error = call("knn", "--data", f"imagenet:{imagenet}")
    assert status == 2
    assert "pixels are compared of digits and cifar10 alone" in error


def test_a_damaged_image_is_one_line_and_status_2(call, imagenet, tmp_path):
    folder = shutil.copytree(imagenet, tmp_path / "damaged")
    (folder / "train" / "berries" / "005.jpg").write_bytes(b"\xff\xd8\xff")
    asked = ("pretrain", "--data", f"imagenet:{folder}", "--out", tmp_path / "run", "--encoder", TINY)
    status, _, error = call(*asked, "--batch-size", 16, "--epochs", 1, "--device", "cpu", "--no-progress")
    assert status == 2
    assert re.fullmatch(r"photonic-essl vision: error: .*berries/005\.jpg is damaged, or no image\.\n", error)


def test_digits_learn_something_by_the_published_method(call, tmp_path):
    options = ("--recipe", "e-simclr", "--encoder", "small", "--epochs", 3, "--device", "cpu", "--no-progress")
    assert call("pretrain", "--data", "digits", "--out", tmp_path / "run", *options)[0] == 0
    assert accuracy(call("knn", "--model", tmp_path / "run", "--data", "digits", "--device", "cpu")) > 0.8
    assert accuracy(call("knn", "--data", "digits", "--neighbours", 1)) == pytest.approx(0.96, abs=0.02)
    status, _, error = call("knn", "--model", tmp_path / "run", "--data", "digits", "--neighbours", 0)
    assert status == 2
    assert "`neighbours` must be from 1 to the 1437 training images, got 0" in error


def test_a_model_is_not_asked_about_images_that_it_cannot_see(call, cifar10, tmp_path):
    options = ("--encoder", TINY, "--epochs", 1, "--device", "cpu", "--no-progress")
    assert call("pretrain", "--data", "digits", "--out", tmp_path / "run", *options)[0] == 0
    for asked in ("knn", "probe"):
        status, _, error = call(asked, "--model", tmp_path / "run", "--data", f"cifar10:{cifar10}", "--encoder", TINY)
        assert status == 2
        assert "images of 3 channels do not suit a model of 1." in error
    status, _, error = call("probe", "--model", tmp_path / "nowhere")
    assert status == 2
    assert "holds no saved image encoder" in error


def test_neighbours_vote_by_cosine():
    labels = torch.tensor([0, 0, 0, 1, 1])
    train = torch.tensor([[1.0, 0], [1, 0.1], [0.9, 0], [0, 5], [0.1, 1]])
    test = MemoryImages(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    images = ImageData("digits", MemoryImages(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), labels), test)
    assert neighbours_accuracy(train, torch.tensor([[3.0, 0.1], [0.1, 0.2]]), images, 2) == 1
    # Three of the five are of class 0, but the two that are near outweigh them.
    assert neighbours_accuracy(train, torch.tensor([[3.0, 0.1], [0.1, 2.0]]), images, 5) == 1
    assert default_neighbours(load_images("digits")) == 6
    assert pixels(images.test).shape == (2, 64)


def test_few_labels_are_of_all_classes_and_nested():
    labels = load_images("digits").train.labels
    one, ten = labelled_rows(labels, 0.01, 0), labelled_rows(labels, 0.1, 0)
    assert (len(one), len(ten)) == (10, 142)
    assert set(one.tolist()) < set(ten.tolist())
    assert labels[one].unique().tolist() == list(range(10))
    assert not torch.equal(ten, labelled_rows(labels, 0.1, 1))
    assert torch.equal(labelled_rows(labels, 1.0, 0), torch.arange(1437))
    with pytest.raises(ValueError, match="above 0 and at most 1, got 0"):
        labelled_rows(labels, 0, 0)


def test_no_seeds_is_no_probe(call, tmp_path):
    status, _, error = call("probe", "--model", tmp_path, "--data", "digits", "--seeds", "0")
    assert status == 2
    assert "`seeds` must be at least 1, got 0" in error
