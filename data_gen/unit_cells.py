"""Families of two-dimensional unit cells: a name, its parameters, and the permittivity of cell i of seed s.

A cell is drawn from (family, seed, index) alone, so that it is the same on any machine and with any number of workers.
Its permittivity is sampled finely, at the centres (i + ½)/N of a grid that covers one period without repeating its
edge; a solver's grid holds means over blocks of that sampling.
"""

import functools
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_gen.plane_groups import PLANE_GROUPS, lattice_of, symmetrise

EPSILON_RANGE = (1.0, 20.0)
FINE_SAMPLES_PER_PIXEL = 9  # odd, so that a pixel has a sample at its centre


@dataclass(frozen=True)
class Parameter:
    """What one parameter of a family is.

    Attributes:
        long_name: its meaning.
        units: of its values.
        dimensions: names of its dimensions beside `sample`.
        range: what it is drawn from, uniformly, and may be chosen from; None if it is neither.
    """

    long_name: str
    units: str = "1"
    dimensions: tuple[str, ...] = ()
    range: tuple[float, float] | None = None


MATERIALS = {
    "epsilon_inside": Parameter("relative permittivity inside", range=EPSILON_RANGE),
    "epsilon_outside": Parameter("relative permittivity outside", range=EPSILON_RANGE),
    "filling": Parameter("fraction of the cell that is inside"),
}


@dataclass(frozen=True)
class UnitCell:
    """One cell: `epsilon (x, y)` float64 on the fine grid, and the value of each parameter of its family."""

    epsilon: np.ndarray
    parameters: dict[str, np.ndarray]


class CellSource(ABC):
    """Where the cells of a dataset come from: a family that they are drawn from, or a file of somebody's own.

    Attributes:
        lattice: the lattice of its cells, as `data_gen.lattices.basis_vectors` takes it.
        plane_group: the symmetry that every cell has, a name of `data_gen.plane_groups.PLANE_GROUPS`.
        parameters: meaning of each parameter, by name.
    """

    lattice: str | tuple[float, ...] = "square"
    plane_group: str = "p1"
    parameters: Mapping[str, Parameter]

    @abstractmethod
    def draw(self, seed: int, index: int, resolution: int) -> UnitCell:
        """Return cell `index` of `seed`, sampled more finely than the solver's grid by a whole factor."""

    @abstractmethod
    def fine_samples_per_pixel(self, resolution: int) -> int:
        """Return by which factor, where the solver's grid has so many points along the first lattice vector."""


