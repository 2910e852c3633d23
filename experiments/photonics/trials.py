"""One trial of the study: pre-train, fine-tune on a draw of labels, choose on validation, read the test split once."""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.photonics.baselines import BASELINES, FEW_LABELS, PLANE_WAVES, Model, run_baseline
from experiments.photonics.datasets import CONVERGED, DatasetPlan
from photonic_essl.data import load_cells
from photonic_essl.finetuning import finetune
from photonic_essl.metrics import relative_error
from photonic_essl.plane_waves import REVISION
from photonic_essl.pretraining import pretrain
from photonic_essl.recipes import load_recipe
from photonic_essl.records import environment, read_record
from photonic_essl.regression import Regressor
from photonic_essl.training import resolved_device

SUPERVISED = "supervised"
RECIPES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("recipes.yaml").read_text())
"""The settings of each recipe that trains a network."""

ROUGH = "rough"
"""Kind of the labels that a surrogate is trained on."""

TEST_COLUMNS = {
    CONVERGED: "relative_error",
    "published": "relative_error_published_labels",
    "coarse": "relative_error_coarse_labels",
}
"""Where the error on the test split goes, by the kind of label that it is measured against."""


def recipe_settings(recipe: str, encoder: str) -> str:
    """Return the settings of a recipe as the table holds them: JSON, or nothing for most baselines.

    A digest stands for what the package's own recipes make of them, and for the first approximation.
    """
    chosen, resolved = RECIPES.get(recipe, {}), {}
    for step in {"pretrain", "surrogate", "finetune"} & {*chosen, *(["finetune"] if recipe in RECIPES else [])}:
        given = chosen.get(step, {})
        resolved[step] = load_recipe(given.get("recipe", SUPERVISED), encoder) | given
    if recipe == PLANE_WAVES:
        resolved["cutoff"] = load_recipe(FEW_LABELS, "none")["plane_waves"]
    if recipe == PLANE_WAVES or any(settings.get("plane_waves") for settings in resolved.values()):
        resolved["approximation"] = REVISION["tm"]
    if not resolved:
        return ""
    digest = hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:12]
    return json.dumps(chosen | {"digest": digest}, sort_keys=True)


@dataclass(frozen=True)
class Trial:
    """Everything that decides the result of one run; the columns of the table by the same names.

    Attributes:
        dataset: name of the dataset.
        recipe: one of `RECIPES`, or one of the baselines.
        scale: name of the scale, which decides the sizes of the splits.
        labels: number of cells to train on.
        pretraining_seed: seed of everything random but the draw of labels.
        label_seed: seed of the draw of labels; draws are nested, and the same for all recipes.
        training_labels: kind of label to train on.
        encoder: name of the encoder.
        pretraining_epochs: epochs of pre-training; the recipe's own where None.
        finetuning_epochs: the same of fine-tuning.
    """

    dataset: str
    recipe: str
    scale: str
    labels: int
    pretraining_seed: int
    label_seed: int
    training_labels: str = CONVERGED
    encoder: str = "light"
    pretraining_epochs: int | None = None
    finetuning_epochs: int | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> "Trial":
        """Return the trial that a row of the table is the record of."""
        texts = {field.name: row[field.name] for field in fields(cls)}
        numbers = {
            name: int(texts[name]) if texts[name] else None
            for name in ("labels", "pretraining_seed", "label_seed", "pretraining_epochs", "finetuning_epochs")
        }
        return cls(**texts | numbers)

    @property
    def pretrains(self) -> bool:
        """Whether there is an encoder to pre-train."""
        return bool({"pretrain", "surrogate"} & set(RECIPES.get(self.recipe, ())))

    @property
    def pretraining_folder(self) -> str:
        """Where the pre-training lies, below the folder of the study: shared by all trials that start from it."""
        return f"{self.dataset}/{self.recipe}/seed-{self.pretraining_seed}/encoder"

    @property
    def folder(self) -> str:
        """Where the fine-tuning lies, below the folder of the study."""
        run = f"labels-{self.labels}-draw-{self.label_seed}-{self.training_labels}"
        return f"{self.dataset}/{self.recipe}/seed-{self.pretraining_seed}/{run}"


def run_trial(trial: Trial, plan: DatasetPlan, data: Path, runs: Path, published_protocol: bool) -> dict[str, Any]:
    """Run a trial, or go on with it where it was stopped, and return its row of the table.

    Args:
        trial: what to run.
        plan: the dataset's.
        data: folder of the datasets.
        runs: folder of the study's runs.
        published_protocol: also train with the test split in place of validation, and report the lowest test error
            over epochs, as the published code does.
    """
    training = load_cells(plan.file(data, "pool", trial.training_labels), labelled=True)
    validation = load_cells(plan.file(data, "validation"), labelled=True)
    facts = {
        "recipe_settings": recipe_settings(trial.recipe, trial.encoder),
        "invariance": plan.invariance,
        "training_data": training.fingerprint,
        "validation_data": validation.fingerprint,
    }
    if trial.recipe in BASELINES:
        draw = {"labels": trial.labels, "label_seed": trial.label_seed, "seed": trial.pretraining_seed}
        model, results = run_baseline(trial.recipe, training, validation, **draw)
    else:
        model, results = _train(trial, plan, data, runs)
        if published_protocol:
            results |= _published_protocol(trial, plan, data, runs)
    return {**asdict(trial), **facts, **results, **_test_errors(model, plan, data), **_environment()}


