"""What a step of E-SSL pre-training costs beyond the network itself, and how that grows.

    python -m experiments.benchmarks.pretraining [--gpu-only]

On the CPU, light encoder, E-SimCLR: the share of augmentation in a step, the whole step over a bare forward and
backward pass of the same network on the same tensors, peak memory, and step time over batch size and encoder width. On
a GPU, where there is one, published encoder: cells per second over those of the same step written naively (float32,
cells transformed one by one on the host), the same with a compiled encoder, memory, and the whole published
pre-training. The naive step is timed twice: with products in float32, and with those of convolutions rounded to
TensorFloat-32, as torch does if it is not told otherwise. Each part is written as soon as it is known, to
experiments/results/pretraining.json.
"""

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

from photonic_essl.data import Cells
from photonic_essl.encoders import NETWORKS, light_network
from photonic_essl.objectives import SimCLR
from photonic_essl.pretraining import Pretraining
from photonic_essl.recipes import load_recipe
from photonic_essl.records import environment
from photonic_essl.runs import Run
from photonic_essl.symmetry import published_groups
from photonic_essl.training import fit

RESULT = Path("experiments/results/pretraining.json")
GIBIBYTE = 2**30
PUBLISHED_CELLS, PUBLISHED_EPOCHS, PUBLISHED_BATCH = 20_480, 200, 256
FIRST_EPOCH = PUBLISHED_CELLS // PUBLISHED_BATCH
"""Steps of the published pre-training that are not timed."""


def cells(count: int) -> Cells:
    """Return made-up two-material cells; what they look like does not matter here."""
    generator = torch.Generator().manual_seed(0)
    pattern = functional.interpolate(torch.rand(count, 1, 8, 8, generator=generator), (32, 32), mode="bicubic") > 0.5
    low, high = torch.rand(2, count, 1, 1, 1, generator=generator) * 19 + 1
    attributes = {"family": "blob", "lattice": (1, 0, 0, 1)}
    return Cells(torch.where(pattern, low, high).contiguous(), attributes, fingerprint="made up")


def module(encoder: str, count: int, **settings: int) -> Pretraining:
    return Pretraining(cells(count), encoder, load_recipe("e-simclr", encoder) | settings, published_groups("blob"))


class Clock(lightning.Callback):
    """Notes when each step ended; a GPU is waited for only at the steps asked for."""

    def __init__(self, first: int):
        self.first, self.ended = first, []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if torch.cuda.is_available() and (len(self.ended) + 1 == self.first or trainer.is_last_batch):
            torch.cuda.synchronize()
        self.ended.append(time.perf_counter())

    def seconds(self) -> float:
        """Return the mean time of a step after the first ones."""
        return (self.ended[-1] - self.ended[self.first - 1]) / (len(self.ended) - self.first)


def step_seconds(trained: Pretraining, device: str, *callbacks: lightning.Callback, first: int = 1) -> float:
    """Return the time of a step of the real training: Lightning, logs, optimizer and all."""
    clock = Clock(first)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder, "benchmark", {})
        with run.sitting():
            fit(trained, run, callbacks=[*callbacks, clock], device=device, progress=False)
    return clock.seconds()


class Beside(lightning.Callback):
    """After each real step, times a bare forward and backward, and the augmentation, of the same size.

    Taking turns, all three see the machine equally busy with other things.
    """

    def __init__(self, trained: Pretraining, batch_size: int):
        self.trained, self.batch = trained, trained.cells[:batch_size]
        self.generator = torch.Generator().manual_seed(0)
        self.views, self.copies = self.augmented()
        self.seconds: dict[str, list[float]] = {"step": [], "bare": [], "augmentation": []}
        self.resumed: float | None = None

    def augmented(self) -> tuple[Tensor, Tensor]:
        views = torch.cat([self.trained.views.sample(self.batch, self.generator) for _ in range(2)])
        return views, self.trained.objective.prediction.group.orbit(self.batch)[0]

    def bare(self) -> None:
        self.trained.zero_grad()
        projections = self.trained.projector(self.trained.encoder(self.views))
        answers = self.trained.classifier(self.trained.encoder(self.copies))
        (projections.square().sum() + answers.square().sum()).backward()

    def on_train_batch_end(self, *_: object) -> None:
        now = time.perf_counter()
        if self.resumed:
            self.seconds["step"].append(now - self.resumed)
        for name, function in (("bare", self.bare), ("augmentation", self.augmented)):
            start = time.perf_counter()
            function()
            self.seconds[name].append(time.perf_counter() - start)
        self.resumed = time.perf_counter()


