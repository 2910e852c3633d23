"""Looking at a dataset file: what it holds and how it was made, and a contact sheet of its cells."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from data_gen.dataset import STATUS_FAILED, VARIABLES, file_to_write, open_dataset

if TYPE_CHECKING:  # drawing is seldom asked for, and matplotlib slow to import
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

PICTURES = (".png", ".pdf", ".svg")
COLOURS = {"tm": "#0072B2", "te": "#CC3311"}
COLOUR_MAP = "cividis"


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
    out = file_to_write(out, *PICTURES)
    with open_dataset(file) as dataset:
        shown = dataset.isel(sample=slice(0, cells)).load()
    _sheet(shown, Path(file).name).savefig(out, dpi=110)
    print(f"wrote {out}")


def _sheet(shown: xr.Dataset, name: str) -> "Figure":
    """Return a figure of cells, each beside its density of states if it has one."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    labelled = "dos" in shown
    columns, width, height = (4, 2, 2.3) if labelled else (6, 1, 2.1)
    rows = -(-shown.sizes["sample"] // columns)
    figure = Figure(figsize=(13, 0.6 + rows * height), layout="constrained")
    grid = figure.add_gridspec(rows, columns * width, width_ratios=[1, 1.2][:width] * columns)
    words = [f"{name}: first {shown.sizes['sample']} cells of family {shown.attrs['family']}"]
    if labelled:
        words += [str(shown.attrs.get("polarization", "")).upper(), "dashed: empty lattice"]
    figure.suptitle(", ".join(filter(None, words)))
    scale = Normalize(float(shown["epsilon"].min()), float(shown["epsilon"].max()))
    for index in range(shown.sizes["sample"]):
        row, column = divmod(index, columns)
        axes = figure.add_subplot(grid[row, column * width])
        axes.set_title(f"cell {index}")
        _draw_cell(axes, shown.isel(sample=index), scale)
        if labelled:
            axes = figure.add_subplot(grid[row, column * width + 1])
            _draw_density(axes, shown.isel(sample=index))
            if row == rows - 1:
                axes.set_xlabel("scaled frequency ωn (2πc/a)", fontsize=8)
            if column == 0:
                axes.set_ylabel("D/n (a/2πc)", fontsize=8)
    figure.colorbar(
        ScalarMappable(scale, COLOUR_MAP), ax=figure.axes, label="relative permittivity ε", shrink=0.6, pad=0.01
    )
    return figure


def _draw_cell(axes: "Axes", cell: xr.Dataset, scale: "Normalize") -> None:
    """Draw the permittivity on the cell's lattice."""
    edges = [np.linspace(-0.5, 0.5, points + 1) for points in cell["epsilon"].shape]
    x, y = np.moveaxis(np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1) @ _lattice(cell), -1, 0)
    axes.pcolormesh(x, y, cell["epsilon"].values, norm=scale, cmap=COLOUR_MAP, rasterized=True)
    axes.set_aspect("equal")
    axes.axis("off")


def _draw_density(axes: "Axes", cell: xr.Dataset) -> None:
    """Draw the density of states, and that of the empty lattice."""
    frequency = cell["frequency"].values
    colour = COLOURS.get(str(cell.attrs.get("polarization", "")), "black")
    axes.plot(frequency, cell["dos"], color=colour, linewidth=1)
    area = abs(np.linalg.det(_lattice(cell)))
    axes.plot(frequency, 2 * np.pi * area * frequency, color="0.5", linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, frequency[-1]), ylim=(0, None))
    axes.tick_params(labelsize=7)


def _lattice(cell: xr.Dataset) -> np.ndarray:
    return np.reshape(cell.attrs["lattice"], (2, 2))


def _text(value: Any) -> str:
    """Return an attribute as it is printed: a number, a text, or several."""
    numbers = np.asarray(value).dtype.kind in "fiu"
    return " ".join(f"{part:g}" if numbers else str(part) for part in np.ravel(value)) if np.ndim(value) else str(value)
