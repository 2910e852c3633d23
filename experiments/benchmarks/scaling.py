"""What a cell costs in `data-gen generate` on 1, 2 and 8 workers, and what that says about many cores: a projection.

    python -m experiments.benchmarks.scaling

Measures, on this machine: seconds to label a cell in one process; the same through dask with one, two and
(oversubscribed) eight workers; the parent's own seconds a cell (scheduling, shards, the file); bytes a cell; memory of
the parent; how long the file of 100,000 cells takes to open. Fits cells per second = 1 / max(label / cores, parent) and
projects it to 10, 100 and 1,000 cores. Writes experiments/results/scaling.json.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

from data_gen.dataset import open_dataset
from data_gen.generation import Plan, compute_chunk
from data_gen.labels import LabelSettings

RESULT = Path("experiments/results/scaling.json")


def label_seconds(samples: int) -> float:
    """Return seconds a cell of drawing and labelling alone, one process, one thread."""
    torch.set_num_threads(1)
    plan = Plan("blob", samples, 0, 32, False, LabelSettings())
    compute_chunk(plan, 0, 8)
    start = time.perf_counter()
    compute_chunk(plan, 0, samples)
    return (time.perf_counter() - start) / samples


def generate(folder: Path, samples: int, workers: int, *options: str) -> dict[str, float]:
    """Run the command and return its wall seconds, the parent's own CPU seconds and its peak memory in MiB."""
    out = folder / f"{workers}-{samples}-{len(options)}.h5"
    words = ["generate", "blob", "--out", str(out), "--samples", str(samples), "--workers", str(workers), *options]
    start = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, "-m", "data_gen.cli", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    seen = {"cpu": 0.0, "memory": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            try:
                times = process.cpu_times()
                seen["cpu"] = times.user + times.system
                seen["memory"] = max(seen["memory"], process.memory_info().rss / 2**20)
            except psutil.Error:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    done.set()
    watcher.join()
    if status:
        raise SystemExit(f"data-gen {' '.join(words)} failed with status {status}")
    wall = time.perf_counter() - start
    return {"wall": wall, "parent_cpu": seen["cpu"], "parent_memory": seen["memory"], "bytes": os.path.getsize(out)}


def opening(file: Path) -> dict[str, float]:
    """Return how long `open_dataset` takes and by how many MiB it grows this process."""
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    with open_dataset(file):
        return {
            "opening_seconds": time.perf_counter() - start,
            "opening_memory": (psutil.Process().memory_info().rss - before) / 2**20,
        }


def large_files(folder: Path, unlabelled: int, many: int, labelled: int) -> dict[str, dict[str, float]]:
    """Return what three large files take."""
    some = generate(folder, unlabelled, 2, "--unlabelled")
    more = generate(folder, many, 2, "--unlabelled")
    # Labels on a coarse grid are quick, and fill the file as any others do.
    quick = generate(folder, labelled, 2, "--k-points", "9", "--bands", "10")
    return {
        "unlabelled": {"cells": unlabelled, **some},
        "many": {"cells": many, **more, **opening(folder / f"2-{many}-1.h5")},
        "labelled": {"cells": labelled, "bytes_per_cell": quick["bytes"] / labelled},
    }


def marginal(small: dict[str, float], large: dict[str, float], cells: int, key: str) -> float:
    """Return the cost of one more cell: start-up, the same in both runs, drops out."""
    return (large[key] - small[key]) / cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--unlabelled", type=int, default=20000)
    parser.add_argument("--many", type=int, default=100000, help="cells of the file that is opened")
    parser.add_argument("--keep-large", action="store_true", help="keep what an earlier run found for the large files")
    parser.add_argument("--labelled", type=int, default=10000, help="cells of the file that is weighed")
    arguments = parser.parse_args()
    few, many = arguments.samples // 4, arguments.samples
    result: dict = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "label_seconds": label_seconds(128),
        "workers": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for workers in (1, 2, 8):
            small, large = generate(folder, few, workers), generate(folder, many, workers)
            result["workers"][workers] = {
                "seconds_per_cell": marginal(small, large, many - few, "wall"),
                "parent_cpu_seconds_per_cell": marginal(small, large, many - few, "parent_cpu"),
                "bytes_per_cell": large["bytes"] / many,
            }
        if arguments.keep_large:
            earlier = json.loads(RESULT.read_text())
            result |= {name: earlier[name] for name in ("unlabelled", "many", "labelled")}
        else:
            result |= large_files(folder, arguments.unlabelled, arguments.many, arguments.labelled)
    one, two = (result["workers"][n]["seconds_per_cell"] for n in (1, 2))
    parent = result["workers"][2]["parent_cpu_seconds_per_cell"]
    result["two_workers_over_one"] = one / two
    result["overhead_of_dask_and_storage"] = two * 2 / result["label_seconds"] - 1
    result["projection"] = {
        cores: {
            "cells_per_hour": 3600 / max(result["label_seconds"] / cores, parent),
            "bottleneck": "labels" if result["label_seconds"] / cores > parent else "the parent process",
        }
        for cores in (10, 100, 1000)
    }
    result["peak_memory_of_this_process_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
