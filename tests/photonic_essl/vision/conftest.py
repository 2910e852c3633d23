import numpy as np
import pytest
from PIL import Image

TINY = "tests.photonic_essl.vision.tiny:network"


def write_cifar10(folder, images_per_file=20, seed=0):
    """Write a folder in the official binary layout, each class a coarse pattern of its own with noise."""
    home = folder / "cifar-10-batches-bin"
    home.mkdir(parents=True)
    random = np.random.default_rng(seed)
    patterns = random.integers(0, 190, (10, 3, 4, 4)).repeat(8, 2).repeat(8, 3).reshape(10, 3072)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        labels = np.arange(images_per_file) % 10
        pixels = random.integers(0, 64, (images_per_file, 3072)) + patterns[labels]
        np.hstack([labels[:, None], pixels]).astype(np.uint8).tofile(home / name)
    return folder


def write_class_folders(folder, images_per_class, seed=0):
    """Write class folders of JPEG files of various sizes, one class red and the other blue."""
    random = np.random.default_rng(seed)
    for channel, name in ((0, "apples"), (2, "berries")):
        (folder / name).mkdir(parents=True)
        for number in range(images_per_class):
            pixels = random.integers(0, 100, (*random.integers(40, 70, 2), 3))
            pixels[..., channel] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:03d}.jpg")
    return folder


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory):
    return write_cifar10(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    write_class_folders(folder / "train", 8)
    write_class_folders(folder / "val", 3, seed=1)
    return folder
