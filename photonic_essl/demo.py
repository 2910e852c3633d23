"""The whole main job, small: cells → labels → pre-training → fine-tuning → predictions beside the truth."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from photonic_essl.data import load_cells
from photonic_essl.finetuning import finetune
from photonic_essl.metrics import empty_lattice, relative_errors
from photonic_essl.plotting import draw_predictions
from photonic_essl.prediction import predict
from photonic_essl.pretraining import pretrain
from photonic_essl.regression import load_regressor
from photonic_essl.reporting import report

UNLABELLED, POOL, VALIDATION, TEST = 3072, 256, 128, 256
LABELS = 128
EPOCHS = 300  # of fine-tuning: 600 steps
VERIFIED = 2
SEEDS = {"unlabelled": 0, "pool": 1, "validation": 2, "test": 3}


def demo(*, out: Path = Path("runs/demo"), mpb: bool = True) -> None:
    """Do the whole main job on blob cells, small enough for two CPU cores: some five minutes.

    Labels cells with the fast solver and verifies some of them with MPB, pre-trains an encoder on unlabelled cells,
    fine-tunes it on few labels, beside the same network from new weights and beside the recipe `few-labels`, and
    compares all on held-out cells. Run again, it goes on where it was stopped.

    Args:
        out: folder for everything that it makes.
        mpb: whether to verify labels with MPB, where it can be had.

    Raises:
        RuntimeError: if the labels do not pass their verification.
        ValueError: if `out` holds a demo of other settings.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = {name: out / f"{name}.h5" for name in SEEDS}
    _make_data(files, verify=mpb)
    print("\nPre-training on unlabelled cells: invariant to mirrors and quarter turns, predicting half-cell shifts")
    pretrain(files["unlabelled"], out / "encoder", recipe="e-simclr", probe=files["validation"])
    print(f"\nTraining on {LABELS} labels: on images, with and without the pre-trained encoder; on plane waves")
    common: dict[str, Any] = {"labels": LABELS, "validation": files["validation"], "epochs": EPOCHS}
    finetune(files["pool"], out / "images", recipe="supervised", **common)
    finetune(files["pool"], out / "images-e-simclr", recipe="supervised", pretrained=out / "encoder", **common)
    finetune(files["pool"], out / "model", **common)
    _compare(out, files["test"])
    report(out, out=out / "report.html")


def _make_data(files: dict[str, Path], verify: bool) -> None:
    """Generate the four dataset files, and verify some labels with MPB before they are trusted."""
    sizes = {"unlabelled": UNLABELLED, "pool": POOL, "validation": VALIDATION, "test": TEST}
    for name, file in files.items():
        options = ["--unlabelled"] if name == "unlabelled" else []
        _data_gen("generate", "blob", "--out", file, "--samples", sizes[name], "--seed", SEEDS[name], *options)
    if not verify:
        print("The verification with MPB was skipped, as asked.")
    elif not _has_mpb():
        print("MPB cannot be had on this machine, so the verification of the labels was SKIPPED.")
    else:
        print(f"\nSolving {VERIFIED} cells of the test file again with MPB")
        _data_gen("verify", files["test"], "--samples", VERIFIED)


def _compare(out: Path, test: Path) -> None:
    """Read the test file, once, and write predictions, picture and table."""
    cells = load_cells(test, labelled=True)
    true = cells.dos
    predicted = predict(test, out / "predictions.nc", out / "model")["dos"]
    empty = np.broadcast_to(empty_lattice()[: predicted.sizes["frequency"]], predicted.shape)
    images, pretrained = (
        load_regressor(out / name).predict(cells.epsilon[:, 0]) for name in ("images", "images-e-simclr")
    )
    rows = {
        "empty lattice": relative_errors(empty, true),
        f"images, {LABELS} labels": relative_errors(images, true),
        f"images, E-SimCLR, {LABELS} labels": relative_errors(pretrained, true),
        "plane waves, no labels": relative_errors(load_regressor(out / "model").uncorrected(cells.epsilon[:, 0]), true),
        f"plane waves, {LABELS} labels": relative_errors(predicted, true),
    }
    lines = [f"{'relative error in %, test cells':34s} {'mean':>7s} {'median':>7s} {'worst':>7s}"]
    for name, errors in rows.items():
        lines.append(f"{name:34s} {100 * errors.mean():7.2f} {100 * np.median(errors):7.2f} {100 * errors.max():7.2f}")
    figure = draw_predictions(predicted, true, cells.epsilon[:, 0])
    figure.savefig(out / "dos.png", dpi=120)
    table = "\n".join([*lines, f"({len(true)} held-out cells, one seed; 0.24 < ωn < 0.96)"])
    (out / "summary.txt").write_text(table + "\n")
    print(f"\n{table}\n\nWrote {out}/: the dataset files, model/, predictions.nc, dos.png, summary.txt")


def _data_gen(*words: object) -> None:
    """Run a command of data-gen, as a user would, in a process of its own that ends with this one."""
    arguments = [str(word) for word in words]
    print(f"$ data-gen {shlex.join(arguments)}", flush=True)
    program = "from data_gen.messages import end_with_parent; end_with_parent(); from data_gen.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE) as process:
        status = process.wait()
    if status:
        raise RuntimeError(f"data-gen {arguments[0]} failed with status {status}")


def _has_mpb() -> bool:
    check = "from data_gen.solvers import mpb; raise SystemExit(not mpb.is_available())"
    return subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
