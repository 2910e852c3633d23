"""The report of a run: one HTML file that needs nothing else, no network and no other file."""

import base64
import csv
import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from data_gen.dataset import file_to_write, replaced_when_complete
from photonic_essl import gallery
from photonic_essl.bands import widest_dos_gaps
from photonic_essl.data import Cells, LabelledCells, load_cells
from photonic_essl.encoders import NETWORKS, Encoder, own_network, representations
from photonic_essl.metrics import relative_errors
from photonic_essl.plotting import (
    TRUE,
    draw_error_distribution,
    draw_representation,
    draw_training,
    logged_quantities,
)
from photonic_essl.prediction import untrained, warn_of_copies, warn_of_known_cells
from photonic_essl.records import read_records
from photonic_essl.regression import load_regressor
from photonic_essl.saving import load_folder

TEST_FILE = "test.h5"


def report(
    run: str | Path,
    *,
    out: str | Path,
    data: str | Path | None = None,
    cells: int = 300,
    encoder: str | None = None,
) -> None:
    """Write what a run was, and what came out, as one HTML file that opens from disk.

    It holds the data's provenance, settings, seeds, versions and cost, the training curves, and, where there are test
    cells, the distribution of errors, a gallery of cells to sort and filter, and the representation. Tables (`*.csv`)
    in the folder are shown too.

    Args:
        run: folder of a pre-training or a fine-tuning, or a folder of such folders, such as that of the demo.
        out: HTML file to write, whose name ends in .html.
        data: dataset file of cells to predict, labelled unless the run is a pre-training; `test.h5` in `run` where not
            given, if there is one.
        cells: in the gallery, at most; 3 or more. Where the file has more, they are taken from all over the ranking.
        encoder: factory of the models' encoder as `module:factory`, if it is not a preset. Its code runs, which is
            why its name in the record of a run is not enough.

    Raises:
        FileNotFoundError: if there is no run, no such file, or no folder to write to.
        ValueError: if the data do not fit the models or are unlabelled, `cells` is less than 3, the encoder of a model
            is neither a preset nor `encoder`, or `out` does not end in .html.
    """
    out = file_to_write(out, ".html")
    runs = [_Run(folder, record) for folder, record in read_records(run).items()]
    if data is None and (Path(run) / TEST_FILE).is_file():
        data = Path(run) / TEST_FILE
    models = [one for one in runs if one.record["command"] == "finetune" and one.record["finished"]]
    test = None if data is None else load_cells(data, labelled=bool(models))
    page = {
        "title": Path(run).resolve().name,
        "runs": [one.described() for one in runs],
        "datasets": [{"name": str(data), "role": "test", **_facts(test)}] if test else [],
        "errors": _errors(models, test, cells, encoder) if isinstance(test, LabelledCells) else None,
        "representation": _representation(runs, test, encoder) if test else None,
        "tables": [_table(file) for file in sorted(Path(run).glob("*.csv"))],
    }
    with replaced_when_complete(out) as partial:
        partial.write_text(_rendered(page))
    print(f"Report written to {out}.")


def _rendered(page: Mapping[str, Any]) -> str:
    environment = Environment(loader=PackageLoader("photonic_essl"), autoescape=True, undefined=StrictUndefined)
    environment.globals |= {"gallery": gallery}
    return environment.get_template("report.html").render(page)


@dataclass(frozen=True)
class _Run:
    """A run as its folder holds it."""

    folder: Path
    record: dict[str, Any]

    def described(self) -> dict[str, Any]:
        """Return what the page says of the run."""
        sittings = self.record["sittings"]
        return {
            "name": self.folder.resolve().name,
            "command": self.record["command"],
            "finished": self.record["finished"],
            "seconds": self.record["seconds"],
            "settings": {name: _text(value) for name, value in self.record["settings"].items()},
            "results": {name: _text(value) for name, value in self.record.get("results", {}).items()},
            "sittings": [{name: _text(value) for name, value in sitting.items()} for sitting in sittings],
            "dataset": self.dataset(),
            "curves": self.curves(),
        }

    def dataset(self) -> dict[str, Any] | None:
        """Return the provenance of the data trained on, as far as they are still to be found; None for other data."""
        wanted = self.record["settings"].get("data")
        named = [sitting["data"] for sitting in self.record["sittings"] if "data" in sitting]
        if not named or wanted is None:
            return None
        for file in (Path(named[-1]), self.folder / ".." / Path(named[-1]).name):
            for labelled in (False, True):
                try:
                    cells = load_cells(file, labelled)
                except (FileNotFoundError, ValueError):
                    continue
                if cells.fingerprint == wanted:
                    return {"name": named[-1], **_facts(cells)}
        return {"name": named[-1], "facts": None, "fingerprint": wanted}

    def network(self, cells: Cells, encoder: str | None) -> nn.Module | None:
        """Return the network that the user has named, None for a preset; the name in the record runs no code."""
        name = self.record["settings"]["encoder"]
        if name not in NETWORKS and name != encoder:
            raise ValueError(f"the encoder of {self.folder} is {name!r}, whose code runs only if `encoder` names it.")
        return own_network(name, cells.grid)

    def curves(self) -> list[str]:
        """Return pictures of everything that was logged."""
        try:
            names = logged_quantities(self.folder)
        except FileNotFoundError:
            return []
        return [_picture(functools.partial(self._draw_curve, name), (3.8, 2.6)) for name in names]

    def _draw_curve(self, quantity: str, ax: Axes) -> None:
        draw_training(self.folder, quantity, ax)
        by_chance = self.record.get("results", {}).get(f"{quantity}_by_chance")
        if by_chance is not None:
            ax.axhline(by_chance, color=TRUE, linestyle="--", linewidth=1, label="by chance")
            ax.set_ylim(0, 1.05)
            ax.legend(frameon=False)


