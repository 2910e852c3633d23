"""What a predicted density of states costs beside a solved one, in one run on one core.

    python -m experiments.benchmarks.prediction

Blob cells of 32 × 32 pixels. Writes experiments/results/prediction.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import data_gen
from data_gen.unit_cells import unit_cell_family
from photonic_essl.finetuning import new_regressor, regression_recipe

RESULT = Path("experiments/results/prediction.json")
ROUNDS = 3


def seconds(work: Callable[[], object]) -> float:
    """Return the least time of a few rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def tasks(polarization: str, fine: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return what is timed, on cells sampled nine times along each of 32 pixels; images, in TM alone."""
    epsilon = fine.reshape(len(fine), 32, -1, 32, fine.shape[1] // 32).mean((2, 4))
    models = {}
    images = [("supervised", "light"), ("supervised", "paper")] if polarization == "tm" else []
    for recipe, encoder in [("few-labels", "none"), *images]:
        settings = regression_recipe(recipe, encoder)
        shape = {key: settings[key] for key in ("head", "smoothing", "plane_waves")}
        invariance = "translations * square" if recipe == "few-labels" else "mirrors * quarter-turns"
        models[recipe, encoder] = new_regressor(
            encoder, (32, 32), 0, invariance=invariance, polarization=polarization, **shape
        )
    first = models["few-labels", "none"]
    tensor = torch.from_numpy(epsilon).float()[:, None]
    solver = {"polarization": polarization, "resolution": 32}
    return {
        "label": lambda: data_gen.label(fine, **solver),
        "label on 15 × 15 wavevectors": lambda: data_gen.label(fine, k_points=15, **solver),
        "plane waves": lambda: first.approximations(tensor),
        **{
            f"prediction, {recipe}, encoder {encoder}": lambda model=model: model.predict(epsilon)
            for (recipe, encoder), model in models.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=64)
    count = parser.parse_args().cells
    torch.set_num_threads(1)
    family = unit_cell_family("blob")
    fine = np.stack([family.draw(0, index, 32).epsilon for index in range(count)])
    table = {}
    for polarization in ("tm", "te"):
        found = {name: 1e3 * seconds(work) / count for name, work in tasks(polarization, fine).items()}
        table[polarization] = {
            name: {"milliseconds a cell": round(value, 3), "part of a label": round(value / found["label"], 5)}
            for name, value in found.items()
        }
    text = json.dumps({"cells": count, **table}, indent=1, ensure_ascii=False)
    print(text)
    RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
