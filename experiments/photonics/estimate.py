"""How long a study will take on this machine, from a few measured steps of each kind."""

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_gen.generation import Plan, compute_chunk
from data_gen.labels import LabelSettings
from experiments.benchmarks.pretraining import cells as made_up_cells
from experiments.benchmarks.pretraining import step_seconds
from experiments.photonics.baselines import BASELINES
from experiments.photonics.datasets import SPLITS, DatasetPlan
from experiments.photonics.trials import RECIPES, SUPERVISED, Trial
from photonic_essl.data import LabelledCells
from photonic_essl.finetuning import FineTuning, new_regressor, regression_recipe
from photonic_essl.metrics import PREDICTED, empty_lattice
from photonic_essl.pretraining import Pretraining, named_groups
from photonic_essl.recipes import load_recipe, overridden
from photonic_essl.regression import Regressor
from photonic_essl.symmetry import group
from photonic_essl.training import resolved_device

MEASURED_STEPS, MEASURED_LABELS = 4, 6
SECONDS_OF_A_RUN = 2.0
"""What a run takes beside its steps: reading files, setting up the trainer, writing the model. Measured."""

Kind = tuple[str, str, float | None]
"""Encoder and recipe of a fine-tuning, and its plane waves where they are not the recipe's."""


def estimate(
    missing: Sequence[Trial], plans: Mapping[str, DatasetPlan], data: Path, processes: int, published_protocol: bool
) -> str:
    """Return what is left to do and how long it takes, as a line; baselines, which are quick, are left out."""
    networks = [trial for trial in missing if trial.recipe not in BASELINES]
    pretrainings = {trial.pretraining_folder: trial for trial in networks if trial.pretrains}
    labelling = sum(_labelling(plan, data) for plan in plans.values())
    pretraining = sum(_pretraining(trial, plans[trial.dataset]) for trial in pretrainings.values())
    finetuning = sum(_finetuning(trial, plans[trial.dataset]) for trial in networks) * (1 + published_protocol)
    hours = [seconds / 3600 / processes for seconds in (labelling, pretraining, finetuning)]
    return (
        f"estimate with {processes} processes: {sum(hours):.2f} h ({hours[0]:.2f} h of labels, {hours[1]:.2f} h of "
        f"{len(pretrainings)} pre-trainings, {hours[2]:.2f} h of {len(networks)} fine-tunings); what is already begun "
        "counts in full"
    )


def _labelling(plan: DatasetPlan, data: Path) -> float:
    """Return seconds to label the cells of the files that are not there."""
    return sum(
        plan.samples[split] * _label_seconds(plan.family, tuple(plan.labels[kind].items()))
        for split in SPLITS
        for kind in plan.labelled.get(split, ())
        if not plan.file(data, split, kind).exists()
    )


@functools.cache
def _label_seconds(family: str, settings: tuple[tuple[str, Any], ...]) -> float:
    """Return seconds to label one cell; the first cell warms up."""
    plan = Plan(family, MEASURED_LABELS + 1, 0, 32, False, LabelSettings(**dict(settings)))
    compute_chunk(plan, 0, 1)
    start = time.perf_counter()
    compute_chunk(plan, 1, 1 + MEASURED_LABELS)
    return (time.perf_counter() - start) / MEASURED_LABELS


