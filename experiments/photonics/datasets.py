"""The study's datasets: made by `data_gen.generate` as their YAML files say, verified with MPB, checked for leaks."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_gen.generation import generate
from data_gen.solvers import mpb
from data_gen.verification import verify
from experiments.photonics.splits import check_disjoint
from photonic_essl.data import load_cells

CONVERGED = "converged"
UNLABELLED = "unlabelled"
SPLITS = (UNLABELLED, "pool", "validation", "test")


@dataclass(frozen=True)
class DatasetPlan:
    """One dataset of the study at one scale.

    Attributes:
        name: of the dataset.
        family: of its cells, one of `data_gen`.
        invariance: group that makes views and augments training cells.
        equivariance: group that is predicted.
        seeds: seed of the cells of each split.
        samples: number of cells of each split.
        labels: settings of `generate` for each kind of label.
        labelled: the kinds of label that each split carries.
        verified: how many cells of the test split MPB solves again.
    """

    name: str
    family: str
    invariance: str
    equivariance: str
    seeds: Mapping[str, int]
    samples: Mapping[str, int]
    labels: Mapping[str, Mapping[str, Any]]
    labelled: Mapping[str, list[str]]
    verified: int

    def file(self, folder: Path, split: str, kind: str | None = None) -> Path:
        """Return the file of a split, with one kind of label: converged where not given, none if it is unlabelled."""
        kind = kind or (UNLABELLED if split == UNLABELLED else CONVERGED)
        return folder / self.name / (f"{split}.h5" if kind == UNLABELLED else f"{split}-{kind}.h5")


def load_plan(name: str, scale: str) -> DatasetPlan:
    """Read the plan of a dataset at a scale.

    Raises:
        ValueError: if there is no such dataset or scale.
    """
    file = Path(__file__).with_name(f"{name}.yaml")
    names = sorted(path.stem for path in file.parent.glob("*.yaml") if path.stem not in ("scales", "recipes"))
    if name not in names:
        raise ValueError(f"unknown dataset {name!r}; the datasets are {', '.join(names)}")
    content = yaml.safe_load(file.read_text())
    if scale not in content["samples"]:
        raise ValueError(f"unknown scale {scale!r}; the scales are {', '.join(content['samples'])}")
    of_scale = {key: content.pop(key)[scale] for key in ("samples", "labelled", "verified")}
    return DatasetPlan(name=name, **content, **of_scale)


def make(plan: DatasetPlan, folder: Path, results: Path, workers: int = 1) -> None:
    """Make the files of a dataset that are not there yet, verify some of its labels, and check its splits.

    Args:
        plan: what to make.
        folder: where; the files lie in a folder of the dataset's name.
        results: file to keep the table of the verification in; it is not done again where that exists.
        workers: processes to solve cells with.

    Raises:
        LeakError: if splits share cells or symmetric copies of a cell.
        ValueError: if a file is there that was made otherwise.
        RuntimeError: if labels deviate from MPB's by more than their tolerance.
    """
    (folder / plan.name).mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        for kind in ([UNLABELLED] if split == UNLABELLED else []) + plan.labelled.get(split, []):
            settings = {"unlabelled": True} if kind == UNLABELLED else plan.labels[kind]
            drawn = {"samples": plan.samples[split], "seed": plan.seeds[split]}
            generate_what_can_be(plan.family, plan.file(folder, split, kind), **drawn, workers=workers, **settings)
    check_files(plan, folder)
    if plan.verified and not results.exists():
        _verify(plan, plan.file(folder, "test"), results)


def generate_what_can_be(family: str, out: Path, **settings: Any) -> None:
    """Make a file; cells that cannot be labelled are counted aloud, and left out by whoever reads the file.

    Raises:
        RuntimeError: if there is no file in the end.
    """
    try:
        generate(family, out=out, **settings)
    except RuntimeError as error:
        if not out.exists():
            raise
        print(f"{out}: {error}; they are left out", flush=True)


def check_files(plan: DatasetPlan, folder: Path) -> None:
    """Refuse a dataset whose splits share cells; raises `LeakError`."""
    check_disjoint({split: load_cells(plan.file(folder, split)) for split in SPLITS})


def _verify(plan: DatasetPlan, file: Path, results: Path) -> None:
    """Solve some cells again with MPB, where it can be had, and keep the printed table."""
    if not mpb.is_available():
        print(f"MPB cannot be had on this machine: the labels of {plan.name} were not verified", flush=True)
        return
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            verify(file, samples=plan.verified)
    finally:
        print(printed.getvalue(), end="", flush=True)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(f"data-gen verify {file.name} --samples {plan.verified}   # {plan.name}\n{printed.getvalue()}")
