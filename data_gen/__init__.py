"""From physics to files: unit cells, band solvers, density of states, the dataset file."""

from data_gen.dataset import open_dataset
from data_gen.dos import density_of_states
from data_gen.generation import generate
from data_gen.labels import label
from data_gen.solvers import solve
from data_gen.verification import verify

__all__ = ["density_of_states", "generate", "label", "open_dataset", "solve", "verify"]