def cpu_step(batch_size: int = 256, steps: int = 12) -> dict[str, float]:
    """Return the costs of a step of the light encoder."""
    trained = module("light", batch_size * steps, batch_size=batch_size, epochs=1)
    beside = Beside(trained, batch_size)
    step_seconds(trained, "cpu", beside)
    step, bare, augmentation = (statistics.median(times[1:]) for times in beside.seconds.values())
    return {
        "step_seconds": step,
        "bare_seconds": bare,
        "step_over_bare": step / bare,
        "augmentation_seconds": augmentation,
        "augmentation_share": augmentation / step,
        "cells_per_second": batch_size / step,
        "peak_memory_gibibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIBIBYTE,
    }


def cpu_growth() -> dict[str, dict[str, float]]:
    """Return seconds of a step over batch size and over the width of the light encoder."""
    batches = {}
    for size in (32, 64, 128, 256, 512):
        batches[str(size)] = step_seconds(module("light", 4 * size, batch_size=size, epochs=1), "cpu")
    widths = {}
    try:
        for width in (8, 16, 32, 64):
            NETWORKS["light"] = lambda channels, grid, width=width: light_network(channels, grid, width)
            widths[str(width)] = step_seconds(module("light", 4 * 64, batch_size=64, epochs=1), "cpu")
    finally:
        NETWORKS["light"] = light_network
    return {"over_batch_size": batches, "over_width_at_batch_64": widths}


def naive_transformed(cell: Tensor, generator: torch.Generator) -> Tensor:
    """Transform one cell on the host, one operation after the other."""
    turns, flip_x, flip_y = torch.randint(4, (3,), generator=generator).tolist()
    cell = torch.rot90(cell, turns, (1, 2))
    cell = cell.flip(1) if flip_x % 2 else cell
    return cell.flip(2) if flip_y % 2 else cell


def naive_encoder() -> nn.Sequential:
    """Return the published encoder, layer by layer as the paper lists them."""
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((1, 64, 2), (64, 256, 4), (256, 256, 4)):
        layers += [nn.Conv2d(inputs, outputs, 7, padding=3), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(pool)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024))


def naive_seconds(batch_size: int, steps: int, rounded: bool) -> float:
    """Return the time of the same step in float32, with cells transformed one by one on the host."""
    torch.backends.cudnn.allow_tf32 = rounded
    trained = module("paper", batch_size, batch_size=batch_size, epochs=1)
    networks = nn.ModuleList([naive_encoder(), trained.projector, trained.classifier]).cuda()
    encoder, projector, classifier = networks
    held, optimizer = cells(batch_size).epsilon, torch.optim.SGD(networks.parameters(), 1e-3, 0.9)
    generator, simclr = torch.Generator().manual_seed(0), SimCLR(0.1)
    labels = torch.arange(4).repeat_interleave(batch_size)

    def represented(batch: Tensor) -> Tensor:
        return encoder((batch.cuda() - 1) / 19)

    def step() -> None:
        views = [torch.stack([naive_transformed(cell, generator) for cell in held]) for _ in range(2)]
        copies = torch.cat([torch.roll(held, (i, j), (2, 3)) for i in (0, 16) for j in (0, 16)])
        projections = [projector(represented(view)) for view in views]
        answers = classifier(represented(copies))
        loss = simclr(projections) + 5 * functional.cross_entropy(answers, labels.cuda())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def gpu_step(compiled: bool = False) -> dict[str, float]:
    """Return the costs of a step of the published pre-training on the GPU at hand, and of the naive one."""
    naive = {name: naive_seconds(PUBLISHED_BATCH, 10, name == "tensorfloat") for name in ("tensorfloat", "float32")}
    torch.backends.cudnn.allow_tf32 = True
    trained = module("paper", PUBLISHED_CELLS, epochs=3)
    if compiled:
        trained.compile_encoder()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    # The first epoch ends with a checkpoint, which a longer run writes every ten seconds.
    step = step_seconds(trained, "gpu", first=FIRST_EPOCH + 1)
    return {
        "naive_step_seconds": naive["float32"],
        "naive_step_seconds_tensorfloat": naive["tensorfloat"],
        "step_seconds": step,
        "cells_per_second": PUBLISHED_BATCH / step,
        "speed_over_naive": naive["float32"] / step,
        "speed_over_naive_tensorfloat": naive["tensorfloat"] / step,
        "peak_memory_gibibytes": torch.cuda.max_memory_allocated() / GIBIBYTE,
    }


