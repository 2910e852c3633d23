"""Fine-tuning: a regressor of the density of states from a few labelled cells."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from photonic_essl.calibration import FEWEST_CELLS
from photonic_essl.data import Cells, LabelledCells, load_cells
from photonic_essl.encoders import DivergenceError, Encoder, check_widths, own_network
from photonic_essl.known_cells import TRAINED_ON, VALIDATED_ON, KnownCells, first_of_each
from photonic_essl.metrics import PREDICTED, empty_lattice, relative_error, relative_errors
from photonic_essl.plane_waves import REVISION
from photonic_essl.recipes import default_encoder, load_recipe, overridden
from photonic_essl.regression import Regressor, load_regressor
from photonic_essl.runs import Run
from photonic_essl.saving import load_folder, read_folder, weights_fingerprint
from photonic_essl.symmetry import PUBLISHED_GROUPS, TransformGroup, fitting_group, published_groups
from photonic_essl.training import SeededModule, derived_seed, fit, own_random_numbers, resolved_precision

VALIDATION_CELLS = 500
"""At most this many cells of the labelled file are kept for validation."""

CELLS_LOOKED_AT, IMPLAUSIBLE_ERROR = 50, 0.1
"""Labels of so many cells are compared with plane waves, which err by less than a per cent as a rule."""

ROUNDS = 100
"""At most this many times the model is validated in a run."""

LOSSES = {"squared": functional.mse_loss, "absolute": functional.l1_loss}

_INITIALISATION, _LABELS = 2, 3


def finetune(
    data: str | Path,
    out: str | Path,
    *,
    labels: int,
    pretrained: str | Path | None = None,
    validation: str | Path | None = None,
    recipe: str = "few-labels",
    encoder: str | None = None,
    family: str | None = None,
    invariance: str | None = None,
    smoothing: float | None = None,
    plane_waves: float | None = None,
    head: list[int] | None = None,
    loss: str | None = None,
    epochs: int | None = None,
    minimum_steps: int | None = None,
    batch_size: int | None = None,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    cosine: bool | None = None,
    weight_decay: float | None = None,
    seed: int = 0,
    label_seed: int = 0,
    device: str = "auto",
    precision: str | None = None,
    compile: bool = False,
    progress: bool = True,
) -> Regressor:
    """Train a regressor of the density of states on a few labelled cells, and save it as a folder.

    The whole network is trained. What is kept is the model of the epoch with the lowest error on validation cells,
    which are never trained on. A run that was stopped goes on when it is started again with the same settings.

    Args:
        data: labelled dataset file.
        out: folder to write: the model, its settings, logs and checkpoint.
        labels: number of cells to train on, symmetric copies counted once. Those of a smaller number are among those of
            a larger one.
        pretrained: folder of a pre-trained encoder, or of a regressor, to start from; without it all weights are new.
        validation: labelled dataset file to validate on; without it, cells of `data` that are not trained on, nor were
            by `pretrained` (500 at most, the same whatever the number of labels as long as that leaves so many).
        recipe: name of a recipe with settings for regression: few-labels, which starts from a first approximation by
            plane waves, or supervised, from images alone, as published. What follows overrides it.
        encoder: light, paper or paper-circular, your own as `module:factory`, or none, for a network that sees the
            first approximation alone; that of `pretrained` or of the recipe where not given.
        family: whose published invariance group to use, blob or gpm; where not given, that of the recipe (few-labels:
            `lattice`), or else that of the data's family, or `lattice`.
        invariance: group whose transformations augment the training cells, of the names that `pretrain` lists.
        smoothing: standard deviation, in scaled frequency, of the Gaussian over what the network predicts.
        plane_waves: largest |G|, in 2π/a, of the plane waves of the first approximation; 0 for none.
        head: widths of the hidden layers behind the representation and the first approximation.
        loss: squared (published) or absolute (what the metric sums up).
        epochs: passes over the training cells; above 100, at least so many, and at most 1 % more.
        minimum_steps: epochs go on until there were so many; none where `epochs` alone is given.
        batch_size: cells in a batch.
        optimizer: adam, sgd or lars.
        learning_rate: at the start.
        cosine: whether it falls to zero by half a cosine.
        weight_decay: added to the gradient.
        seed: of the initial weights, the shuffling and the augmentation.
        label_seed: of the draw of the cells to train on.
        device: cpu, gpu, or auto: a GPU if there is one.
        precision: 32-true, 64-true, bf16-mixed or 16-mixed; bf16-mixed on a GPU and 32-true otherwise where not
            given.
        compile: whether to compile the encoder with torch.compile.
        progress: whether to show a progress bar.

    Returns:
        The regressor, on the CPU.

    Raises:
        FileNotFoundError: if a file or folder is missing.
        ValueError: if a file is unlabelled or has too few labels, a setting is unknown or out of range, or the folder
            holds another run.
        DivergenceError: if the loss stops being finite.
    """
    cells = load_cells(data, labelled=True)
    others = None if validation is None else load_cells(validation, labelled=True)
    start = None if pretrained is None else load_pretrained(pretrained, encoder, cells)
    known = start.known if isinstance(start, Regressor) else KnownCells()
    trained_on, validated_on = split(cells, labels, label_seed, others, known)
    if isinstance(start, Regressor):
        warn_of_other_physics(start, cells)
    name = encoder_of(start).name if start else encoder or default_encoder(recipe)
    settings = overridden(
        regression_recipe(recipe, name),
        smoothing=smoothing,
        plane_waves=plane_waves,
        head=head,
        loss=loss,
        epochs=epochs,
        minimum_steps=0 if minimum_steps is None and epochs is not None else minimum_steps,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        cosine=cosine,
        weight_decay=weight_decay,
    )
    check_widths("head", settings["head"])
    if settings["minimum_steps"] < 0:
        raise ValueError(f"`minimum_steps` must not be negative, got {settings['minimum_steps']}.")
    augmentation = augmentation_group(cells, family, invariance or (None if family else settings.get("invariance")))
    physics = {"polarization": cells.attributes["polarization"], "lattice": cells.lattice.tolist()}
    run = Run(
        out,
        "finetune",
        {
            "recipe": recipe,
            "encoder": name,
            **settings,
            "invariance": augmentation.name,
            **physics,
            "approximation": REVISION.get(physics["polarization"]) if settings["plane_waves"] else None,
            "labels": labels,
            "label_seed": label_seed,
            "seed": seed,
            "data": cells.fingerprint,
            "validation": others and others.fingerprint,
            "pretrained": start and weights_fingerprint(start),
            "precision": resolved_precision(precision, device),
        },
    )
    if run.finished:
        print(f"{out} holds this run, finished; nothing was changed.")
        return load_regressor(out, own_network(name, cells.grid))
    tell_what_is_left_out(cells, others, trained_on, known)
    shape = {key: settings[key] for key in ("head", "smoothing", "plane_waves")}
    if start:
        shape["permittivity_range"] = encoder_of(start).permittivity_range
    regressor = new_regressor(name, cells.grid, seed, **shape, invariance=augmentation.name, **physics)
    if start:
        copy_weights(start, regressor)
    regressor.known.load_state_dict(known.state_dict())
    regressor.known.add(TRAINED_ON, trained_on.hashes)
    regressor.known.add(VALIDATED_ON, validated_on.hashes)
    warn_of_labels_of_others(regressor, trained_on)
    if compile:
        regressor.encoder.compile()
    module = FineTuning(regressor, trained_on, augmentation, settings, seed)
    facts = {"data": str(data), "pretrained": pretrained and str(pretrained), "family": cells.attributes["family"]}
    with run.sitting(**facts):
        _train_and_save(module, run, validated_on, device=device, precision=precision, progress=progress)
    return regressor


def _train_and_save(module: "FineTuning", run: Run, validated_on: LabelledCells, **options: Any) -> None:
    """Train a regressor, or go on with it, calibrate it and save it in the run's folder.

    Args:
        module: what is trained.
        run: in whose sitting.
        validated_on: cells that choose the epoch, and calibrate.
        options: of `fit`.
    """
    best, regressor = BestOnValidation(validated_on), module.regressor
    fit(module, run, callbacks=[best], **options)
    regressor.load_state_dict(best.weights)
    regressor.cpu().eval()
    if calibrated := len(validated_on) >= FEWEST_CELLS:
        predicted = regressor.calibrate(validated_on.epsilon[:, 0], validated_on.dos).values
    else:
        predicted = regressor.mean_and_spread(validated_on.epsilon)[0].numpy()
    regressor.save_pretrained(run.folder)
    error = relative_error(predicted, validated_on.dos)
    uniform = np.tile(empty_lattice(area=validated_on.area)[:PREDICTED], (len(validated_on), 1))
    run.finish(
        steps=module.global_step,
        validation_relative_error=error,
        best_epoch=best.epoch * module.passes,
        lowest_validation_error=best.error,  # of one pass, without symmetric copies
    )
    print(
        f"Regressor written to {run.folder}: {100 * error:.3g} % relative error on {len(validated_on)} validation "
        f"cells, {100 * relative_error(uniform, validated_on.dos):.3g} % by the empty lattice "
        f"({run.record['seconds']:.0f} s)."
    )
    if not best.epoch:
        print("No epoch was better on these than the start, which is kept: the model is as it was before training.")
    if not calibrated:
        print(
            f"It has no intervals: they need {FEWEST_CELLS} validation cells, labelled ones beyond `labels` or those "
            "of a validation file."
        )


def warn_of_other_physics(start: Regressor, cells: Cells) -> None:
    """Warn where a regressor to start from is of another lattice or polarization than the cells."""
    before, now = (
        f"{part.upper()} on the lattice {lattice.tolist()}"
        for part, lattice in ((start.polarization, start.lattice), (cells.attributes["polarization"], cells.lattice))
    )
    if before != now:
        warnings.warn(f"`pretrained` was trained for {before}, these cells are for {now}.", stacklevel=3)


def warn_of_labels_of_others(regressor: Regressor, cells: LabelledCells) -> None:
    """Warn where plane waves are so far from the labels that these are hardly those of the cells."""
    if regressor.approximate is None:
        return
    some = slice(0, CELLS_LOOKED_AT)
    errors = relative_errors(regressor.uncorrected(cells.epsilon[some, 0]), cells.dos[some])
    if (median := float(np.median(errors))) > IMPLAUSIBLE_ERROR:
        warnings.warn(
            f"plane waves differ from the labels by {100 * median:.0f} % (median of {len(errors)} cells): are the "
            "lattice, the order of the axes, the polarization and the scale of `dos` those of the cells?",
            stacklevel=2,
        )


def regression_recipe(name: str, encoder: str) -> dict[str, Any]:
    """Return the settings of a recipe for regression.

    Raises:
        ValueError: if there is no such recipe, or it is one for pre-training.
    """
    recipe = load_recipe(name, encoder)
    if "head" not in recipe:
        raise ValueError(f"the recipe {name!r} is for pre-training; its encoder is given by `pretrained`.")
    return recipe


def split(
    cells: LabelledCells,
    labels: int,
    label_seed: int = 0,
    validation: LabelledCells | None = None,
    known: KnownCells | None = None,
) -> tuple[LabelledCells, LabelledCells]:
    """Draw the cells to train on, and those to validate on; of symmetric copies of a cell one is drawn.

    Args:
        cells: all labelled cells.
        labels: how many to train on; those of a smaller number are among those of a larger one.
        label_seed: of the draw.
        validation: cells to validate on; others of `cells` where not given, 500 at most.
        known: to the model that training starts from; those that it was trained on are not validated on.

    Returns:
        Cells to train on, cells to validate on; none of these is one of those, or a symmetric copy.

    Raises:
        ValueError: if `labels` is less than 1, more than there are, or leaves none to validate on; if the cells to
            validate on are of another grid, lattice or polarization, or were trained on, here or before.
    """
    known = known or KnownCells()
    order = np.random.default_rng(derived_seed(label_seed, _LABELS)).permutation(len(cells))
    order = order[first_of_each(cells.hashes[order])]
    if not 1 <= labels <= len(order):
        once = "" if len(order) == len(cells) else ", symmetric copies counted once"
        raise ValueError(f"`labels` must be from 1 to the {len(order)} labelled cells there are{once}, got {labels}.")
    if validation is None:
        rest = order[labels:]
        rest = rest[~known.among(TRAINED_ON, cells.hashes[rest]).numpy()]
        if not len(rest):
            raise ValueError(
                f"`labels` {labels} leaves none of the {len(order)} labelled cells to validate on that was not trained "
                "on; ask for fewer, or give a validation file."
            )
        validation = cells.subset(rest[-VALIDATION_CELLS:])
    else:
        validation = validation.subset(first_of_each(validation.hashes))
    trained_on = cells.subset(order[:labels])
    check_validation(trained_on, validation, known)
    return trained_on, validation


def check_validation(trained_on: Cells, validation: Cells, known: KnownCells) -> None:
    """Refuse cells to validate on that are of another kind than those trained on, or were trained on themselves.

    Raises:
        ValueError: if they are, naming what differs, or how many.
    """
    both = (trained_on, validation)
    kinds = [(part.grid, part.lattice.tolist(), part.attributes["polarization"]) for part in both]
    if kinds[0] != kinds[1]:
        names = "grid, lattice vectors and polarization"
        raise ValueError(f"cells to validate on have {names} {kinds[1]}, those to train on {kinds[0]}.")
    if shared := int(torch.isin(validation.hashes, trained_on.hashes).sum()):
        raise ValueError(f"{shared} of the cells to validate on are among those to train on, or symmetric copies.")
    if seen := int(known.among(TRAINED_ON, validation.hashes).sum()):
        raise ValueError(
            f"{seen} of the cells to validate on are among those that `pretrained` was trained on, or symmetric copies."
        )


def tell_what_is_left_out(cells: Cells, others: Cells | None, trained_on: Cells, known: KnownCells) -> None:
    """Print how many cells are neither trained nor validated on, and why.

    Args:
        cells: those that the cells to train on were drawn from.
        others: those to validate on, where they are of another file.
        trained_on: the cells to train on.
        known: to the model that training starts from.
    """
    for part, name in ((cells, "cells"), (others, "cells to validate on")):
        if part and (copies := len(part) - len(part.hashes.unique())):
            print(f"{copies} {name} are translated, turned or mirrored copies of others, and left out.")
    if others is None:
        rest = cells.hashes[first_of_each(cells.hashes)]
        before = known.among(TRAINED_ON, rest) & ~torch.isin(rest, trained_on.hashes)
        if before.any():
            print(f"{int(before.sum())} cells that `pretrained` was trained on are not validated on.")


def load_pretrained(path: str | Path, name: str | None, cells: Cells) -> Encoder | Regressor:
    """Load a pre-trained encoder or regressor, and check that its encoder is the one asked for and fits the cells.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is another one, or was trained on another grid.
    """
    network = None if name is None else own_network(name, cells.grid)
    settings, _ = read_folder(path)
    model: Encoder | Regressor = (
        load_folder(Regressor, path, network) if "head" in settings else load_folder(Encoder, path, network)
    )
    encoder = encoder_of(model)
    if name not in (None, encoder.name):
        raise ValueError(f"{path} holds the encoder `{encoder.name}`, not `{name}`.")
    if encoder.grid != cells.grid:
        raise ValueError(f"{path} holds an encoder of a {encoder.grid} grid, the cells have {cells.grid}.")
    return model


def encoder_of(model: Encoder | Regressor) -> Encoder:
    """Return the encoder of a model that may be one itself."""
    return model.encoder if isinstance(model, Regressor) else model


def copy_weights(start: Encoder | Regressor, regressor: Regressor) -> None:
    """Let a regressor start from the weights of an encoder, or of another regressor.

    Raises:
        ValueError: if that has another head.
    """
    regressor.encoder.load_state_dict(encoder_of(start).state_dict())
    if isinstance(start, Regressor):
        widths, wanted = (
            [model.head[0].in_features, *(layer.out_features for layer in model.head[::2])]
            for model in (start, regressor)
        )
        if widths != wanted:
            raise ValueError(f"the pre-trained regressor has a head of widths {widths}, the recipe asks for {wanted}.")
        regressor.head.load_state_dict(start.head.state_dict())


def augmentation_group(cells: Cells, family: str | None = None, invariance: str | None = None) -> TransformGroup:
    """Return the group that augments training cells: the named one, or the published one of the family.

    Where nothing was published for the cells' own family, it is all that no density of states sees.

    Raises:
        ValueError: if nothing was published for a family that is asked for, or the group does not fit the cells.
    """
    if family is None and cells.attributes["family"] in PUBLISHED_GROUPS:
        family = cells.attributes["family"]
    name = invariance or (published_groups(family)[0].name if family else "lattice")
    return fitting_group(name, cells.grid, cells.lattice)


def new_regressor(encoder: str, grid: tuple[int, int], seed: int, **settings: Any) -> Regressor:
    """Build a regressor whose new weights follow from the seed."""
    with own_random_numbers(derived_seed(seed, _INITIALISATION)):
        return Regressor(encoder, grid=grid, network=own_network(encoder, grid), **settings)


class FineTuning(SeededModule):
    """One step of regression: the loss of the predicted difference from the empty lattice, of augmented cells.

    An epoch here is as many passes over the cells as keep the number of validations at or below `ROUNDS`.

    Args:
        regressor: what to train.
        cells: labelled cells to train on.
        augmentation: group whose random elements are applied to the cells.
        settings: a recipe's.
        seed: of shuffling and augmentation.
    """

    def __init__(
        self,
        regressor: Regressor,
        cells: LabelledCells,
        augmentation: TransformGroup,
        settings: Mapping[str, Any],
        seed: int = 0,
    ):
        steps = math.ceil(len(cells) / max(settings["batch_size"], 1))
        epochs = max(settings["epochs"], math.ceil(settings["minimum_steps"] / steps))
        passes = max(math.ceil(epochs / ROUNDS), 1)
        super().__init__(
            samples=len(cells),
            seed=seed,
            epochs=math.ceil(epochs / passes),
            passes=passes,
            whole_batches=False,
            **{name: settings[name] for name in ("batch_size", "optimizer", "learning_rate", "weight_decay", "cosine")},
        )
        if settings["loss"] not in LOSSES:
            raise ValueError(f"`loss` must be one of {', '.join(LOSSES)}, got {settings['loss']!r}.")
        self.regressor, self.augmentation, self.loss = regressor, augmentation, LOSSES[settings["loss"]]
        self.cells, self.dos = cells.epsilon, cells.dos

    def on_fit_start(self) -> None:
        """Move all cells to the device, where they stay, and make their first approximations, once."""
        self.approximations = self.regressor.approximations(self.cells.to(self.device))
        self.cells, self.dos = (values.to(self.device).to(self.dtype) for values in (self.cells, self.dos))

    def losses(self, rows: Int64[Tensor, " batch"], generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Return the loss of the batch."""
        cells = self.augmentation.sample(self.cells[rows], generator)
        wanted = self.dos[rows] - self.regressor.empty_lattice
        predicted = self.regressor.difference(cells, self.approximations[rows])
        return {"loss": self.loss(predicted.to(wanted.dtype), wanted)}


