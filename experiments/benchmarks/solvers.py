"""Band solvers side by side: MPB, reduced Bloch modes (rbme), and where installed blaze2d and legume's plane waves.

    python -m experiments.benchmarks.solvers

Cells are single circles (all that blaze2d and legume draw), permittivities uniform in [1, 20]. Every measurement runs
in a process of its own with one thread, all in one run. Per solver and polarization: seconds per wavevector and per
cell of 25 × 25 wavevectors and ten bands, with group velocities and density of states (blaze2d and legume give neither,
and solve fewer wavevectors here: blaze2d its own path); peak memory; error against the fast solver at four times the
resolution. Then how the time of MPB and rbme grows with resolution, bands and wavevectors. `pip install blaze2d
legume-gme` adds those two. Writes experiments/results/solvers.json and solvers.png.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch

from data_gen.labels import LabelSettings, density
from data_gen.lattices import half_grid
from data_gen.solvers import mpb, rbme

RESULT = Path("experiments/results/solvers.json")
FINE = 512
PUBLISHED = {"resolution": 32, "bands": 10, "k_points": 25}
GROWTH = {"resolution": (16, 32, 64, 128), "bands": (4, 10, 20, 40), "k_points": (3, 9, 25, 50)}
MPB_WAVEVECTORS = 24  # of a growth measurement: MPB's time is proportional to their number
PATH = np.array(
    [(x / 16, 0) for x in range(1, 8)] + [(0.5, y / 16) for y in range(8)] + [(x / 16,) * 2 for x in range(1, 8)]
)


def circle(index: int) -> dict[str, float]:
    """Draw the radius of circle `index` and the permittivities in and around it."""
    generator = np.random.default_rng([7, index])
    inside, outside = generator.uniform(1, 20, 2)
    return {"radius": generator.uniform(0.15, 0.45), "inside": inside, "outside": outside}


def sampled(radius: float, inside: float, outside: float) -> torch.Tensor:
    """Return the permittivity of a circle on a fine grid, shape `(1, FINE, FINE)`."""
    squared = ((torch.arange(FINE, dtype=torch.float64) + 0.5) / FINE - 0.5).square()
    inner = squared[:, None] + squared[None] < radius**2
    return torch.where(inner, inside, outside).double()[None]


def run_package(name: str, cells: list[dict], wavevectors: np.ndarray, settings: dict) -> tuple[np.ndarray, np.ndarray]:
    """Solve with MPB or rbme: frequencies `(cell, k, band)`; half of a whole grid is integrated to densities too."""
    module = {"mpb": mpb, "rbme": rbme}[name]
    epsilon = torch.cat([sampled(**cell) for cell in cells])
    bands = module.solve_bands(epsilon, wavevectors, **settings)
    n = math.isqrt(2 * len(wavevectors))
    if np.array_equal(wavevectors, half_grid(n)):
        density(bands, n, epsilon, np.eye(2), LabelSettings(smoothing="published"))
    return wavevectors, bands.frequency.numpy()


def run_blaze2d(cells: list[dict], settings: dict) -> tuple[np.ndarray, np.ndarray]:
    """Solve with blaze2d, on its path from Γ over X and M."""
    import blaze

    answers = [
        blaze.solve(
            lattice_type="square",
            epsilon_background=cell["outside"],
            epsilon_atoms=cell["inside"],
            radius_atom=cell["radius"],
            polarization=settings["polarization"].upper(),
            resolution=settings["resolution"],
            n_bands=settings["bands"],
        )
        for cell in cells
    ]
    return answers[0]["k_points"], np.sort([answer["frequencies"] for answer in answers], axis=-1)


def run_legume(cells: list[dict], wavevectors: np.ndarray, settings: dict) -> tuple[np.ndarray, np.ndarray]:
    """Solve with legume's plane-wave expansion, |G| ≤ 7 along each axis: 225 plane waves."""
    import legume

    frequencies = []
    for cell in cells:
        layer = legume.ShapesLayer(legume.Lattice("square"), eps_b=cell["outside"])
        layer.add_shape(legume.Circle(eps=cell["inside"], r=cell["radius"]))
        expansion = legume.PlaneWaveExp(layer, gmax=7.01)
        expansion.run(2 * np.pi * wavevectors.T, pol=settings["polarization"], numeig=settings["bands"])
        frequencies.append(expansion.freqs)
    return wavevectors, np.stack(frequencies)


def solve(name: str, cells: list[dict], wavevectors: np.ndarray, settings: dict) -> tuple[np.ndarray, np.ndarray]:
    if name == "blaze2d":
        return run_blaze2d(cells, settings)
    if name == "legume":
        return run_legume(cells, wavevectors, settings)
    return run_package(name, cells, wavevectors, settings)


