"""Self-supervised pre-training of an encoder on images: E-SSL with quarter turns, and what it is compared with."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightly.models.modules.heads import ProjectionHead, SimSiamPredictionHead
from torch import Tensor, nn

from photonic_essl.distributed import check_shared
from photonic_essl.pretraining import SelfSupervised, carry_out, check_predicts
from photonic_essl.recipes import overridden
from photonic_essl.runs import Run
from photonic_essl.symmetry import TransformGroup, identity, quarter_turns
from photonic_essl.training import derived_seed, resolved_device, resolved_precision
from photonic_essl.vision.augmentation import PUBLISHED_AUGMENTATIONS, Augmentations
from photonic_essl.vision.backbones import ImageEncoder, load_encoder
from photonic_essl.vision.datasets import Standardisation, load_images
from photonic_essl.vision.images import Images
from photonic_essl.vision.neighbours import NearestNeighbours
from photonic_essl.vision.recipes import load_recipe

PUBLISHED_BATCH = 256
"""The batch size that the learning rates of the recipes are for."""

_VIEWS = 4


def pretrain(
    data: str = "digits",
    *,
    out: str | Path,
    recipe: str = "e-simclr",
    encoder: str | None = None,
    prediction: str | None = None,
    weight: float | None = None,
    temperature: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    seed: int = 0,
    probe_every: int = 10,
    download: bool = False,
    device: str = "auto",
    devices: int = 1,
    precision: str | None = None,
    compile: bool = False,
    progress: bool = True,
) -> ImageEncoder:
    """Pre-train an encoder on images, and save it as a folder.

    A run that was stopped goes on from its last checkpoint when it is started again with the same settings, and ends
    with the weights that it would have had without the stop; on a GPU, as nearly as two runs agree there.

    Args:
        data: digits, cifar10:FOLDER, imagenet:FOLDER (with train and val), or folder:FOLDER of class folders; labels
            serve to measure progress alone.
        out: folder to write: the encoder, its settings, logs and checkpoint.
        recipe: name of a recipe: simclr, simsiam, barlow, or e-simclr, e-simsiam, e-barlow, which predict the quarter
            turn of a smaller view beside. Its hyperparameters are those for the data; what follows overrides them.
        encoder: small, resnet18-cifar, resnet18 or resnet50, or your own as `module:factory`.
        prediction: task: absolute or relative.
        weight: of the prediction loss beside the invariance loss.
        temperature: what similarities are divided by.
        epochs: passes over the data; at most a tenth of them warms up.
        batch_size: images in a batch, over all devices together.
        learning_rate: for a batch of 256, at the start of the cosine; it is in proportion to the batch.
        weight_decay: added to the gradient.
        seed: of the initial weights, the shuffling and the augmentation.
        probe_every: epochs between measures of the accuracy on the test images, by nearest neighbours.
        download: whether to fetch CIFAR-10 where it is not there yet.
        device: cpu, gpu, or auto: a GPU if there is one.
        devices: number of devices, each with a process of its own.
        precision: 32-true, 64-true, bf16-mixed or 16-mixed; bf16-mixed on a GPU and 32-true otherwise where not
            given.
        compile: whether to compile the encoder with torch.compile.
        progress: whether to show a progress bar.

    Returns:
        The trained encoder, on the CPU.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: if a file is damaged, a setting is unknown or out of range, or the folder holds another run.
        DivergenceError: if the loss stops being finite.
    """
    images = load_images(data, download)
    published = load_recipe(recipe, images.preset)
    if "transformation" not in published:
        raise ValueError(f"the recipe {recipe!r} has no pre-training; it is for probe or finetune.")
    check_predicts(recipe, published["transformation"], prediction=prediction, weight=weight)
    settings = overridden(
        published,
        encoder=encoder,
        prediction=prediction,
        weight=weight,
        temperature=temperature,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
    check_shared(settings["batch_size"], devices)
    settings["warmup_epochs"] = min(settings["warmup_epochs"], settings["epochs"] // 10)
    predicted = quarter_turns() if settings["transformation"] == "predicted" else identity()
    augmentations = PUBLISHED_AUGMENTATIONS[images.preset]
    run = Run(
        out,
        "vision pretrain",
        {
            "recipe": recipe,
            **settings,
            "equivariance": predicted.name,
            "augmentations": {name: asdict(value) for name, value in augmentations._asdict().items()},
            "seed": seed,
            "data": images.fingerprint,
            "images": {"train": len(images.train), "test": len(images.test)},
            "probe_every": probe_every,
            "devices": devices,
            "precision": resolved_precision(precision, device),
        },
    )
    device = resolved_device(device, devices)
    if run.finished:
        print(f"{out} holds this run, finished; nothing was changed.")
        return load_encoder(out, settings["encoder"])
    module = ImagePretraining(images.train, images.standardisation, settings, augmentations, predicted, seed)
    if compile:
        module.compile_encoder()
    monitor = NearestNeighbours(images, probe_every)
    with run.sitting(data=data):
        carry_out(module, run, monitor, device=device, devices=devices, precision=precision, progress=progress)
    return module.encoder


class ImagePretraining(SelfSupervised):
    """Pre-training on images: augmentations make the views, and what the predicted copies are made from.

    Args:
        images: the images; their labels are not looked at.
        standardisation: of their values.
        settings: a recipe's.
        augmentations: of the recipe's dataset.
        predicted: group whose elements are predicted (the identity: nothing is).
        seed: of everything that is random.

    Raises:
        ValueError: as `SelfSupervised`.
    """

    noun = "images"
    encoder: ImageEncoder

    def __init__(
        self,
        images: Images,
        standardisation: Standardisation,
        settings: Mapping[str, Any],
        augmentations: Augmentations,
        predicted: TransformGroup,
        seed: int = 0,
    ):
        self.settings = settings
        size, smaller = augmentations.first.size, augmentations.copied.size
        new_encoder = functools.partial(
            ImageEncoder.of, settings["encoder"], images.channels, (size, size), **standardisation._asdict()
        )
        few = next(images.subset(torch.arange(min(8, len(images)))).batches(size))
        rate = settings["learning_rate"] * settings["batch_size"] / PUBLISHED_BATCH
        scaled = {**settings, "learning_rate": rate}
        super().__init__(len(images), few, new_encoder, scaled, predicted, (smaller, smaller), seed)
        self.images = images
        self.augmentations = augmentations[: 3 if self.objective.prediction else 2]

    def make_heads(self, settings: Mapping[str, Any]) -> None:
        """Make the heads of the published code: batch normalisation in the projector, of layers in the classifier."""
        features, objective = self.encoder.features, self.objective
        self.projector = projection_head([features, *settings["projector"]], settings["projection"])
        self.predictor = self.classifier = None
        if objective.invariance.needs_predictor:
            width = settings["projector"][-1]
            self.predictor = SimSiamPredictionHead(width, settings["predictor"], width)
        if objective.prediction:
            widths = [objective.prediction.seen * features, *settings["classifier"], objective.prediction.outputs]
            self.classifier = classification_head(widths)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters in groups, as published.

        LARS neither adapts nor decays biases and scales, which may have a learning rate of their own. The learning
        rate of a predictor stays where it is.
        """
        settings = self.settings
        if self.predictor:
            others = [value for name, value in self.named_parameters() if not name.startswith("predictor.")]
            return [{"params": others}, {"params": list(self.predictor.parameters()), "constant": True}]
        if settings["optimizer"] != "lars":
            return super().parameter_groups()
        rate = settings.get("bias_learning_rate", settings["learning_rate"]) * settings["batch_size"] / PUBLISHED_BATCH
        matrices = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim == 1]
        return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0, "lr": rate}]

    def on_train_epoch_start(self) -> None:
        """Begin to make the views of the epoch."""
        seed = derived_seed(self.seed, _VIEWS, self.current_epoch)
        batches = [self.rows(batch) for batch in self.train_dataloader()]
        self.views = self.images.augmented(batches, self.augmentations, seed, self.device)

    def seen(self, rows: Tensor, part: slice, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return two views of each image of this process, and a smaller one where its turn is to be predicted."""
        first, second, *smaller = (view.to(self.dtype) for view in next(self.views))
        return first, second, smaller[0] if smaller else None

    def through(self, network: nn.Module, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a network makes of both views, which batch normalisation sees one by one, as published."""
        return network(first), network(second)


def projection_head(widths: Sequence[int], output: str) -> ProjectionHead:
    """Return linear layers with batch normalisation, and ReLU between.

    Args:
        widths: of the input, each hidden layer and the output.
        output: `"linear"`, `"standardised"` (batch normalisation without scale and shift) or `"affine"` (with them).
    """
    last = {
        "linear": None,
        "standardised": nn.BatchNorm1d(widths[-1], affine=False),
        "affine": nn.BatchNorm1d(widths[-1]),
    }[output]
    hidden = [(before, after, nn.BatchNorm1d(after), nn.ReLU()) for before, after in itertools.pairwise(widths[:-1])]
    return ProjectionHead([*hidden, (widths[-2], widths[-1], last, None, False)])


def classification_head(widths: Sequence[int]) -> ProjectionHead:
    """Return linear layers with normalisation of each layer and ReLU between.

    That of the published E-SimSiam, and those for ImageNet, have no ReLU before the last of them.

    Args:
        widths: of the input, each hidden layer and the output.
    """
    hidden = [
        (before, after, nn.LayerNorm(after), nn.ReLU(), True) for before, after in itertools.pairwise(widths[:-1])
    ]
    return ProjectionHead([*hidden, (widths[-2], widths[-1], None, None, True)])
