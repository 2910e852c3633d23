"""Accuracy of the nearest neighbours: how well a representation, or the pixels themselves, tells classes apart."""

import torch
from lightly.utils.benchmarking.knn import knn_predict
from torch import Tensor
from torch.nn import functional

from photonic_essl.encoders import representations
from photonic_essl.probing import Monitor
from photonic_essl.training import resolved_device
from photonic_essl.vision.backbones import ImageEncoder, load_encoder
from photonic_essl.vision.datasets import ImageData, load_images
from photonic_essl.vision.images import FileImages, Images

MOST_NEIGHBOURS = 200
IMAGES_PER_NEIGHBOUR = 250
"""As many as makes 200 neighbours, the published number, of the 50,000 images of CIFAR-10."""


def knn(
    model: str | None = None,
    *,
    data: str = "digits",
    neighbours: int | None = None,
    encoder: str | None = None,
    device: str = "auto",
) -> float:
    """Print and return how many test images the nearest neighbours among the others classify rightly.

    Neighbours are near by the cosine between their representations, and vote with weight exp(cosine / 0.1), as in
    arXiv 1805.01978.

    Args:
        model: folder of a pre-trained encoder; without it, pixels are compared.
        data: digits, cifar10:FOLDER, imagenet:FOLDER or folder:FOLDER.
        neighbours: how many vote: one of 250 images where not given, 200 at most.
        encoder: factory of the model's network as `module:factory`, if it is not one of this package.
        device: cpu, gpu, or auto: a GPU if there is one.

    Returns:
        The accuracy, 0 … 1.

    Raises:
        FileNotFoundError: if the model or files are missing.
        ValueError: if model and data do not suit each other, or a file is damaged.
    """
    images, device = load_images(data), resolved_device(device)
    if model is None:
        train, test = pixels(images.train), pixels(images.test)
    else:
        loaded = load_encoder(model, encoder).to("cuda" if device == "gpu" else device)
        train, test = features(loaded, images.train), features(loaded, images.test)
    chosen = default_neighbours(images) if neighbours is None else neighbours
    accuracy = neighbours_accuracy(train, test, images, chosen)
    print(f"{chosen} nearest neighbours by {model or 'pixels'}: {len(images.test)} test images of {data}")
    print(f"accuracy: {accuracy:.3f}")
    return accuracy


class NearestNeighbours(Monitor):
    """Accuracy of the nearest neighbours on the test images.

    Args:
        images: whose training images are the neighbours.
        every: epochs between measures.
    """

    def __init__(self, images: ImageData, every: int):
        super().__init__(every)
        self.images = images

    def scores(self, encoder: ImageEncoder) -> dict[str, float]:
        """Return the accuracy."""
        train, test = features(encoder, self.images.train), features(encoder, self.images.test)
        return {"knn_accuracy": neighbours_accuracy(train, test, self.images, default_neighbours(self.images))}


def default_neighbours(images: ImageData) -> int:
    """Return how many neighbours vote where nothing else is asked for."""
    return min(MOST_NEIGHBOURS, -(-len(images.train) // IMAGES_PER_NEIGHBOUR))


def features(encoder: ImageEncoder, images: Images) -> Tensor:
    """Return the representations of images by a frozen encoder, shape `(image, features)`, on the CPU.

    Raises:
        ValueError: if the images do not suit the encoder, or a file is damaged.
    """
    if images.channels != encoder.channels:
        raise ValueError(f"images of {images.channels} channels do not suit a model of {encoder.channels}.")
    return representations(encoder, images.batches(encoder.grid[0]))


def pixels(images: Images) -> Tensor:
    """Return the pixels of images, values 0 … 1, shape `(image, channel · row · column)`.

    Raises:
        ValueError: if they are in files, and thus of various sizes.
    """
    if isinstance(images, FileImages):
        raise ValueError("pixels are compared of digits and cifar10 alone; give a `model` for images in files.")
    return images.pixels.flatten(1).float() / 255


def neighbours_accuracy(train: Tensor, test: Tensor, images: ImageData, neighbours: int) -> float:
    """Return the part of the test images that their neighbours classify rightly.

    Args:
        train: what describes the training images, shape `(image, features)`.
        test: the same of the test images.
        images: both parts, for their labels.
        neighbours: how many vote.

    Raises:
        ValueError: if there are not so many neighbours.
    """
    if not 1 <= neighbours <= len(train):
        raise ValueError(f"`neighbours` must be from 1 to the {len(train)} training images, got {neighbours}.")
    bank, asked = (functional.normalize(part.float(), dim=1) for part in (train, test))
    predicted = [
        knn_predict(part, bank.T.contiguous(), images.train.labels, images.classes, neighbours)[:, 0]
        for part in asked.split(512)
    ]
    return (torch.cat(predicted) == images.test.labels).double().mean().item()
