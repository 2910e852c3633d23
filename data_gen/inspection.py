"""Looking at a dataset file: what it holds and how it was made, and a contact sheet of its cells."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.dataset import STATUS_FAILED, VARIABLES, open_dataset

PICTURES = (".png", ".pdf", ".svg")
COLOURS = {"tm": "#0072B2", "te": "#CC3311"}


def info(file: Path, /) -> None:
    """Print what a dataset file holds, how it was made, and the command that makes it again.

    Args:
        file: a dataset file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole dataset file.
    """
    with open_dataset(file) as dataset:
        status = dataset["status"].values
        lines = [f"{file}: {len(status)} cells, {int((status == STATUS_FAILED).sum())} failed"]
        for name, variable in dataset.variables.items():
            shape = ", ".join(f"{dimension} {size}" for dimension, size in variable.sizes.items())
            known = VARIABLES.get(str(name))
            units = variable.attrs.get("units", known.units if known else "")
            lines.append(f"  {name:22s} ({shape})  [{units}]  {variable.attrs.get('long_name', '')}")
        if "dos_error" in dataset and (status != STATUS_FAILED).any():
            error = dataset["dos_error"].values[status != STATUS_FAILED]
            lines.append(f"dos_error: mean {error.mean():.2e}, largest {error.max():.2e}")
        attributes = dict(dataset.attrs)
        if "command" in attributes:
            attributes["command"] += f" --out {shlex.quote(str(file))}"
        lines += [f"{name}: {_text(value)}" for name, value in attributes.items()]
    print("\n".join(lines))


def preview(file: Path, /, *, out: Path, cells: int = 12) -> None:
    """Draw cells of a dataset file and their densities of states on one sheet.

    Args:
        file: a dataset file.
        out: picture to write, PNG, PDF or SVG by its ending.
        cells: how many cells, the first of the file.

    Raises:
        FileNotFoundError: if there is no such file, or no folder to write to.
        ValueError: if it is not a whole dataset file, `cells` is less than 1, or `out` names no kind of picture.
    """
    if cells < 1:
        raise ValueError(f"`cells` must be at least 1, got {cells}")
    if not Path(out).parent.is_dir():
        raise FileNotFoundError(f"there is no folder {Path(out).parent} to write {Path(out).name} to.")
    if Path(out).suffix.lower() not in PICTURES:
        raise ValueError(f"`out` must end in one of {', '.join(PICTURES)}, got {out}")
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    with open_dataset(file) as dataset:
        shown = dataset.isel(sample=slice(0, cells)).load()
    labelled = "dos" in shown
    lattice = np.reshape(shown.attrs["lattice"], (2, 2))
    edges = [np.linspace(-0.5, 0.5, points + 1) for points in shown["epsilon"].shape[1:]]
    corners = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1) @ lattice
    slope = 2 * np.pi * abs(np.linalg.det(lattice))  # of the empty lattice
    polarization = str(shown.attrs.get("polarization", ""))
    columns = 4 if labelled else 6
    rows = -(-shown.sizes["sample"] // columns)
    figure = Figure(figsize=(13, 0.6 + rows * (2.3 if labelled else 2.1)), layout="constrained")
    grid = figure.add_gridspec(
        rows, columns * (2 if labelled else 1), width_ratios=([1, 1.2] if labelled else [1]) * columns
    )
    words = [f"{Path(file).name}: first {shown.sizes['sample']} cells of family {shown.attrs['family']}"]
    if labelled:
        words += [polarization.upper(), "dashed: empty lattice"]
    figure.suptitle(", ".join(filter(None, words)))
    for index in range(shown.sizes["sample"]):
        row, column = divmod(index, columns)
        axes = figure.add_subplot(grid[row, column * (2 if labelled else 1)])
        epsilon = shown["epsilon"][index].values
        axes.pcolormesh(corners[..., 0], corners[..., 1], epsilon, vmin=1, vmax=20, cmap="cividis", rasterized=True)
        axes.set(aspect="equal", title=f"cell {index}")
        axes.axis("off")
        if labelled:
            axes = figure.add_subplot(grid[row, 2 * column + 1])
            frequency = shown["frequency"].values
            axes.plot(frequency, shown["dos"][index], color=COLOURS.get(polarization, "black"), linewidth=1)
            axes.plot(frequency, slope * frequency, color="0.5", linewidth=0.8, linestyle="--")
            axes.set(xlim=(0, frequency[-1]), ylim=(0, None))
            axes.tick_params(labelsize=7)
            if row == rows - 1:
                axes.set_xlabel("scaled frequency ωn (2πc/a)", fontsize=8)
            if column == 0:
                axes.set_ylabel("D/n (a/2πc)", fontsize=8)
    scale = ScalarMappable(Normalize(1, 20), "cividis")
    figure.colorbar(scale, ax=figure.axes, label="relative permittivity ε", shrink=0.6, pad=0.01)
    figure.savefig(out, dpi=110)
    print(f"wrote {out}")


def _text(value: Any) -> str:
    """Return an attribute as it is printed: a number, a text, or several."""
    numbers = np.asarray(value).dtype.kind in "fiu"
    return " ".join(f"{part:g}" if numbers else str(part) for part in np.ravel(value)) if np.ndim(value) else str(value)
