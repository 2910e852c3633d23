"""Families of two-dimensional unit cells: a name, its parameters, and the permittivity of cell i of seed s.

A cell is drawn from (family, seed, index) alone, so that it is the same on any machine and with any number of workers.
Its permittivity is sampled finely, at the centres (i + ½)/N of a grid that covers one period without repeating its
edge; a solver's grid holds means over blocks of that sampling.
"""

import functools
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from data_gen.plane_groups import symmetrise

EPSILON_RANGE = (1.0, 20.0)
FINE_SAMPLES_PER_PIXEL = 8


@dataclass(frozen=True)
class Parameter:
    """What one parameter of a family is: its meaning, units, and the names of its dimensions beside `sample`."""

    long_name: str
    units: str = "1"
    dimensions: tuple[str, ...] = ()


MATERIALS = {
    "epsilon_inside": Parameter("relative permittivity inside"),
    "epsilon_outside": Parameter("relative permittivity outside"),
    "filling": Parameter("fraction of the cell that is inside"),
}


@dataclass(frozen=True)
class UnitCell:
    """One cell: `epsilon (x, y)` float64 on the fine grid, and the value of each parameter of its family."""

    epsilon: np.ndarray
    parameters: dict[str, np.ndarray]


class UnitCellFamily(ABC):
    """A family of two-material cells, each drawn from its seed and index.

    Attributes:
        name: what users call it.
        lattice: the lattice of its cells, a name of `data_gen.lattices.LATTICES`.
        parameters: meaning of each parameter, by name.
    """

    name: str
    lattice: str = "square"
    parameters: dict[str, Parameter]

    @abstractmethod
    def shape(self, generator: np.random.Generator, samples: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Draw a shape: which points of the `(samples, samples)` grid are inside, bool, and the shape's parameters."""

    def draw(self, seed: int, index: int, resolution: int = 32) -> UnitCell:
        """Return cell `index` of `seed`, sampled `FINE_SAMPLES_PER_PIXEL` times finer than the solver's grid.

        Args:
            seed: at least 0.
            index: at least 0.
            resolution: points of the solver's grid along each lattice vector.

        Returns:
            The cell, its `epsilon` with shape `(8 · resolution, 8 · resolution)`.
        """
        child = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(self.name.encode()), index))
        generator = np.random.default_rng(child)
        inside_value, outside_value = generator.uniform(*EPSILON_RANGE, size=2)
        inside, parameters = self.shape(generator, FINE_SAMPLES_PER_PIXEL * resolution)
        materials = {
            "epsilon_inside": inside_value,
            "epsilon_outside": outside_value,
            "filling": inside.mean(),
        }
        return UnitCell(
            np.where(inside, inside_value, outside_value),
            {name: np.asarray(value, dtype=np.float64) for name, value in {**parameters, **materials}.items()},
        )


class Rods(UnitCellFamily):
    """Circular rods or holes at the centre of a square cell: the textbook case. Radius uniform in 0.1 … 0.45 a."""

    name = "rods"
    parameters = {"radius": Parameter("radius of the rod", units="a"), **MATERIALS}

    def shape(self, generator, samples):
        radius = generator.uniform(0.1, 0.45)
        return _polar_grid(samples)[0] < radius, {"radius": radius}


