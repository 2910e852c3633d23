"""The few-label study: dataset × recipe × number of labels × pre-training seed × draw of labels → one tidy table.

    python -m experiments.photonics.study --scale laptop --processes 2
    python -m experiments.photonics.study --rerun 17

Stop it whenever you like and run it again: each finished run is a row of the table, no row is done twice, and a run
that was stopped goes on from its checkpoint. Several of these at once, of one `--runs` folder, share the work.
"""

import argparse
import contextlib
import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from experiments.photonics.baselines import BASELINES
from experiments.photonics.datasets import CONVERGED, DatasetPlan, load_plan, make
from experiments.photonics.estimate import estimate
from experiments.photonics.table import add_row, identity, read_rows
from experiments.photonics.trials import RECIPES, SUPERVISED, Trial, recipe_settings, remove_checkpoints, run_trial
from experiments.processes import process_pool

TABLE = Path("experiments/results/few_label_study.csv")
RUNS = Path("runs/study")
TABLES = {"smoke": RUNS / "smoke.csv", "recipes": TABLE.with_name("recipes.csv")}
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Scale:
    """One scale of the study; see `scales.yaml`. `data` is the scale whose datasets it uses."""

    name: str
    data: str
    datasets: Sequence[str]
    recipes: Sequence[str]
    encoder: str
    labels: Sequence[int]
    pretraining_seeds: Sequence[int]
    label_seeds: Sequence[int]
    pretraining_epochs: int | None
    finetuning_epochs: int | None


@dataclass(frozen=True)
class Study:
    """Where a study lies, and how it is run.

    Attributes:
        table: the tidy table.
        runs: folder of the scale's runs.
        data: folder of the datasets.
        plans: the datasets by name.
        published_protocol: whether to add the column of the published protocol.
    """

    table: Path
    runs: Path
    data: Path
    plans: dict[str, DatasetPlan]
    published_protocol: bool = False


def load_scale(name: str) -> Scale:
    """Read a scale; raises `ValueError` if there is none of this name."""
    scales = yaml.safe_load(Path(__file__).with_name("scales.yaml").read_text())
    if name not in scales:
        raise ValueError(f"unknown scale {name!r}; the scales are {', '.join(scales)}")
    return Scale(name, **{"data": name} | scales[name])


def folders(runs: Path, scale: Scale) -> tuple[Path, Path]:
    """Return the folder of a scale's runs, and that of its datasets."""
    return runs / scale.name, runs / scale.data / "data"


def trials(scale: Scale, plans: dict[str, DatasetPlan], recipes: Sequence[str]) -> list[Trial]:
    """Return all trials of a study, whole sets of recipes first, so that a part of the study can be compared too."""
    known = (*RECIPES, *BASELINES)
    if unknown := sorted(set(recipes) - set(known)):
        raise ValueError(f"unknown recipes {', '.join(unknown)}; there are {', '.join(known)}")
    epochs = {name: getattr(scale, name) for name in ("pretraining_epochs", "finetuning_epochs")}
    found = []
    for seed, dataset, recipe in itertools.product(scale.pretraining_seeds, plans, recipes):
        if recipe in BASELINES and seed != scale.pretraining_seeds[0]:
            continue
        settings = {**epochs, "encoder": RECIPES.get(recipe, {}).get("encoder", scale.encoder)}
        for number, draw in itertools.product(scale.labels, scale.label_seeds):
            if number == plans[dataset].samples["pool"] and draw != scale.label_seeds[0]:
                continue  # All cells of the pool are one draw.
            found.append(Trial(dataset, recipe, scale.name, number, seed, draw, **settings))
            if recipe == SUPERVISED and number == max(scale.labels) and seed == scale.pretraining_seeds[0]:
                found += [
                    Trial(dataset, recipe, scale.name, number, seed, draw, training_labels=kind, **settings)
                    for kind in plans[dataset].labelled["pool"]
                    if kind != CONVERGED
                ]
    return found


def run_study(study: Study, wanted: Sequence[Trial], processes: int = 1) -> None:
    """Run the trials that the table lacks, those that share a pre-training in one process."""
    groups = [list(group) for group in unfinished(study, wanted).values()]
    if processes == 1:
        for group in groups:
            run_group(study, group)
        return
    with process_pool(processes) as pool:
        for future in as_completed([pool.submit(run_group, study, group) for group in groups]):
            future.result()


