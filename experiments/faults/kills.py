"""Kill commands at random moments and start them again until they are done: nothing may be lost, nothing doubled.

    python -m experiments.faults.kills [--commands generate pretrain study] [--kills 50]

`kill -9` hits the command, or one of its worker processes, at a moment drawn evenly from the time that a calm run
takes, start-up included; the same command is started again, and where it comes to its end, the next run begins, until
there were that many kills. Each run must leave the files of the calm one: the same bytes of dataset files and weights,
the same losses, the same rows but for what they cost, and nothing else. What a killed command has started must end by
itself. Writes experiments/results/kills.json.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from experiments.photonics import study, table
from experiments.photonics.datasets import DatasetPlan
from photonic_essl.plotting import read_log

RESULT = Path("experiments/results/kills.json")
SECONDS_TO_END = 300  # for what a killed command has started: on a busy machine, an import takes minutes
# Columns of the table that differ from run to run: what it cost, and the commit, which RESULT makes a dirty one.
PER_RUN = ("pretraining_seconds", "seconds", "commit")
UNFINISHED = ("*.part", "*.partial", "*.shard")
PER_SITTING = {"logs", "tensorboard", "checkpoints"}  # folders of which a run has as much as it had sittings

Contents = dict[str, Any]


def generate(folder: Path) -> list[str]:
    """The command of a labelled dataset file, in many chunks on two workers."""
    cells = ["--samples", "128", "--resolution", "8", "--k-points", "5", "--bands", "6", "--seed", "11"]
    return ["-m", "data_gen.cli", "generate", "blob", "--out", str(folder / "cells.h5"), "--workers", "2", *cells]


def pretrain(folder: Path) -> list[str]:
    """The command of a pre-training of some checkpoints."""
    options = ["--out", str(folder / "run"), "--epochs", "16", "--batch-size", "32", "--device", "cpu", "--no-progress"]
    program = ["-c", "from photonic_essl.cli import main; main()"]
    return [*program, "pretrain", "--data", str(folder.parent / "unlabelled.h5"), *options]


def small_study(folder: Path) -> list[str]:
    """The command of a study of seven rows: its datasets, and its trials in two processes."""
    return ["-c", f"from experiments.faults import kills; kills.run_small_study({str(folder)!r})"]


COMMANDS: dict[str, Callable[[Path], list[str]]] = {"generate": generate, "pretrain": pretrain, "study": small_study}


def run_small_study(folder: str) -> None:
    """Do what the study's command does, at a scale of its own."""
    plan = DatasetPlan(
        name="blob",
        family="blob",
        invariance="mirrors * quarter-turns",
        equivariance="translations/2",
        seeds={"unlabelled": 0, "pool": 1, "validation": 2, "test": 3},
        samples={"unlabelled": 128, "pool": 8, "validation": 4, "test": 4},
        labels={"converged": {"k_points": 9, "bands": 10}, "published": {"k_points": 5, "bands": 10}},
        labelled={"pool": ["converged", "published"], "validation": ["converged"], "test": ["converged"]},
        verified=0,
    )
    recipes = ["supervised", "e-simclr", "ridge"]
    scale = study.Scale(
        name="smoke",
        data="smoke",
        datasets=["blob"],
        recipes=recipes,
        encoder="light",
        labels=[3, 6],
        pretraining_seeds=[0],
        label_seeds=[0],
        pretraining_epochs=2,
        finetuning_epochs=4,
    )
    runs = Path(folder)
    small = study.Study(runs / "table.csv", runs, runs / "data", {"blob": plan})
    study.make_datasets(small, scale.name, workers=2)
    study.run_study(small, study.trials(scale, small.plans, recipes), processes=2)


def contents(folder: Path) -> Contents:
    """Return what a run has left, as far as it must be the same whenever it was killed."""
    found: Contents = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix in (".h5", ".safetensors"):
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.name == "run.json":
            found[name] = [column.tolist() for column in read_log(file.parent, "loss")]
        elif any(file.match(pattern) for pattern in UNFINISHED):
            found[name] = "left behind"
        elif file.is_file() and not PER_SITTING & set(file.relative_to(folder).parts):
            found[name] = "there"
    for row in table.read_rows(folder / "table.csv"):
        key = " ".join(table.identity(row))
        found[key] = [*found.get(key, []), {name: row[name] for name in row if name not in PER_RUN}]
    return found


def start(command: Sequence[str], log: Path) -> subprocess.Popen:
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, *command], stdout=output, stderr=output)


def finish_under_kills(
    command: Sequence[str], log: Path, life: float, kills: int, generator: random.Random, done: Counter
) -> None:
    """Start the command until it has ended well, and kill it, or a worker, until so many kills are done."""
    while True:
        process, struck = start(command, log), False
        while process.poll() is None:
            try:
                process.wait(generator.uniform(0, life) if done["parent"] + done["worker"] < kills else None)
            except subprocess.TimeoutExpired:
                struck = True
                strike(process, generator, done)
        if process.returncode == 0:
            return
        if not struck:
            raise SystemExit(f"the command failed unprovoked: {log.read_text()[-2000:]}")


def strike(process: subprocess.Popen, generator: random.Random, done: Counter) -> None:
    """Kill the command or one of its workers; in the first case, see that all that it has started ends."""
    started = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in started if _is_worker(child)]
    if workers and generator.random() < 0.5:
        generator.choice(workers).kill()
        done["worker"] += 1
        return
    process.kill()
    process.wait()
    done["parent"] += 1
    begun = time.monotonic()
    _, alive = psutil.wait_procs(started, timeout=SECONDS_TO_END)
    if alive:
        raise SystemExit(f"{SECONDS_TO_END} s after their parent's death there still are {alive}")
    done["slowest_end_s"] = max(done["slowest_end_s"], round(time.monotonic() - begun, 1))


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def shake(name: str, folder: Path, kills: int, seed: int) -> Iterator[dict[str, object]]:
    """Run a command calmly, and then under kills, until there were so many; yield what happened after each run."""
    command, generator, done = COMMANDS[name], random.Random(seed), Counter()
    calm = folder / "calm"
    calm.mkdir()
    begun = time.monotonic()
    finish_under_kills(command(calm), folder / "log", 0, 0, generator, done)
    life, expected, runs = time.monotonic() - begun, contents(calm), 0
    while done["parent"] + done["worker"] < kills:
        runs += 1
        again = folder / f"run-{runs}"
        again.mkdir()
        begun, before = time.monotonic(), done.copy()
        finish_under_kills(command(again), folder / "log", life, kills, generator, done)
        if done == before:  # a busy machine may have become a quiet one
            life = min(life, time.monotonic() - begun)
        if (found := contents(again)) != expected:
            different = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
            first = f"{expected.get(different[0])}\nbecame\n{found.get(different[0])}"
            raise SystemExit(f"{name}: run {runs}, after {dict(done)}, differs in {', '.join(different)}:\n{first}")
        yield {"kills": dict(done), "runs_the_same": runs, "compared": len(expected), "calm_s": round(life, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in arguments.commands:
        with tempfile.TemporaryDirectory() as folder:
            cells = f"generate blob --out {folder}/unlabelled.h5 --samples 64 --unlabelled --workers 1".split()
            subprocess.run([sys.executable, "-m", "data_gen.cli", *cells], check=True)
            for so_far in shake(name, Path(folder), arguments.kills, arguments.seed):
                results[name] = {"seed": arguments.seed, **so_far}
                print(name, so_far, flush=True)
        # Not before: a file names each commit that was at work, and this change makes it another one.
        RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