class UnitCellFamily(CellSource):
    """A family of two-material cells, each drawn from its seed and index.

    Attributes:
        name: what users call it.
        lattice: a name of `data_gen.lattices.LATTICES`.
    """

    name: str
    lattice: str = "square"

    @abstractmethod
    def draw_shape(self, generator: np.random.Generator) -> dict[str, np.ndarray | float]:
        """Draw the parameters of a shape."""

    @abstractmethod
    def shape(self, drawn: Mapping[str, np.ndarray | float], samples: int) -> tuple[np.ndarray, dict[str, float]]:
        """Return which points of the `(samples, samples)` grid are inside, bool, and what follows from `drawn`."""

    def draw(self, seed: int, index: int, resolution: int = 32, chosen: Mapping[str, float] | None = None) -> UnitCell:
        """Return cell `index` of `seed`, sampled `FINE_SAMPLES_PER_PIXEL` times finer than the solver's grid.

        Args:
            seed: at least 0.
            index: at least 0.
            resolution: points of the solver's grid along each lattice vector.
            chosen: values of parameters that are not left to the draw, within their ranges.

        Returns:
            The cell, its `epsilon` with shape `(9 · resolution, 9 · resolution)`.

        Raises:
            ValueError: if a chosen parameter has no range in this family, or its value lies outside.
        """
        child = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(self.name.encode()), index))
        generator = np.random.default_rng(child)
        drawn = dict(zip(("epsilon_inside", "epsilon_outside"), generator.uniform(*EPSILON_RANGE, size=2)))
        drawn |= self.draw_shape(generator)
        drawn |= self._checked(chosen or {})
        inside, derived = self.shape(drawn, FINE_SAMPLES_PER_PIXEL * resolution)
        parameters = drawn | derived | {"filling": inside.mean()}
        return UnitCell(
            np.where(inside, drawn["epsilon_inside"], drawn["epsilon_outside"]),
            {name: np.asarray(parameters[name], dtype=np.float64) for name in self.parameters},
        )

    def fine_samples_per_pixel(self, resolution: int) -> int:
        """Return the same factor at any resolution."""
        return FINE_SAMPLES_PER_PIXEL

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The range of each parameter that may be chosen."""
        return {name: parameter.range for name, parameter in self.parameters.items() if parameter.range}

    def _checked(self, chosen: Mapping[str, float]) -> dict[str, float]:
        for name, value in chosen.items():
            if name not in self.ranges:
                raise ValueError(f"of family {self.name} one chooses {', '.join(self.ranges)}, got {name!r}")
            low, high = self.ranges[name]
            if not low <= value <= high:
                raise ValueError(f"`{name}` must be from {low:g} to {high:g}, got {value}")
        return {name: float(value) for name, value in chosen.items()}


class Rods(UnitCellFamily):
    """Circular rods or holes at the centre of a square cell: the textbook case. Radius uniform in 0.1 … 0.45 a."""

    name = "rods"
    plane_group = "p4mm"
    parameters = {"radius": Parameter("radius of the rod", units="a", range=(0.1, 0.45)), **MATERIALS}

    def draw_shape(self, generator: np.random.Generator) -> dict[str, np.ndarray | float]:
        return {"radius": generator.uniform(*self.ranges["radius"])}

    def shape(self, drawn: Mapping[str, np.ndarray | float], samples: int) -> tuple[np.ndarray, dict[str, float]]:
        return _polar_grid(samples)[0] < drawn["radius"], {}


class Blob(UnitCellFamily):
    """One closed inclusion of irregular outline, centred in a square cell.

    The outline is r(θ) = R ρ(θ) / max ρ with ρ = exp Σ_{m=2…6} (a_m cos mθ + b_m sin mθ) / m, a_m and b_m normal with
    standard deviation 0.35, and R, its largest radius, uniform in 0.15 … 0.48 a: it never touches its neighbours.
    """

    name = "blob"
    harmonics = np.arange(2, 7)
    parameters = {
        "largest_radius": Parameter("largest radius of the outline", units="a", range=(0.15, 0.48)),
        "outline_cosine": Parameter("outline coefficients a_m, m = 2 … 6", dimensions=("harmonic",)),
        "outline_sine": Parameter("outline coefficients b_m, m = 2 … 6", dimensions=("harmonic",)),
        **MATERIALS,
    }

    def draw_shape(self, generator: np.random.Generator) -> dict[str, np.ndarray | float]:
        largest_radius = generator.uniform(*self.ranges["largest_radius"])
        cosine, sine = generator.normal(scale=0.35, size=(2, len(self.harmonics)))
        return {"largest_radius": largest_radius, "outline_cosine": cosine, "outline_sine": sine}

    def shape(self, drawn: Mapping[str, np.ndarray | float], samples: int) -> tuple[np.ndarray, dict[str, float]]:
        weights = np.concatenate([drawn["outline_cosine"] / self.harmonics, drawn["outline_sine"] / self.harmonics])
        largest = (_harmonics(np.linspace(0, 2 * np.pi, 2048, endpoint=False), self.harmonics) @ weights).max()
        radius, angle_harmonics = _polar_grid(samples)[0], _grid_harmonics(samples, tuple(self.harmonics))
        return radius < drawn["largest_radius"] * np.exp(angle_harmonics @ weights - largest), {}


class LevelSet(UnitCellFamily):
    """Level set of a Fourier sum with |n| ≤ cutoff along each axis, symmetrised to a plane group.

    Coefficients are r·exp(iφ), r uniform in 0 … 1 and φ in 0 … 2π; inside is where the real part of the sum lies above
    the level that leaves a filling fraction drawn uniformly from 0.01 … 0.99 (as in SIB-CL, Nat. Commun. 13 (2022)
    4223).
    """

    def __init__(self, name: str, plane_group: str, cutoff: int = 1, lattice: str | None = None):
        self.name, self.plane_group, self.cutoff = name, plane_group, cutoff
        self.lattice = lattice or lattice_of(plane_group)
        self.parameters = {
            "coefficient_real": Parameter(
                "real part of the Fourier coefficients before symmetrising", dimensions=("n1", "n2")
            ),
            "coefficient_imaginary": Parameter("imaginary part of the same", dimensions=("n1", "n2")),
            "level": Parameter("level of the Fourier sum at the boundary"),
            **MATERIALS,
            "filling": replace(MATERIALS["filling"], range=(0.01, 0.99)),
        }

    def draw_shape(self, generator: np.random.Generator) -> dict[str, np.ndarray | float]:
        size = 2 * self.cutoff + 1
        magnitude = generator.uniform(size=(size, size))
        coefficients = magnitude * np.exp(1j * generator.uniform(0, 2 * np.pi, size=(size, size)))
        filling = generator.uniform(*self.ranges["filling"])
        return {"coefficient_real": coefficients.real, "coefficient_imaginary": coefficients.imag, "filling": filling}

    def shape(self, drawn: Mapping[str, np.ndarray | float], samples: int) -> tuple[np.ndarray, dict[str, float]]:
        coefficients = drawn["coefficient_real"] + 1j * drawn["coefficient_imaginary"]
        symmetric = symmetrise(np.asarray(coefficients), self.plane_group)
        waves = np.exp(2j * np.pi * np.outer(self.axis(samples), np.arange(-2 * self.cutoff, 2 * self.cutoff + 1)))
        height = np.round((waves @ symmetric @ waves.T).real, 12)  # symmetric points are level to the last bit
        level = np.quantile(height, 1 - drawn["filling"])
        return height > level, {"level": level}

    def axis(self, samples: int) -> np.ndarray:
        """Return where the fine samples lie along a lattice vector: points that the group maps onto one another.

        Operations of the hexagonal lattice do so only with points at i/N, and so must the centres of pixels lie.
        """
        centred = _axis(samples)
        return centred - centred[FINE_SAMPLES_PER_PIXEL // 2] - 0.5 if self.lattice == "hexagonal" else centred


FAMILIES: dict[str, UnitCellFamily] = {
    family.name: family
    for family in (
        Blob(),
        LevelSet("gpm", "pm", lattice="square"),
        LevelSet("p1", "p1", lattice="square"),
        Rods(),
    )
}
LEVEL_SET = "level-set"
FAMILY_NAMES = (*FAMILIES, LEVEL_SET)


@functools.cache
def unit_cell_family(name: str, plane_group: str | None = None, cutoff: int | None = None) -> UnitCellFamily:
    """Return a family of unit cells.

    Args:
        name: a preset (blob, gpm, p1, rods), or "level-set" for level sets of any plane group.
        plane_group: for "level-set", a name of `data_gen.plane_groups.PLANE_GROUPS`.
        cutoff: for "level-set", the largest |n| of the Fourier sum along each axis; 1 if None.

    Raises:
        ValueError: if there is no such family or plane group, or a preset is given a plane group or cutoff.
    """
    if name not in FAMILY_NAMES:
        raise ValueError(f"unknown family {name!r}; the families are {', '.join(FAMILY_NAMES)}")
    if name in FAMILIES:
        if plane_group is not None or cutoff is not None:
            raise ValueError(f"`plane_group` and `cutoff` belong to family {LEVEL_SET}, not to {name}")
        return FAMILIES[name]
    if plane_group not in PLANE_GROUPS:
        raise ValueError(f"`plane_group` must be one of {', '.join(PLANE_GROUPS)}, got {plane_group!r}")
    if cutoff is not None and not 1 <= cutoff <= 8:
        raise ValueError(f"`cutoff` must be from 1 to 8, got {cutoff}")
    return LevelSet(f"{LEVEL_SET}:{plane_group}:{cutoff or 1}", plane_group, cutoff or 1)


def family_of(attributes: Mapping[str, Any]) -> UnitCellFamily:
    """Return the family that a dataset file with these attributes was drawn from; raises `ValueError` if unknown."""
    if attributes["family"] != LEVEL_SET:
        return unit_cell_family(attributes["family"])
    return unit_cell_family(LEVEL_SET, attributes["plane_group"], int(attributes.get("cutoff", 1)))


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
