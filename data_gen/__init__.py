"""From physics to files: unit cells, band solvers, density of states, the dataset file."""

from data_gen.dataset import open_dataset
from data_gen.dos import density_of_states
from data_gen.generation import generate
from data_gen.inspection import info, preview
from data_gen.labels import label
from data_gen.legacy import export_legacy, import_legacy
from data_gen.solvers import solve
from data_gen.verification import verify

__all__ = [
    "density_of_states",
    "export_legacy",
    "generate",
    "import_legacy",
    "info",
    "label",
    "open_dataset",
    "preview",
    "solve",
    "verify",
]