class BestOnValidation(lightning.Callback):
    """Keeps the weights of the epoch with the lowest relative error on validation cells, those at the start included.

    Args:
        cells: labelled cells that are not trained on.

    Attributes:
        error: the lowest relative error so far.
        epoch: when it was reached, in epochs of the module; 0 is before the first.
        weights: of the regressor then.
    """

    def __init__(self, cells: LabelledCells):
        self.cells = cells
        self.error, self.epoch = float("inf"), 0
        self.weights: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: lightning.Trainer, module: FineTuning) -> None:
        """Make the first approximations, once, and validate the weights that a new run starts from."""
        self.approximations = module.regressor.approximations(self.cells.epsilon.to(module.device))
        if not self.weights:
            module.report(validation_relative_error=self._validate(module, 0))

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: FineTuning) -> None:
        """Validate, and keep the weights if they are better than any before."""
        module.check_finite()
        module.report(validation_relative_error=self._validate(module, trainer.current_epoch + 1))

    def _validate(self, module: FineTuning, epoch: int) -> float:
        predicted = module.regressor.predicted(self.cells.epsilon, self.approximations)
        if not np.isfinite(predicted).all():
            raise DivergenceError(f"predictions are not finite after epoch {epoch}")
        error = relative_error(predicted, self.cells.dos)
        if error < self.error:
            weights = {name: value.detach().cpu().clone() for name, value in module.regressor.state_dict().items()}
            self.error, self.epoch, self.weights = error, epoch, weights
        return error

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a stop."""
        return {"error": self.error, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what survived a stop."""
        self.error, self.epoch, self.weights = state["error"], state["epoch"], state["weights"]
