"""What the explorer's page asks for: cells with their predictions, solutions, and a file to keep them in."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_gen.dataset import VARIABLES, Variable, append_to_dataset
from photonic_essl.bands import band_gaps
from photonic_essl.explorer.solver_process import SolverProcess
from photonic_essl.metrics import relative_error
from photonic_essl.prediction import predictions
from photonic_essl.records import read_record
from photonic_essl.regression import Regressor, load_regressor

SAVED = {
    name: VARIABLES[name]
    for name in (
        "epsilon", "epsilon_mean", "status", "error_message", "dos", "dos_error", "covered_frequency", "band_frequency",
    )
} | {
    "drawn_from": Variable(("sample",), "S", "1", "family that the cell was drawn from"),
    "drawn_seed": Variable(("sample",), "i8", "1", "seed that it was drawn with"),
    "drawn_index": Variable(("sample",), "i8", "1", "index that it was drawn with"),
    "changed": Variable(("sample",), "i1", "1", "0: as it was drawn, 1: parameters chosen or pixels painted by hand"),
}  # fmt: skip
FIXED = ("frequency", "wavevector")


class Predictor:
    """Regressors, with what the run of the first says of the cells that it was trained on.

    Attributes:
        regressors: the models, by polarization.
        family: of the cells, None if unknown.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders
        models: list[Regressor] = [load_regressor(folder) for folder in folders]
        self.regressors = {model.polarization: model for model in models}
        self.first, file = models[0], Path(folders[0]) / "run.json"
        record = read_record(file) if file.is_file() else {}
        self.family = (record.get("sittings") or [{}])[-1].get("family")

    def predict(self, epsilon: np.ndarray, lattice: np.ndarray, polarization: str) -> dict[str, Any]:
        """Return the prediction for a cell `(x, y)`, and the bounds of its 90 % interval.

        Returns:
            `predicted (400,)`, `lowest` and `highest` of the same shape where the model has been calibrated; or a
            `note` that says why there is none.
        """
        regressor = self.regressors.get(polarization, self.first)
        try:
            regressor.check_physics(polarization, torch.from_numpy(np.array(lattice)))
        except ValueError as error:
            return {"note": f"No prediction: {error}"}
        found = predictions(regressor, epsilon).rename(dos="predicted")
        return {str(name): _listed(values.values) for name, values in found.items()}

    def describe(self) -> dict[str, Any]:
        """Return what the page says of the models."""
        return {
            "folders": [str(folder) for folder in self.folders],
            "family": self.family,
            "polarizations": list(self.regressors),
            "interval": self.first.calibration.done,
        }


class Session:
    """What the page asks for. Every request is the JSON text of a cell, as `data_gen.explorer_worker` describes it.

    Args:
        models: folders of regressors, one for each polarization that is to be predicted.
        out: dataset file to save to.
    """

    def __init__(self, models: Sequence[Path], out: Path):
        self.out = out
        self.predictor = Predictor(models) if models else None
        self.drawing, self.solving = SolverProcess(), SolverProcess()
        self.comparing: SolverProcess | None = None
        self.solved: tuple[str, dict[str, np.ndarray]] = ("", {})
        self.choices = json.loads(str(self.drawing.ask("catalogue")["catalogue"])) | {
            "resolution": self.predictor.first.encoder.grid[0] if self.predictor else 32,
            "model": self.predictor and self.predictor.describe(),
            "out": str(out),
        }
        self.tasks: dict[str, Callable[[str], dict[str, Any]]] = {
            "/draw": self.draw, "/solve": self.solve, "/compare": self.compare, "/save": self.save,
        }  # fmt: skip
        self._warm_up()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        for process in filter(None, (self.drawing, self.solving, self.comparing)):
            process.close()

    def draw(self, cell: str) -> dict[str, Any]:
        """Return the cell on the grid, and the prediction for it."""
        drawn = self.drawing.ask("draw", cell)
        return {
            "epsilon": np.round(drawn["epsilon"].astype(float), 3).tolist(),
            "mean": float(drawn["epsilon_mean"]),
            "lattice": drawn["lattice"].tolist(),
            "parameters": json.loads(str(drawn["parameters"])),
            **self._predict(drawn),
        }

    def solve(self, cell: str) -> dict[str, Any]:
        """Return the fast solver's label and band diagram, the gaps, and the error of the prediction."""
        solved = self.solving.ask("solve", cell)
        self.solved = (cell, solved)
        predicted = self._predict(solved).get("predicted")
        gaps = band_gaps(solved["zone_frequency"])
        return {
            **_plotted(solved),
            "n": float(np.sqrt(solved["epsilon_mean"])),
            "error": float(solved["dos_error"]),
            "position": _listed(solved["position"]),
            "corners": json.loads(str(solved["corners"])),
            "gaps": [{"lower": gap.lower, "upper": gap.upper, "ratio": gap.ratio} for gap in gaps],
            "off": None if predicted is None else relative_error(predicted, solved["dos"][: len(predicted)]),
        }

    def compare(self, cell: str) -> dict[str, Any]:
        """Return MPB's label and band diagram."""
        self.comparing = self.comparing or SolverProcess()  # few press the button; the process costs memory
        return _plotted(self.comparing.ask("compare", cell))

    def save(self, cell: str) -> dict[str, Any]:
        """Append the cell with its label and bands to the dataset file."""
        asked, solved = self.solved
        if asked != cell:
            solved = self.solving.ask("solve", cell)
        samples = append_to_dataset(
            self.out,
            {name: np.asarray(solved[name])[None] for name in SAVED},
            variables=SAVED,
            fixed={name: solved[name] for name in FIXED},
            attributes=json.loads(str(solved["attributes"])),
        )
        return {"out": str(self.out), "samples": samples}

    def _predict(self, drawn: dict[str, np.ndarray]) -> dict[str, Any]:
        if self.predictor is None:
            return {}
        return self.predictor.predict(drawn["epsilon"], drawn["lattice"], str(drawn["polarization"]))

    def _warm_up(self) -> None:
        """Make the first cell of the page as quick as the next: libraries load, plans of transforms are made."""
        cell = json.dumps({"family": "blob", "resolution": self.choices["resolution"], "polarization": "tm"})
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda task: task(cell), (self.draw, self.solve)))


def _plotted(solved: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return label and bands as the page plots them; the label as far as the computed bands cover it, if known."""
    dos = solved["dos"]
    if "covered_frequency" in solved:
        dos = dos[: int((solved["frequency"] <= solved["covered_frequency"]).sum())]
    return {"dos": _listed(dos), "bands": [_listed(band) for band in solved["band_frequency"].T]}


def _listed(values: np.ndarray) -> list[float]:
    return np.round(values.astype(float), 6).tolist()
