"""Classifiers from a pre-trained encoder: a linear one of its frozen representation, or all of it fine-tuned."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from photonic_essl.recipes import overridden
from photonic_essl.runs import Run
from photonic_essl.saving import weights_fingerprint
from photonic_essl.training import SeededModule, derived_seed, fit, resolved_device, resolved_precision
from photonic_essl.vision.augmentation import PUBLISHED_AUGMENTATIONS, Augmentation
from photonic_essl.vision.backbones import ImageEncoder, load_encoder
from photonic_essl.vision.datasets import ImageData, load_images
from photonic_essl.vision.images import Images
from photonic_essl.vision.neighbours import features
from photonic_essl.vision.recipes import load_recipe

_INITIALISATION, _LABELS, _VIEWS = 2, 3, 4


def probe(
    model: str | Path,
    *,
    data: str = "digits",
    out: str | Path | None = None,
    seeds: int = 5,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    encoder: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> float:
    """Print and return the accuracy of linear classifiers of a frozen representation, on the test images.

    Args:
        model: folder of a pre-trained encoder.
        data: digits, cifar10:FOLDER, imagenet:FOLDER or folder:FOLDER.
        out: folder to write, with a run for each seed, which goes on where it was stopped; `probe` in the model's
            folder where not given.
        seeds: how many classifiers are trained, with seeds 0, 1, ….
        epochs: passes over the images.
        batch_size: images in a batch, at most.
        learning_rate: at the start; it falls to zero by half a cosine.
        encoder: factory of the model's network as `module:factory`, if it is not one of this package.
        device: cpu, gpu, or auto: a GPU if there is one.
        progress: whether to show progress bars.

    Returns:
        The mean accuracy over seeds, 0 … 1.

    Raises:
        FileNotFoundError: if the model or files are missing.
        ValueError: if model and data do not suit each other, a file is damaged, a setting is out of range, or the
            folder holds other runs.
    """
    if seeds < 1:
        raise ValueError(f"`seeds` must be at least 1, got {seeds}.")
    images, home = load_images(data), Path(model) / "probe" if out is None else Path(out)
    settings = overridden(
        load_recipe("linear", images.preset), epochs=epochs, batch_size=batch_size, learning_rate=learning_rate
    )
    accuracies = []
    for seed in range(seeds):
        loaded = load_encoder(model, encoder)
        run = _run(home / f"seed-{seed}", "vision probe", settings, images, images.train, loaded, seed, device)
        accuracies.append(classify(run, loaded, images, images.train, settings, seed, device, progress))
        print(f"seed {seed}: {accuracies[-1]:.3f}")
    spread = f" ± {statistics.stdev(accuracies):.3f}" if seeds > 1 else ""
    print(f"linear classifiers of {model}, {len(images.test)} test images: mean{spread} over {seeds} seeds")
    print(f"accuracy: {statistics.mean(accuracies):.3f}")
    return statistics.mean(accuracies)


def finetune(
    model: str | Path,
    out: str | Path,
    *,
    data: str = "digits",
    labels: float = 0.1,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    label_seed: int = 0,
    encoder: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> float:
    """Train a pre-trained encoder and a new classifier on few labels; print and return the accuracy on the test images.

    Args:
        model: folder of a pre-trained encoder.
        out: folder to write: settings, logs and checkpoint. A run that was stopped goes on.
        data: digits, cifar10:FOLDER, imagenet:FOLDER or folder:FOLDER.
        labels: part of the training images of each class whose labels are used: 0.01 and 0.1 are published. Those of a
            smaller part are among those of a larger one.
        epochs: passes over these images.
        batch_size: images in a batch, at most.
        learning_rate: of the classifier, at the start; that of the encoder is the recipe's.
        seed: of the classifier's initial weights, the shuffling and the augmentation.
        label_seed: of the draw of the images with labels.
        encoder: factory of the model's network as `module:factory`, if it is not one of this package.
        device: cpu, gpu, or auto: a GPU if there is one.
        progress: whether to show a progress bar.

    Returns:
        The accuracy, 0 … 1.

    Raises:
        FileNotFoundError: if the model or files are missing.
        ValueError: if model and data do not suit each other, a file is damaged, a setting is out of range, or the
            folder holds another run.
    """
    images, loaded = load_images(data), load_encoder(model, encoder)
    settings = overridden(
        load_recipe("finetune", images.preset), epochs=epochs, batch_size=batch_size, learning_rate=learning_rate
    )
    labelled = images.train.subset(labelled_rows(images.train.labels, labels, label_seed))
    run = _run(Path(out), "vision finetune", settings, images, labelled, loaded, seed, device)
    accuracy = classify(run, loaded, images, labelled, settings, seed, device, progress)
    print(f"{model} fine-tuned on {len(labelled)} labels, {len(images.test)} test images")
    print(f"accuracy: {accuracy:.3f}")
    return accuracy


def labelled_rows(labels: Tensor, part: float, seed: int) -> Tensor:
    """Draw a part of the images of each class, at least one of each; smaller parts lie within larger ones.

    Args:
        labels: numbers of classes, shape `(image,)`.
        part: above 0, at most 1.
        seed: of the draw.

    Returns:
        Numbers of images, ascending, int64.

    Raises:
        ValueError: if the part is out of range.
    """
    if not 0 < part <= 1:
        raise ValueError(f"`labels` must be a part of the images, above 0 and at most 1, got {part}.")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derived_seed(seed, _LABELS)))
    classes = [order[labels[order] == label] for label in labels.unique()]
    return torch.cat([rows[: max(1, round(part * len(rows)))] for rows in classes]).sort().values


def _run(
    folder: Path,
    command: str,
    settings: Mapping[str, Any],
    images: ImageData,
    labelled: Images,
    encoder: ImageEncoder,
    seed: int,
    device: str,
) -> Run:
    facts = {
        "data": images.fingerprint,
        "labelled": labelled.fingerprint,
        "labels": len(labelled),
        "pretrained": weights_fingerprint(encoder),
        "seed": seed,
        "precision": resolved_precision(None, device),
    }
    return Run(folder, command, {**settings, **facts})


def classify(
    run: Run,
    encoder: ImageEncoder,
    images: ImageData,
    labelled: Images,
    settings: Mapping[str, Any],
    seed: int,
    device: str = "auto",
    progress: bool = False,
) -> float:
    """Train a classifier, or go on with it, unless the run is finished; return its accuracy on the test images.

    Raises:
        ValueError: if the images do not suit the encoder, or a file is damaged.
    """
    if run.finished:
        return run.record["results"]["accuracy"]
    augmentation = PUBLISHED_AUGMENTATIONS[images.preset].labelled
    module = Classification(encoder, labelled, images.classes, augmentation, settings, seed)
    with run.sitting():
        fit(module, run, device=device, progress=progress)
        encoder.to("cuda" if resolved_device(device) == "gpu" else "cpu")  # Lightning has left it on the CPU
        accuracy = module.accuracy(images.test)
        run.finish(steps=module.global_step, accuracy=accuracy)
    return accuracy


class Classification(SeededModule):
    """One step of classification: cross-entropy of a linear classifier of the representation.

    Args:
        encoder: pre-trained.
        images: to train on.
        classes: how many there are.
        augmentation: of the images.
        settings: a recipe's; where `frozen`, the encoder stays as it is.
        seed: of the classifier's initial weights, the shuffling and the augmentation.

    Raises:
        ValueError: if the images do not suit the encoder, or a setting is out of range.
    """

    noun = "images"

    def __init__(
        self,
        encoder: ImageEncoder,
        images: Images,
        classes: int,
        augmentation: Augmentation,
        settings: Mapping[str, Any],
        seed: int = 0,
    ):
        names = ("batch_size", "epochs", "optimizer", "learning_rate", "weight_decay", "momentum", "cosine")
        values = {name: settings[name] for name in names}
        super().__init__(samples=len(images), seed=seed, whole_batches=False, **values)
        features(encoder, images.subset(torch.arange(1)))  # refuses images that do not suit the encoder
        self.encoder, self.images, self.augmentation, self.settings = encoder, images, augmentation, settings
        self.labels = images.labels
        self.head = nn.Linear(encoder.features, classes)
        generator = torch.Generator().manual_seed(derived_seed(seed, _INITIALISATION))
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)
        encoder.requires_grad_(not settings["frozen"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the classifier, and the encoder, with a learning rate of its own, unless it is frozen."""
        head = {"params": list(self.head.parameters())}
        if self.settings["frozen"]:
            return [head]
        return [head, {"params": list(self.encoder.parameters()), "lr": self.settings["encoder_learning_rate"]}]

    def on_fit_start(self) -> None:
        """Move all labels to the device, where they stay."""
        self.labels = self.labels.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Begin to make the views of the epoch."""
        self.encoder.train(not self.settings["frozen"])
        seed = derived_seed(self.seed, _VIEWS, self.current_epoch)
        batches = [self.rows(batch) for batch in self.train_dataloader()]
        self.views = self.images.augmented(batches, [self.augmentation], seed, self.device)

    def losses(self, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of the batch, and the part of it that is classified rightly."""
        (views,) = next(self.views)
        labels = self.labels[rows]
        scores = self.head(self.encoder(views)).float()
        right = (scores.argmax(1) == labels).float().mean()
        return {"loss": functional.cross_entropy(scores, labels), "accuracy": right}

    def accuracy(self, images: Images) -> float:
        """Return the part of other images that is classified rightly."""
        with torch.no_grad():
            scores = self.head.cpu()(features(self.encoder, images))
        return (scores.argmax(1) == images.labels).double().mean().item()