class Blob(UnitCellFamily):
    """One closed inclusion of irregular outline, centred in a square cell.

    The outline is r(θ) = R ρ(θ) / max ρ with ρ = exp Σ_{m=2…6} (a_m cos mθ + b_m sin mθ) / m, a_m and b_m normal with
    standard deviation 0.35, and R, its largest radius, uniform in 0.15 … 0.48 a: it never touches its neighbours.
    """

    name = "blob"
    harmonics = np.arange(2, 7)
    parameters = {
        "largest_radius": Parameter("largest radius of the outline", units="a"),
        "outline_cosine": Parameter("outline coefficients a_m, m = 2 … 6", dimensions=("harmonic",)),
        "outline_sine": Parameter("outline coefficients b_m, m = 2 … 6", dimensions=("harmonic",)),
        **MATERIALS,
    }

    def shape(self, generator, samples):
        largest_radius = generator.uniform(0.15, 0.48)
        cosine, sine = generator.normal(scale=0.35, size=(2, len(self.harmonics)))
        weights = np.concatenate([cosine / self.harmonics, sine / self.harmonics])
        largest = (_harmonics(np.linspace(0, 2 * np.pi, 2048, endpoint=False), self.harmonics) @ weights).max()
        radius, angle_harmonics = _polar_grid(samples)[0], _grid_harmonics(samples, tuple(self.harmonics))
        outline = largest_radius * np.exp(angle_harmonics @ weights - largest)
        parameters = {"largest_radius": largest_radius, "outline_cosine": cosine, "outline_sine": sine}
        return radius < outline, parameters


class LevelSet(UnitCellFamily):
    """Level set of a Fourier sum with |n| ≤ cutoff along each axis, symmetrised to a plane group.

    Coefficients are r·exp(iφ), r uniform in 0 … 1 and φ in 0 … 2π; inside is where the real part of the sum lies above
    the level that leaves a filling fraction drawn uniformly from 0.01 … 0.99 (as in SIB-CL, Nat. Commun. 13 (2022)
    4223).
    """

    def __init__(self, name: str, plane_group: str, cutoff: int = 1):
        self.name, self.plane_group, self.cutoff = name, plane_group, cutoff
        self.parameters = {
            "coefficient_real": Parameter(
                "real part of the Fourier coefficients before symmetrising", dimensions=("n1", "n2")
            ),
            "coefficient_imaginary": Parameter("imaginary part of the same", dimensions=("n1", "n2")),
            "level": Parameter("level of the Fourier sum at the boundary"),
            **MATERIALS,
        }

    def shape(self, generator, samples):
        size = 2 * self.cutoff + 1
        magnitude = generator.uniform(size=(size, size))
        coefficients = magnitude * np.exp(1j * generator.uniform(0, 2 * np.pi, size=(size, size)))
        filling = generator.uniform(0.01, 0.99)
        symmetric = symmetrise(coefficients, self.plane_group)
        waves = _waves(samples, 2 * self.cutoff)
        height = (waves @ symmetric @ waves.T).real
        level = np.quantile(height, 1 - filling)
        parameters = {
            "coefficient_real": coefficients.real,
            "coefficient_imaginary": coefficients.imag,
            "level": level,
        }
        return height > level, parameters


FAMILIES: dict[str, UnitCellFamily] = {
    family.name: family for family in (Blob(), LevelSet("gpm", "pm"), LevelSet("p1", "p1"), Rods())
}


def unit_cell_family(name: str) -> UnitCellFamily:
    """Return the family of this name; raises `ValueError`, naming those there are, if there is none."""
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}; the families are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _axis(samples: int) -> np.ndarray:
    return (np.arange(samples) + 0.5) / samples - 0.5


@functools.lru_cache(maxsize=4)
def _polar_grid(samples: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(_axis(samples), _axis(samples), indexing="ij")
    return np.hypot(x, y), np.arctan2(y, x)


def _harmonics(angle: np.ndarray, orders: np.ndarray) -> np.ndarray:
    phase = angle[..., None] * orders
    return np.concatenate([np.cos(phase), np.sin(phase)], axis=-1)


@functools.lru_cache(maxsize=4)
def _grid_harmonics(samples: int, orders: tuple[int, ...]) -> np.ndarray:
    return _harmonics(_polar_grid(samples)[1], np.array(orders))


@functools.lru_cache(maxsize=4)
def _waves(samples: int, cutoff: int) -> np.ndarray:
    return np.exp(2j * np.pi * np.outer(_axis(samples), np.arange(-cutoff, cutoff + 1)))
