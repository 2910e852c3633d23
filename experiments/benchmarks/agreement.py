"""The fast solver against MPB, on the same permittivity: random cells of each family, both polarizations.

    python -m experiments.benchmarks.agreement

For each family, labels cells with the published settings (32 × 32 pixels, 25 × 25 wavevectors, ten bands;
permittivities up to 20) and lets `data-gen verify` solve every one of them again with MPB: relative deviation in
frequency where ω > 0.02, and relative error between the two densities of states over 0.24 < ωn < 0.96. Many more cells,
at few wavevectors, are compared by `make crosscheck`. Writes experiments/results/agreement.json.
"""

import argparse
import json
import tempfile
from pathlib import Path

from data_gen.generation import generate
from data_gen.verification import verify
from experiments.processes import process_pool

RESULT = Path("experiments/results/agreement.json")
FAMILIES = ("blob", "gpm", "p1", "rods")


def agreement(family: str, polarization: str, cells: int, seed: int) -> dict[str, float]:
    """Return what `verify` finds on that many cells."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cells.h5"
        published = {"k_points": 25, "bands": 10, "smoothing": "published", "polarization": polarization}
        generate(family, out=file, samples=cells, seed=seed, workers=1, **published)
        return verify(file, samples=cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10)
    parser.add_argument("--seed", type=int, default=300)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    jobs = [(family, polarization, arguments.cells) for polarization in ("tm", "te") for family in FAMILIES]
    table: dict = {"seed": arguments.seed, "agreement": {}}
    with process_pool(arguments.processes) as pool:
        waiting = {job: pool.submit(agreement, *job, arguments.seed) for job in jobs}
        for (family, polarization, cells), found in waiting.items():
            table["agreement"][f"{family} {polarization}"] = {"cells": cells, **found.result()}
            print(family, polarization, json.dumps(found.result()), flush=True)
    RESULT.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
