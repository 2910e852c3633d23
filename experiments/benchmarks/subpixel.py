"""Our subpixel smoothing against MPB's own, at the same resolution: error in frequency against a converged reference.

    python -m experiments.benchmarks.subpixel

The cells are circles, which MPB smooths from the exact geometry and we from samples of ours: MPB gets the circle, not
our permittivity. Both have its centre on the centre of a pixel, as MPB's grid has it. The reference is the fast
solver at six times the resolution; MPB's own answer at four times the resolution is compared with it too, to show that
both tend to the same. Writes experiments/results/subpixel.json.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from data_gen.solvers import mpb, rbme
from experiments.benchmarks.solvers import circle

RESULT = Path("experiments/results/subpixel.json")
RESOLUTION, BANDS, REFERENCE = 32, 10, 6
SAMPLES_PER_PIXEL = 9  # as the families draw
WAVEVECTORS = np.array([(0.5, 0.0), (0.5, 0.5), (0.25, 0.0), (0.5, 0.25), (0.25, 0.25), (0.13, 0.38)])
SMALLEST_FREQUENCY = 0.02


def sampled(radius: float, inside: float, outside: float, points: int) -> torch.Tensor:
    """Return the permittivity of the circle on a grid of samples, shape `(1, points, points)`."""
    centre = 0.5 / (points // SAMPLES_PER_PIXEL)
    position = (torch.arange(points, dtype=torch.float64) + 0.5) / points - centre
    squared = (position - position.round()).square()
    return torch.where(squared[:, None] + squared[None] < radius**2, inside, outside).double()[None]


def ours(cell: dict[str, float], polarization: str, factor: int = 1) -> np.ndarray:
    resolution = RESOLUTION * factor
    epsilon = sampled(**cell, points=SAMPLES_PER_PIXEL * resolution)
    # At the reference's resolution the operator's own error is far below the tolerance that is asked of its bands.
    tolerance = 2e-5 if factor == 1 else 1e-5
    settings = {"bands": BANDS, "polarization": polarization, "resolution": resolution, "tolerance": tolerance}
    return rbme.solve_bands(epsilon, WAVEVECTORS, **settings).frequency[0].numpy()


def mpbs(cell: dict[str, float], polarization: str, factor: int = 1) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        request = {**cell, "polarization": polarization, "resolution": RESOLUTION * factor, "bands": BANDS}
        request |= {"wavevectors": WAVEVECTORS.tolist(), "answer": str(answer)}
        script = Path(__file__).with_name("mpb_cylinder.py")
        subprocess.run(
            [mpb.interpreter(), "-W", "ignore", str(script)],
            input=json.dumps(request),
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return np.sort(json.loads(answer.read_text())["frequency"])  # MPB may leave nearly degenerate bands unsorted


def error(frequency: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return the mean and largest relative error."""
    moving = reference > SMALLEST_FREQUENCY
    deviation = np.abs(frequency[moving] / reference[moving] - 1)
    return float(deviation.mean()), float(deviation.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10)
    cells = [circle(index) for index in range(parser.parse_args().cells)]
    torch.set_num_threads(1)
    table = {}
    for polarization in ("te", "tm"):
        rows: dict[str, list] = {"rbme": [], "mpb": [], "mpb, four times finer": []}
        for cell in cells:
            reference = ours(cell, polarization, REFERENCE)
            rows["rbme"].append(error(ours(cell, polarization), reference))
            rows["mpb"].append(error(mpbs(cell, polarization), reference))
            rows["mpb, four times finer"].append(error(mpbs(cell, polarization, 4), reference))
            print(polarization, {name: f"{found[-1][0]:.2e}" for name, found in rows.items()}, flush=True)
        means = {name: np.mean([row[0] for row in found]) for name, found in rows.items()}
        table[polarization] = {
            "mean_error": means,
            "largest_error": {name: np.max([row[1] for row in found]) for name, found in rows.items()},
            "mean_error_of_rbme_over_mpb": means["rbme"] / means["mpb"],
            "cells_where_rbme_is_better": sum(a[0] < b[0] for a, b in zip(rows["rbme"], rows["mpb"])),
        }
        print(polarization, json.dumps(table[polarization], indent=1), flush=True)
    RESULT.write_text(json.dumps({"cells": len(cells), "resolution": RESOLUTION, **table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
