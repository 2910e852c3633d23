"""From physics to files: unit cells, band solvers, density of states, the dataset file."""

from data_gen.dos import density_of_states
from data_gen.solvers import solve

__all__ = ["density_of_states", "solve"]