def measure(name: str, cells: list[dict], wavevectors: list, settings: dict) -> dict[str, float]:
    """Time one solver in this process; error where `settings` ask for a reference."""
    torch.set_num_threads(1)
    settings = dict(settings)
    with_error = settings.pop("with_error", False)
    wavevectors = np.array(wavevectors)
    solve(name, cells[:1], wavevectors[:: len(wavevectors) // 4], settings)  # imports, plans of transforms, caches
    start = time.perf_counter()
    used, frequency = solve(name, cells, wavevectors, settings)
    seconds = time.perf_counter() - start
    who = resource.RUSAGE_CHILDREN if name == "mpb" else resource.RUSAGE_SELF
    if name == "mpb":
        mpb.worker().close()
    found = {
        "seconds_per_cell": seconds / len(cells),
        "seconds_per_wavevector": seconds / len(cells) / len(used),
        "peak_memory_gibibytes": resource.getrusage(who).ru_maxrss / 2**20,
    }
    if with_error:
        used, frequency = solve(name, cells, PATH, settings)
        fine = {**settings, "resolution": 4 * settings["resolution"], "tolerance": 1e-4}
        reference = rbme.solve_bands(torch.cat([sampled(**cell) for cell in cells]), used, **fine).frequency.numpy()
        error = np.abs(frequency / np.maximum(reference, 1e-9) - 1)[reference > 0.02]
        found |= {"mean_error": error.mean(), "largest_error": error.max()}
    return found


def in_process(name: str, cells: int, wavevectors: np.ndarray, **settings: object) -> dict[str, float]:
    """Run `measure` in a fresh process with one thread."""
    job = {
        "name": name,
        "cells": [circle(index) for index in range(cells)],
        "wavevectors": wavevectors.tolist(),
        "settings": settings,
    }
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "RAYON")}
    result = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.solvers", "--job", json.dumps(job)],
        env={**os.environ, **one_thread},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def side_by_side(cells: int) -> dict:
    """Measure every solver that can be had at the published settings."""
    installed = {"blaze2d": "blaze", "legume": "legume"}
    names = ["rbme", *(["mpb"] if mpb.is_available() else [])]
    names += [name for name, module in installed.items() if importlib.util.find_spec(module)]
    table = {}
    for polarization in ("tm", "te"):
        for name in names:
            settings = {"polarization": polarization, "resolution": 32, "bands": 10, "with_error": True}
            found = in_process(name, cells, PATH if name == "legume" else half_grid(25), **settings)
            if name in ("rbme", "mpb"):
                # Only MPB's published pipeline solves both k and -k.
                found["seconds_per_cell_whole_grid"] = found["seconds_per_cell"] * (625 / 313 if name == "mpb" else 1)
            table[f"{name} {polarization}"] = found
            print(name, polarization, {key: float(f"{value:.3g}") for key, value in found.items()}, flush=True)
        if f"mpb {polarization}" in table:
            ratio = table[f"mpb {polarization}"]["seconds_per_cell_whole_grid"]
            ratio /= table[f"rbme {polarization}"]["seconds_per_cell_whole_grid"]
            table[f"throughput of rbme over mpb {polarization}"] = ratio
            print(f"rbme over mpb, {polarization}: {ratio:.0f}", flush=True)
    return table


def growth(cells: int) -> dict:
    """Measure seconds per cell while one setting varies and the others are as published."""
    table = {}
    for setting, values in GROWTH.items():
        for value in values:
            chosen = {**PUBLISHED, setting: value}
            wavevectors = half_grid(chosen.pop("k_points"))
            for name in ("rbme", "mpb") if mpb.is_available() else ("rbme",):
                used = wavevectors[:: max(1, len(wavevectors) // MPB_WAVEVECTORS)] if name == "mpb" else wavevectors
                found = in_process(name, cells if name == "rbme" else 1, used, polarization="tm", **chosen)
                seconds = found["seconds_per_wavevector"] * len(wavevectors)
                table.setdefault(name, {}).setdefault(setting, {})[value] = seconds
                print(name, setting, value, f"{seconds:.3g} s", flush=True)
    return table


def plot(table: dict, path: Path) -> None:
    """Draw growth, log over log, one panel for each setting."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(GROWTH), figsize=(11, 3.6), sharey=True, layout="constrained")
    for panel, setting in zip(panels, GROWTH):
        for name, found in table.items():
            values = [value**2 if setting == "k_points" else value for value in found[setting]]
            panel.loglog(values, list(found[setting].values()), "o-", label=name)
        panel.set_xlabel("wavevectors" if setting == "k_points" else setting)
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
    panels[0].set_ylabel("seconds per cell, TM, one core")
    panels[0].legend()
    figure.savefig(path, dpi=150)


def machine() -> dict[str, str | int]:
    """Describe where this ran."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    load = os.getloadavg()[0]
    return {"cpu": model, "cores": os.cpu_count() or 0, "load_before": load, "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=3)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(measure(**json.loads(arguments.job))))
        return
    result = {"machine": machine(), "cells": arguments.cells, "solvers": side_by_side(arguments.cells)}
    result["growth"] = growth(arguments.cells)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    plot(result["growth"], RESULT.with_suffix(".png"))
    print(f"wrote {RESULT} and {RESULT.with_suffix('.png')}")


if __name__ == "__main__":
    main()