def gpu_run() -> dict[str, float]:
    """Return what the whole published pre-training takes on the GPU at hand, from its start to its end."""
    start = time.perf_counter()
    step = step_seconds(module("paper", PUBLISHED_CELLS, epochs=PUBLISHED_EPOCHS), "gpu", first=FIRST_EPOCH + 1)
    return {"step_seconds": step, "published_pretraining_seconds": time.perf_counter() - start}


def table(results: dict) -> str:
    """Return the table of the measures that have targets."""
    rows = [("measure", "found", "must", "aim")]
    if "cpu" in results:
        cpu = results["cpu"]
        rows += [
            ("augmentation, share of a light step", f"{100 * cpu['augmentation_share']:.1f} %", "≤ 5 %", "≤ 2 %"),
            ("whole step ÷ bare forward + backward", f"{cpu['step_over_bare']:.2f}", "≤ 1.15", "≤ 1.05"),
            ("peak memory, light step", f"{cpu['peak_memory_gibibytes']:.2f} GiB", "≤ 3 GiB", "≤ 1.5 GiB"),
        ]
    if "gpu_step" in results:
        step = results["gpu_step"]
        rows += [
            ("GPU: cells per second ÷ naive step", f"{step['speed_over_naive']:.1f}", "≥ 8", "≥ 20"),
            ("GPU: the same, TensorFloat-32", f"{step['speed_over_naive_tensorfloat']:.1f}", "", ""),
            ("GPU: peak memory", f"{step['peak_memory_gibibytes']:.2f} GiB", "≤ 8 GiB", "≤ 4 GiB"),
        ]
    if "gpu_compiled" in results:
        speed = results["gpu_compiled"]["speed_over_naive"]
        rows.append(("GPU: cells per second ÷ naive step, compiled", f"{speed:.1f}", "", ""))
    if "gpu_run" in results:
        seconds = results["gpu_run"]["published_pretraining_seconds"]
        rows.append(("GPU: published pre-training", f"{seconds:.0f} s", "≤ 360 s", "≤ 120 s"))
    return "\n".join(f"{row[0]:46s}{row[1]:>12s}{row[2]:>12s}{row[3]:>12s}" for row in rows)


def in_a_process_of_its_own(part: str) -> dict:
    """Return what a part measures in a new process, whose peak memory is its own."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.pretraining", "--part", part],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


BY_DEVICE = {
    "cpu": {"cpu": cpu_step, "growth": cpu_growth},
    "gpu": {"gpu_step": gpu_step, "gpu_compiled": functools.partial(gpu_step, compiled=True), "gpu_run": gpu_run},
}
PARTS = BY_DEVICE["cpu"] | BY_DEVICE["gpu"]
"""What measures each part, by its name in the file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu-only", action="store_true", help="leave out what is measured on the CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part]()))
        return
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    devices = ([] if arguments.gpu_only else ["cpu"]) + (["gpu"] if torch.cuda.is_available() else [])
    here, failed = environment(), []  # before the file changes, as the commit is no longer what runs then
    for device in devices:
        for part in BY_DEVICE[device]:
            try:
                results |= {part: in_a_process_of_its_own(part), f"{device}_environment": here}
            except subprocess.CalledProcessError:
                failed.append(part)
            RESULT.write_text(json.dumps(results, indent=2) + "\n")  # at once: the time on a GPU may run out
    if "gpu" not in devices:
        print("no CUDA device here: what needs one is left as it was")
    print(table(results))
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed, and is left as it was")


if __name__ == "__main__":
    main()
