"""E-SimCLR beside SimCLR on scikit-learn's digits, and beside the pixels themselves.

    python -m experiments.vision.digits [--seeds 3]

The same command, recipe file and numbers of steps for both. Each encoder is asked for the accuracy of its nearest
neighbours and of five linear classifiers, on the 360 digits that it has not seen; and the head that predicts quarter
turns, for which digits it can tell them, as a 6 upside down is much like a 9. Run again, it goes on where it was
stopped. Writes experiments/results/vision_digits.json.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from photonic_essl.records import environment, read_record
from photonic_essl.symmetry import quarter_turns
from photonic_essl.torch_files import read_torch_file
from photonic_essl.vision.backbones import load_encoder
from photonic_essl.vision.classification import probe
from photonic_essl.vision.datasets import load_images
from photonic_essl.vision.neighbours import knn
from photonic_essl.vision.pretraining import classification_head, pretrain

RESULT = Path("experiments/results/vision_digits.json")
RUNS = Path("runs/vision-digits")
RECIPES = ("simclr", "e-simclr")


def measured(recipe: str, seed: int) -> dict:
    """Pre-train with a recipe, or go on with it, and return what is measured of the encoder."""
    out = RUNS / recipe / f"seed-{seed}"
    pretrain("digits", out=out, recipe=recipe, seed=seed, device="cpu")
    accuracy = {"linear": probe(out, data="digits", device="cpu", progress=False), "knn": knn(str(out), device="cpu")}
    runs = [read_record(out / "probe" / f"seed-{number}" / "run.json") for number in range(5)]
    record = read_record(out / "run.json")
    return {
        "seed": seed,
        "accuracy": accuracy,
        "linear_by_seed": [run["results"]["accuracy"] for run in runs],
        "pretraining_seconds": record["seconds"],
        "data": record["settings"]["data"],
        "turns_told_by_digit": turns_told(out) if recipe.startswith("e-") else None,
    }


def turns_told(run: Path) -> list[float]:
    """Return for each digit, 0 to 9, what part of the four turns of test images the head tells rightly."""
    images, encoder = load_images("digits").test, load_encoder(run)
    prefix = "classifier."
    held = read_torch_file(run / "checkpoints" / "last.ckpt")["state_dict"]
    weights = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
    matrices = [value for value in weights.values() if value.ndim == 2]
    head = classification_head([matrices[0].shape[1], *(matrix.shape[0] for matrix in matrices)])
    head.load_state_dict(weights)
    turned, labels = quarter_turns().orbit(torch.cat(list(images.batches(8))))
    with torch.no_grad():
        right = (head(encoder(turned)).argmax(1) == labels).view(4, -1).double().mean(0)
    return [right[images.labels == digit].mean().item() for digit in range(10)]


def table(results: dict) -> str:
    """Return mean and spread over seeds of pre-training."""
    lines = [f"{'accuracy on 360 digits, %':28s}{'linear, 5 seeds':>18s}{'nearest neighbours':>21s}"]
    lines.append(f"{'pixels':28s}{'':>18s}{100 * results['pixels_knn']:21.1f}")
    for recipe in RECIPES:
        cells = []
        for measure in ("linear", "knn"):
            values = [100 * row["accuracy"][measure] for row in results[recipe]]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        lines.append(f"{recipe:28s}{cells[0]:>18s}{cells[1]:>21s}")
    told = torch.tensor([row["turns_told_by_digit"] for row in results["e-simclr"]]).mean(0)
    lines.append("quarter turns told, %, of 0 … 9: " + " ".join(f"{100 * part:.0f}" for part in told))
    return "\n".join([*lines, f"(± standard deviation over {len(results['simclr'])} seeds of pre-training)"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="of pre-training, for each recipe")
    seeds = range(parser.parse_args().seeds)
    results = {"pixels_knn": knn(data="digits", device="cpu")}
    results |= {recipe: [] for recipe in RECIPES}
    for seed in seeds:
        for recipe in RECIPES:
            results[recipe].append(measured(recipe, seed))
        RESULT.write_text(json.dumps(results | {"environment": environment()}, indent=2) + "\n")
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