def _train(trial: Trial, plan: DatasetPlan, data: Path, runs: Path) -> tuple[Regressor, dict[str, Any]]:
    """Pre-train where the recipe does, fine-tune, and return the model and what its runs recorded."""
    begin = _pretrain if "pretrain" in RECIPES[trial.recipe] else _train_surrogate
    results = begin(trial, plan, data, runs) if trial.pretrains else {}
    out = runs / trial.folder
    model = _finetune(trial, plan, data, runs, out, plan.file(data, "validation"))
    record = read_record(out / "run.json")
    return model, results | {
        "seconds": record["seconds"],
        "validation_relative_error": record["results"]["validation_relative_error"],
        "best_epoch": record["results"]["best_epoch"],
        "device": resolved_device("auto"),
    }


def _pretrain(trial: Trial, plan: DatasetPlan, data: Path, runs: Path) -> dict[str, Any]:
    out = runs / trial.pretraining_folder
    settings = {"epochs": trial.pretraining_epochs} | RECIPES[trial.recipe]["pretrain"]
    if load_recipe(settings["recipe"], trial.encoder)["transformation"] != "unused":
        settings["equivariance"] = plan.equivariance
    pretrain(
        plan.file(data, "unlabelled"),
        out,
        **settings,
        encoder=trial.encoder,
        invariance=plan.invariance,
        seed=trial.pretraining_seed,
        progress=False,
    )
    record = read_record(out / "run.json")
    return {
        "pretraining_seconds": record["seconds"],
        "unlabelled_data": record["settings"]["data"],
        "equivariance": plan.equivariance,
    }


def _train_surrogate(trial: Trial, plan: DatasetPlan, data: Path, runs: Path) -> dict[str, Any]:
    """Train a regressor on rough labels of the unlabelled cells."""
    out, rough = runs / trial.pretraining_folder, plan.file(data, "unlabelled", ROUGH)
    settings = {"invariance": plan.invariance} | RECIPES[trial.recipe]["surrogate"]
    finetune(
        rough,
        out,
        labels=len(load_cells(rough, labelled=True)),
        validation=plan.file(data, "validation"),
        encoder=trial.encoder,
        seed=trial.pretraining_seed,
        progress=False,
        **settings,
    )
    record = read_record(out / "run.json")
    return {"pretraining_seconds": record["seconds"], "unlabelled_data": record["settings"]["data"]}


def _finetune(trial: Trial, plan: DatasetPlan, data: Path, runs: Path, out: Path, validation: Path) -> Regressor:
    settings = {"recipe": SUPERVISED, "invariance": plan.invariance, "epochs": trial.finetuning_epochs}
    return finetune(
        plan.file(data, "pool", trial.training_labels),
        out,
        labels=trial.labels,
        pretrained=runs / trial.pretraining_folder if trial.pretrains else None,
        validation=validation,
        encoder=trial.encoder,
        seed=trial.pretraining_seed,
        label_seed=trial.label_seed,
        progress=False,
        **settings | RECIPES[trial.recipe].get("finetune", {}),
    )


def _published_protocol(trial: Trial, plan: DatasetPlan, data: Path, runs: Path) -> dict[str, float]:
    """Return the lowest error on the test split over all epochs.

    Validation has no part in training, so the same training validated on the test split passes through the same
    weights, and its lowest validation error is that number.
    """
    out = runs / f"{trial.folder}-published-protocol"
    _finetune(trial, plan, data, runs, out, plan.file(data, "test"))
    remove_checkpoints(out)
    error = read_record(out / "run.json")["results"]["lowest_validation_error"]
    return {"relative_error_published_protocol": error}


def _test_errors(model: Model, plan: DatasetPlan, data: Path) -> dict[str, Any]:
    """Return the error of a model on the test split, against each kind of label that it carries."""
    first = load_cells(plan.file(data, "test"), labelled=True)
    predicted, errors = model.predict(first.epsilon[:, 0]), {"test_data": first.fingerprint}
    for kind in plan.labelled["test"]:
        cells = load_cells(plan.file(data, "test", kind), labelled=True)
        same = torch.equal(cells.epsilon, first.epsilon)  # unless a cell could not be labelled
        errors[TEST_COLUMNS[kind]] = relative_error(
            predicted if same else model.predict(cells.epsilon[:, 0]), cells.dos
        )
    return errors


def remove_checkpoints(folder: Path) -> None:
    """Remove what only an unfinished run needs, and logs that would be many."""
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _environment() -> dict[str, Any]:
    found = environment()
    versions = found["versions"] | {"scikit-learn": importlib.metadata.version("scikit-learn")}
    return {"commit": found["commit"], "versions": " ".join(f"{name}={value}" for name, value in versions.items())}