def _pretraining(trial: Trial, plan: DatasetPlan) -> float:
    """Return seconds of a pre-training, or of training a surrogate."""
    recipe, cells = RECIPES[trial.recipe], plan.samples["unlabelled"]
    if "surrogate" in recipe:
        return _training(trial.encoder, plan, cells, recipe["surrogate"])
    chosen = {"epochs": trial.pretraining_epochs} | recipe["pretrain"]
    settings = overridden(
        load_recipe(chosen["recipe"], trial.encoder), prediction=chosen.get("prediction"), epochs=chosen["epochs"]
    )
    steps = settings["epochs"] * (cells // settings["batch_size"])
    return SECONDS_OF_A_RUN + steps * _pretraining_step(
        trial.recipe, trial.encoder, plan.invariance, plan.equivariance, settings["batch_size"]
    )


@functools.cache
def _pretraining_step(recipe: str, encoder: str, invariance: str, equivariance: str, batch_size: int) -> float:
    chosen = RECIPES[recipe]["pretrain"]
    settings = overridden(load_recipe(chosen["recipe"], encoder), prediction=chosen.get("prediction"), epochs=1)
    cells = made_up_cells(batch_size * MEASURED_STEPS)
    groups = named_groups(cells, settings["transformation"], None, invariance, equivariance)
    return step_seconds(Pretraining(cells, encoder, settings, groups), resolved_device("auto"))


def _finetuning(trial: Trial, plan: DatasetPlan) -> float:
    """Return seconds of a fine-tuning, validation included."""
    chosen = {"epochs": trial.finetuning_epochs} | RECIPES[trial.recipe].get("finetune", {})
    return _training(trial.encoder, plan, trial.labels, chosen)


def _training(encoder: str, plan: DatasetPlan, labels: int, chosen: Mapping[str, Any]) -> float:
    """Return seconds of training a regressor."""
    recipe, plane_waves = chosen.get("recipe", SUPERVISED), chosen.get("plane_waves")
    settings = overridden(
        regression_recipe(recipe, encoder),
        plane_waves=plane_waves,
        epochs=chosen.get("epochs"),
        minimum_steps=None if chosen.get("epochs") is None else 0,
    )
    kind = (encoder, recipe, plane_waves)
    module = _module(kind, plan.invariance, labels, settings)
    steps = module.epochs * len(module.train_dataloader())
    of_approximation, of_prediction = _prediction_seconds(kind)
    once = (labels + plan.samples["validation"] + plan.samples["test"]) * of_approximation
    validation = module.epochs * plan.samples["validation"] * of_prediction
    return SECONDS_OF_A_RUN + steps * _finetuning_step(kind, plan.invariance) + once + validation


@functools.cache
def _finetuning_step(kind: Kind, invariance: str) -> float:
    settings = overridden(regression_recipe(kind[1], kind[0]), epochs=1, minimum_steps=0)
    cells = settings["batch_size"] * MEASURED_STEPS
    return step_seconds(_module(kind, invariance, cells, settings), resolved_device("auto"))


@functools.cache
def _prediction_seconds(kind: Kind, count: int = 256) -> tuple[float, float]:
    """Return seconds to make the first approximation of a cell, and seconds to predict a cell with it."""
    device = "cuda" if resolved_device("auto") == "gpu" else "cpu"
    regressor, cells = _regressor(kind).to(device), made_up_cells(count).epsilon.to(device)
    regressor.predicted(cells[:8], regressor.approximations(cells[:8]))
    start = time.perf_counter()
    approximations = regressor.approximations(cells)
    approximated = time.perf_counter()
    regressor.predicted(cells, approximations)
    return (approximated - start) / count, (time.perf_counter() - approximated) / count


def _module(kind: Kind, invariance: str, labels: int, settings: Mapping[str, Any]) -> FineTuning:
    return FineTuning(_regressor(kind), _labelled(labels), group(invariance), settings)


@functools.cache
def _regressor(kind: Kind) -> Regressor:
    encoder, recipe, plane_waves = kind
    settings = overridden(regression_recipe(recipe, encoder), plane_waves=plane_waves)
    return new_regressor(encoder, (32, 32), 0, **{key: settings[key] for key in ("head", "smoothing", "plane_waves")})


@functools.cache
def _labelled(count: int) -> LabelledCells:
    dos = torch.from_numpy(np.tile(empty_lattice()[:PREDICTED], (count, 1))).float()
    cells = made_up_cells(count)
    return LabelledCells(cells.epsilon, cells.attributes, cells.fingerprint, dos)