def unfinished(study: Study, wanted: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Return the trials that the table lacks, by the folder that they share.

    Raises:
        ValueError: if a row was made by a recipe that has changed since.
    """
    rows = read_rows(study.table)
    for row in rows:
        check_recipe(row)
    done = {identity(row) for row in rows}
    groups: dict[str, list[Trial]] = {}
    for trial in wanted:
        if identity(vars(trial)) not in done:
            groups.setdefault(trial.pretraining_folder, []).append(trial)
    return groups


def check_recipe(row: Mapping[str, str]) -> None:
    """Raise `ValueError` if the recipe of a row is not what it was."""
    now = recipe_settings(row["recipe"], row["encoder"])
    if row["recipe_settings"] != now:
        raise ValueError(
            f"the recipe {row['recipe']} was {row['recipe_settings']} and is {now} now: give it another name, or "
            "remove its rows and runs"
        )


def run_group(study: Study, group: Sequence[Trial]) -> None:
    """Run trials one after the other and add their rows, unless another process is at it."""
    with claimed(study.runs / group[0].pretraining_folder) as mine:
        if not mine:
            return
        # Another process may have worked here since the group was made.
        for trial in itertools.chain(*unfinished(study, group).values()):
            plan = study.plans[trial.dataset]
            row = run_trial(trial, plan, study.data, study.runs, study.published_protocol)
            add_row(study.table, row)
            remove_checkpoints(study.runs / trial.folder)
            print(f"{' '.join(identity(row))}: relative error {100 * row['relative_error']:.3f} %", flush=True)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Give whether the runs of a folder are this process's to do, and keep others from them meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def rerun(study: Study, row: dict[str, str]) -> float:
    """Run a row of the table again from its own record, in a folder of its own, and return by how much it differs.

    Raises:
        ValueError: if the data or the recipe are not those of the row.
    """
    check_recipe(row)
    trial = Trial.from_row(row)
    with tempfile.TemporaryDirectory() as folder:
        again = run_trial(trial, study.plans[trial.dataset], study.data, Path(folder), False)
    for name in ("unlabelled_data", "training_data", "validation_data", "test_data"):
        if row[name] != str(again.get(name, "")):
            raise ValueError(f"`{name}` was {row[name]} and is {again.get(name)} now: the data are others")
    before, now = float(row["relative_error"]), again["relative_error"]
    print(f"relative error in the table {before:.9f}, again {now:.9f}, difference {abs(now - before):.1e}")
    return abs(now - before)


def make_datasets(study: Study, scale: str, workers: int) -> None:
    """Make, verify and check the datasets of a study."""
    for plan in study.plans.values():
        verification = study.table.with_name(f"{study.table.stem}_verification_{plan.name}_{scale}.txt")
        make(plan, study.data, verification, workers)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study, or one row of it again; return the exit status."""
    arguments = parser().parse_args(argv)
    table = arguments.out or TABLES.get(arguments.scale, TABLE)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    if arguments.rerun is not None:
        return rerun_from_table(table, arguments.rerun, arguments.runs, arguments.processes)
    scale = load_scale(arguments.scale)
    asked_for = {"labels": arguments.labels, "pretraining_seeds": arguments.seeds}
    scale = replace(scale, **{name: values for name, values in asked_for.items() if values})
    try:
        plans = {name: load_plan(name, scale.name) for name in arguments.datasets or scale.datasets}
        study = Study(table, *folders(arguments.runs, scale), plans, arguments.published_protocol)
        wanted = trials(scale, plans, arguments.recipes or [*scale.recipes, *BASELINES])
        groups = unfinished(study, wanted)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    missing = [trial for group in groups.values() for trial in group]
    print(f"{len(wanted)} rows, {len(wanted) - len(missing)} of them in {table}", flush=True)
    print(estimate(missing, plans, study.data, arguments.processes, study.published_protocol), flush=True)
    make_datasets(study, scale.name, arguments.processes)
    try:
        run_study(study, wanted, arguments.processes)
    except BrokenProcessPool:
        raise SystemExit(
            "a process of the study was killed, for want of memory perhaps; run it again to go on"
        ) from None
    print(f"{len(read_rows(table))} rows in {table}")
    return 0


def rerun_from_table(table: Path, number: int, runs: Path, workers: int) -> int:
    """Run a row again by its number, from 1; return 0 if it gives the same result."""
    rows = read_rows(table)
    if not 1 <= number <= len(rows):
        raise SystemExit(f"{table} has rows 1 to {len(rows)}, not {number}")
    row = rows[number - 1]
    plan = load_plan(row["dataset"], row["scale"])
    study = Study(table, *folders(runs, load_scale(row["scale"])), {plan.name: plan})
    make_datasets(study, row["scale"], workers)
    return int(rerun(study, row) > TOLERANCE)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--scale", choices=("smoke", "laptop", "recipes", "paper"), default="laptop")
    command.add_argument("--datasets", nargs="+", help="blob, gpm, p1; those of the scale where not given")
    command.add_argument("--recipes", nargs="+", help="those of the scale, and the baselines, where not given")
    command.add_argument("--labels", nargs="+", type=int, help="numbers of labels; those of the scale where not given")
    command.add_argument("--seeds", nargs="+", type=int, help="of pre-training; those of the scale where not given")
    command.add_argument("--processes", type=int, default=1, help="processes of one thread each")
    command.add_argument("--out", type=Path, help=f"the table; {TABLE} where not given, or that of the scale")
    command.add_argument("--runs", type=Path, default=RUNS, help="folder of the datasets and runs")
    command.add_argument(
        "--published-protocol",
        action="store_true",
        help="train a second time to add the lowest error over epochs on the test split, for comparison only",
    )
    command.add_argument("--rerun", type=int, metavar="ROW", help="run this row of the table again, and compare")
    return command


if __name__ == "__main__":
    raise SystemExit(main())
