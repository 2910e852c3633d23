"""The benchmarks, by the names that the user gives: digits, cifar10:FOLDER, imagenet:FOLDER or folder:FOLDER."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder
from torchvision.datasets.utils import download_and_extract_archive

from photonic_essl.vision.images import FileImages, Images, MemoryImages

CIFAR10_ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_CHECKSUM = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_SHAPE = (3, 32, 32)
TEST_DIGITS = 360
"""The last fifth of the digits, which is kept for testing."""


class Standardisation(NamedTuple):
    """Mean and standard deviation of the values 0 … 1 in each channel."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


STANDARDISATIONS = {
    "digits": Standardisation((0.305,), (0.376,)),
    "cifar10": Standardisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": Standardisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class ImageData:
    """A benchmark's images.

    Attributes:
        preset: whose hyperparameters are for it: `"digits"`, `"cifar10"` or `"imagenet"`.
        train: to learn from.
        test: to be tested on.
    """

    preset: str
    train: Images
    test: Images

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.train.labels.max()) + 1

    @property
    def fingerprint(self) -> str:
        """A hash of both parts, the same for equal contents and an equal split."""
        return hashlib.sha256((self.train.fingerprint + self.test.fingerprint).encode()).hexdigest()[:16]

    @property
    def standardisation(self) -> Standardisation:
        """What is subtracted from the values, and what they are divided by."""
        return STANDARDISATIONS[self.preset]


def load_images(data: str, download: bool = False) -> ImageData:
    """Load images by the name of the benchmark.

    Args:
        data: `digits` (scikit-learn's, 8 × 8, no folder needed), `cifar10:FOLDER` (the binary version, in
            FOLDER/cifar-10-batches-bin), `imagenet:FOLDER` (class folders below FOLDER/train and FOLDER/val), or
            `folder:FOLDER` (class folders below FOLDER; every fifth image of each is for testing).
        download: whether to fetch CIFAR-10 where it is not there yet.

    Returns:
        The images to learn from, and those to be tested on.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: if there is no such benchmark, or a file is damaged.
    """
    kind, _, folder = data.partition(":")
    if kind not in ("digits", "cifar10", "imagenet", "folder") or bool(folder) == (kind == "digits"):
        raise ValueError(f"`data` must be digits, cifar10:FOLDER, imagenet:FOLDER or folder:FOLDER, got {data!r}.")
    if kind == "digits":
        return _digits()
    if kind == "cifar10":
        return _cifar10(Path(folder), download)
    return _imagenet(Path(folder)) if kind == "imagenet" else _folder(Path(folder))


def _digits() -> ImageData:
    """Return scikit-learn's digits, in its order, where neighbours are often by one writer: no random split."""
    digits = load_digits()
    pixels = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target).long()
    train, test = slice(None, -TEST_DIGITS), slice(-TEST_DIGITS, None)
    return ImageData("digits", MemoryImages(pixels[train], labels[train]), MemoryImages(pixels[test], labels[test]))


def _cifar10(folder: Path, download: bool) -> ImageData:
    home = folder / CIFAR10_FOLDER
    if download and not home.is_dir():
        download_and_extract_archive(CIFAR10_ARCHIVE, folder, md5=CIFAR10_CHECKSUM)
    batches = [_cifar10_batch(home / f"data_batch_{number}.bin") for number in range(1, 6)]
    test = _cifar10_batch(home / "test_batch.bin")
    if len({len(batch) for batch in (*batches, test)}) > 1:
        numbers = ", ".join(str(len(batch)) for batch in (*batches, test))
        raise ValueError(f"{home} is damaged: its six files must hold equally many images, got {numbers}.")
    train = MemoryImages(torch.cat([batch.pixels for batch in batches]), torch.cat([batch.labels for batch in batches]))
    return ImageData("cifar10", train, test)


def _cifar10_batch(file: Path) -> MemoryImages:
    """Read a file of records, each a byte for the label and 3072 for red, green and blue, row by row."""
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no {file}: CIFAR-10 is read from its binary version, not the pickled one; `download` fetches it."
        )
    content, record = np.fromfile(file, np.uint8), 1 + int(np.prod(CIFAR10_SHAPE))
    if not len(content) or len(content) % record:
        raise ValueError(f"{file} is damaged: it must hold records of {record} bytes, got {len(content)} bytes.")
    records = torch.from_numpy(content.reshape(-1, record))
    labels = records[:, 0].long()
    if labels.max() > 9:
        raise ValueError(f"{file} is damaged: labels must be from 0 to 9, got {labels.max()}.")
    return MemoryImages(records[:, 1:].reshape(-1, *CIFAR10_SHAPE).clone(), labels)


def _imagenet(folder: Path) -> ImageData:
    train, test = _class_folders(folder / "train"), _class_folders(folder / "val")
    if train[1] != test[1]:
        raise ValueError(f"{folder} must have the same classes in train and val.")
    return ImageData("imagenet", train[0], test[0])


def _folder(folder: Path) -> ImageData:
    images, classes = _class_folders(folder)
    if set(classes) <= {"train", "val", "test"}:
        raise ValueError(f"{folder} must hold a folder of images for each class, got {' and '.join(classes)}.")
    within_class = torch.cat([torch.arange(int(count)) for count in images.labels.bincount()])
    test = within_class % 5 == 4
    if not test.any():
        raise ValueError(f"{folder} must have at least 5 images in one of its class folders, to test on every fifth.")
    return ImageData("imagenet", *(images.subset(chosen.nonzero().flatten()) for chosen in (~test, test)))


def _class_folders(folder: Path) -> tuple[FileImages, list[str]]:
    """Return the images in the class folders of a folder, sorted by class and name, and the names of the classes."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    found = ImageFolder(folder)
    files, labels = zip(*found.samples)
    return FileImages(tuple(map(Path, files)), torch.tensor(labels)), found.classes
