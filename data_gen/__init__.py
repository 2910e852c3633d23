"""From physics to files: unit cells, band solvers, density of states, the dataset file."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_gen.dataset import open_dataset
    from data_gen.dos import density_of_states
    from data_gen.generation import generate
    from data_gen.inspection import info, preview
    from data_gen.labels import label
    from data_gen.legacy import export_legacy, import_legacy
    from data_gen.own_cells import import_cells
    from data_gen.solvers import solve
    from data_gen.verification import verify

_HOMES = {
    "density_of_states": "dos",
    "export_legacy": "legacy",
    "generate": "generation",
    "import_cells": "own_cells",
    "import_legacy": "legacy",
    "info": "inspection",
    "label": "labels",
    "open_dataset": "dataset",
    "preview": "inspection",
    "solve": "solvers",
    "verify": "verification",
}
_MODULES = ("dataset", "dos", "lattices", "plane_groups", "solvers", "unit_cells")

__all__ = [
    "density_of_states",
    "export_legacy",
    "generate",
    "import_cells",
    "import_legacy",
    "info",
    "label",
    "open_dataset",
    "preview",
    "solve",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: torch and xarray take seconds to import, and `--help` needs neither.
    if name in _HOMES:
        return getattr(importlib.import_module(f"data_gen.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"data_gen.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_MODULES])