def _facts(cells: Cells) -> dict[str, Any]:
    facts = {"cells": len(cells), **{name: _text(value) for name, value in cells.attributes.items()}}
    return {"facts": facts, "fingerprint": cells.fingerprint}


def _errors(models: list[_Run], test: LabelledCells, count: int, encoder: str | None) -> dict[str, Any]:
    """Return the errors of all models on the test cells, and the gallery of the first."""
    true = test.dos.numpy()
    predicted: dict[str, np.ndarray] = {}
    compared: dict[str, np.ndarray] = {}
    warn_of_copies(test)
    for model in models:
        regressor = load_regressor(model.folder, model.network(test, encoder))
        regressor.check_physics(test.attributes.get("polarization"), test.lattice)
        warn_of_known_cells(regressor, test, f"the model in {model.folder}")
        predicted[model.folder.resolve().name] = regressor.predict(test.epsilon[:, 0]).values
        compared |= untrained(regressor, test)
    shown = next(iter(predicted))
    errors = {name: relative_errors(dos, true) for name, dos in {**predicted, **compared}.items()}
    epsilon = test.epsilon[:, 0].numpy()
    transform, box = gallery.placement(test.lattice.numpy())
    return {
        "summary": [
            [name, *(f"{100 * value:.3f}" for value in (part.mean(), np.median(part), part.max()))]
            for name, part in errors.items()
        ],
        "distribution": _picture(lambda ax: draw_error_distribution(errors, ax), (6.5, 4.0)),
        "model": shown,
        "cells": len(true),
        "cards": gallery.make_cards(epsilon, predicted[shown], true, errors[shown], count, test.area),
        "transform": transform,
        "box": box,
    }


def _representation(runs: list[_Run], test: Cells, encoder: str | None) -> dict[str, Any] | None:
    """Return pictures of the representation by the pre-trained encoder, or else by that of the first model with one."""
    of_cells = [one for one in runs if one.record["command"] in ("pretrain", "finetune") and one.record["finished"]]
    finished = [one for one in of_cells if one.record["settings"]["encoder"] != "none"]
    if not finished:
        return None
    chosen = next((one for one in finished if one.record["command"] == "pretrain"), finished[0])
    network = chosen.network(test, encoder)
    if chosen.record["command"] == "pretrain":
        trained = load_folder(Encoder, chosen.folder, network)
    else:
        trained = load_regressor(chosen.folder, network).encoder
    features = representations(trained, test.epsilon.split(512))
    properties = gallery.cell_properties(test.epsilon[:, 0].numpy())
    coloured = {name: properties[name] for name in ("filling", "contrast")}
    if isinstance(test, LabelledCells):
        coloured["gap"] = 100 * widest_dos_gaps(test.dos, test.area)
    return {
        "name": chosen.folder.resolve().name,
        "pictures": [
            _picture(functools.partial(draw_representation, features, values, gallery.QUANTITIES[name]), (3.8, 3.0))
            for name, values in coloured.items()
        ],
    }


def _table(file: Path) -> dict[str, Any]:
    """Return a table of the folder: columns that vary, and the values of those that do not."""
    with file.open(newline="") as lines:
        header, *rows = [row for row in csv.reader(lines) if row] or [[]]
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"{file} is not a table: its rows are of different lengths.")
    columns = dict(zip(header, zip(*rows)))
    same = {name: values[0] for name, values in columns.items() if len(rows) > 1 and len(set(values)) == 1}
    varying = [name for name in header if name not in same]
    return {
        "name": file.name,
        "same": same,
        "header": varying,
        "rows": [[value for name, value in zip(header, row) if name in varying] for row in rows],
    }


def _picture(draw: Callable[[Axes], Any], size: tuple[float, float]) -> str:
    """Return what is drawn on an Axes as a data URI of SVG."""
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    svg = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "photonic_essl"}):
        figure.savefig(svg, format="svg", dpi=150, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode()


def _text(value: Any) -> str:
    """Return a value of a record in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items() if part is not None)
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(_text(part) for part in value)
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}"
    return "–" if value is None else str(value)
