import functools
import hashlib
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from photonic_essl.training import derived_seed
from photonic_essl.vision import datasets
from photonic_essl.vision.augmentation import Augmentation
from photonic_essl.vision.datasets import load_images

from .conftest import write_cifar10, write_class_folders


def damaged(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "damaged")


def test_digits_are_scikit_learns_the_last_fifth_for_testing():
    images, digits = load_images("digits"), load_digits()
    assert (len(images.train), len(images.test), images.classes) == (1437, 360, 10)
    pixels = torch.cat([images.train.pixels, images.test.pixels])[:, 0]
    assert np.array_equal((pixels.numpy() * (16 / 255)).round(), digits.images)
    assert torch.equal(torch.cat([images.train.labels, images.test.labels]), torch.from_numpy(digits.target))
    batch = next(images.test.batches(8))
    assert (batch.dtype, batch.min(), batch.max()) == (torch.float32, 0, 1)


def test_cifar10_is_read_from_the_official_layout(cifar10):
    images = load_images(f"cifar10:{cifar10}")
    assert images.train.pixels.shape == (100, 3, 32, 32)
    record = (cifar10 / "cifar-10-batches-bin" / "data_batch_2.bin").read_bytes()[3073 : 2 * 3073]
    assert images.train.labels[21] == record[0]
    red, green, blue = (record[1 + 1024 * channel :][:1024] for channel in range(3))
    pixel = images.train.pixels[21, :, 3, 7].tolist()
    assert pixel == [red[3 * 32 + 7], green[3 * 32 + 7], blue[3 * 32 + 7]]


def test_cifar10_is_fetched_when_asked_and_checked(tmp_path, monkeypatch):
    archive = Path(shutil.make_archive(tmp_path / "binary", "gztar", write_cifar10(tmp_path / "there")))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=archive.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets, "CIFAR10_ARCHIVE", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin: CIFAR-10 is read from its binary version"):
            load_images(f"cifar10:{tmp_path / 'here'}")
        with pytest.raises(RuntimeError, match="not found or corrupted"):
            load_images(f"cifar10:{tmp_path / 'here'}", download=True)
        monkeypatch.setattr(datasets, "CIFAR10_CHECKSUM", hashlib.md5(archive.read_bytes()).hexdigest())
        assert len(load_images(f"cifar10:{tmp_path / 'here'}", download=True).train) == 100
        server.shutdown()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "must hold records of 3073 bytes, got 61459 bytes"),
        (lambda file: file.write_bytes(b""), "must hold records of 3073 bytes, got 0"),
        (lambda file: file.write_bytes(file.read_bytes()[3073:]), "equally many images, got 20, 20, 19, 20, 20, 20"),
        (lambda file: file.write_bytes(b"\xff" + file.read_bytes()[1:]), "labels must be from 0 to 9, got 255"),
    ],
)
def test_a_damaged_cifar10_is_refused(cifar10, tmp_path, damage, message):
    folder = damaged(cifar10, tmp_path)
    damage(folder / "cifar-10-batches-bin" / "data_batch_3.bin")
    with pytest.raises(ValueError, match=message):
        load_images(f"cifar10:{folder}")


def test_imagenet_is_class_folders_in_two_parts(imagenet):
    images = load_images(f"imagenet:{imagenet}")
    assert (len(images.train), len(images.test), images.classes) == (16, 6, 2)
    middle = torch.cat(list(images.test.batches(24, batch_size=4)))
    assert middle.shape == (6, 3, 24, 24)
    colours = middle.mean((2, 3))
    assert torch.equal(colours.argmax(1), 2 * images.test.labels)


def test_splits_are_no_classes(tmp_path):
    for split in ("train", "test"):
        write_class_folders(tmp_path / split, 6)
    with pytest.raises(ValueError, match="must hold a folder of images for each class, got test and train"):
        load_images(f"folder:{tmp_path}")


def test_of_class_folders_every_fifth_image_is_for_testing(tmp_path):
    images = load_images(f"folder:{write_class_folders(tmp_path / 'fruits', 11)}")
    assert (len(images.train), len(images.test)) == (18, 4)
    assert [file.name for file in images.test.files] == ["004.jpg", "009.jpg"] * 2
    assert not set(images.train.files) & set(images.test.files)


def test_views_of_files_follow_from_the_seed_and_are_those_of_memory(imagenet):
    images = load_images(f"imagenet:{imagenet}").train
    batches = [torch.tensor([3, 1, 2]), torch.tensor([0, 5, 4])]
    plain = Augmentation(16, flip=0.0)
    augmentations = [plain, Augmentation(8, jitter=(0.4, 0.4, 0.2, 0.1))]
    views = list(images.augmented(batches, augmentations, 7, torch.device("cpu")))
    again = list(images.augmented(batches, augmentations, 7, torch.device("cpu")))
    assert [[view.shape[2] for view in batch] for batch in views] == [[16, 8], [16, 8]]
    for batch, same in zip(views, again):
        for view, other in zip(batch, same):
            assert torch.equal(view, other)
    # The first augmentation draws first, from the seed of the first batch.
    file = images.files[3]
    draws = plain.draw(3, torch.Generator().manual_seed(derived_seed(7, 0)))
    pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255
    assert (views[0][0][:1] - plain.apply(pixels, draws[:1])).abs().mean() < 0.05  # cubic there, linear here


def test_a_file_that_is_no_image_is_named(imagenet, tmp_path):
    folder = damaged(imagenet, tmp_path)
    file = folder / "train" / "apples" / "002.jpg"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"apples/002\.jpg is damaged, or no image\.$"):
        list(load_images(f"imagenet:{folder}").train.batches(16))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("mnist", ValueError, "`data` must be digits, cifar10:FOLDER"),
        ("digits:here", ValueError, "got 'digits:here'"),
        ("cifar10", ValueError, "got 'cifar10'"),
        ("cifar10:{0}/nowhere", FileNotFoundError, "there is no .*data_batch_1.bin"),
        ("imagenet:{0}", FileNotFoundError, "there is no folder .*train"),
        ("folder:{0}/nowhere", FileNotFoundError, "there is no folder"),
        ("folder:{0}", FileNotFoundError, "Couldn't find any class folder"),
    ],
)
def test_what_is_not_there_is_said(data, error, message, tmp_path):
    with pytest.raises(error, match=message):
        load_images(data.format(tmp_path))


def test_parts_of_different_classes_are_refused(imagenet, tmp_path):
    folder = damaged(imagenet, tmp_path)
    (folder / "val" / "apples").rename(folder / "val" / "pears")
    with pytest.raises(ValueError, match="the same classes in train and val"):
        load_images(f"imagenet:{folder}")


def test_too_few_images_to_test_on_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 5 images in one of its class folders, to test on every fifth"):
        load_images(f"folder:{write_class_folders(tmp_path / 'fruits', 4)}")


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="images of 8 × 8 points do not suit a model of 32 × 32"):
        load_images("digits").test.batches(32)
