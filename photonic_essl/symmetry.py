"""Groups of transformations of a periodic cell onto itself.

An element moves the cell's grid points, `r → M (r − c) + c + t`, and carries the values along: the transformed cell
has at `g r` what the cell had at `r`. `M` is a matrix of integers in the coordinates of the lattice, `t` a whole number
of grid points, and `c` the centre of the cell, half-way between grid points (they sit at (i + ½)/N), so that mirrors
and quarter turns are flips and turns of the array. On a hexagonal grid `c` is a grid point, as no other centre maps
the grid onto itself.

The density of states is the same for every transformed copy, which is what makes these the groups of E-SSL
(arXiv 2111.00899): to some of them the representation is asked to be invariant, others it has to predict.
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

_IDENTITY = ((1, 0), (0, 1))
_QUARTER_TURN = ((0, -1), (1, 0))
_MIRROR_X = ((-1, 0), (0, 1))
_MIRROR_Y = ((1, 0), (0, -1))
_HALF_TURN = ((-1, 0), (0, -1))
_SWAP = ((0, 1), (1, 0))
_SIXTH_TURN = ((1, -1), (1, 0))
_HEXAGON_MIRROR = ((1, -1), (0, -1))
_LARGEST_POINT_GROUP = 12
"""The hexagon's: no lattice of the plane has more (the crystallographic restriction)."""
LATTICE_TOLERANCE = 2e-4
"""Of the scalar products of lattice vectors, in squares of the shortest: a hexagonal lattice may be written with three
digits."""

_Matrix = tuple[tuple[int, int], tuple[int, int]]
Batch = Float[Tensor, "batch channel x y"]
Labels = Int64[Tensor, " n"]


@dataclass(frozen=True)
class Elements:
    """Elements of a group, one an entry.

    Attributes:
        labels: number of each element within its group on one grid.
        quantiles: where in its allowed range each cell's dielectric factor lies, in [0, 1); None in groups without
            rescaling.
    """

    labels: Labels
    quantiles: Float32[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> "Elements":
        return Elements(self.labels[part], None if self.quantiles is None else self.quantiles[part])

    def repeated(self, times: int, device: torch.device) -> "Elements":
        """Return each element so many times in a row, on a device."""
        labels, quantiles = self.labels.repeat_interleave(times).to(device), self.quantiles
        return Elements(labels, None if quantiles is None else quantiles.repeat_interleave(times).to(device))


class TransformGroup:
    """A group of maps of the cell onto itself: a point group, times translations, times dielectric rescaling.

    Groups multiply: `mirrors() * translations()` holds every product of their elements.

    Args:
        name: how the group is called in recipes and messages.
        generators: integer matrices, in lattice coordinates, that generate its point group.
        parts: translations go by whole multiples of 1/parts of the cell; 0 for any whole number of grid points.
        permittivity_range: lowest and highest ε between which the cell may be rescaled; None for no rescaling.

    Raises:
        ValueError: if the matrices generate no finite group, as those of two different lattices do.
    """

    def __init__(
        self,
        name: str,
        generators: Sequence[_Matrix] = (),
        parts: int = 1,
        permittivity_range: tuple[float, float] | None = None,
    ):
        self.name = name
        self.matrices = _closure(name, generators)
        self.parts = parts
        self.permittivity_range = permittivity_range
        # On the CPU even where a model that holds the group is made elsewhere.
        self._matrices = torch.tensor(self.matrices, device="cpu")
        # An inverse of determinant ±1 holds integers; rounding removes what floating point leaves.
        inverses = torch.linalg.inv(self._matrices.double()).round().long().tolist()
        self._inverses = tuple(tuple(map(tuple, inverse)) for inverse in inverses)
        # The centre may lie between grid points, at odd multiples of ½, only if no element moves a point by halves.
        self._centre_on_point = bool(((torch.eye(2, dtype=torch.long, device="cpu") - self._matrices).sum(2) % 2).any())

    def __repr__(self) -> str:
        return f"TransformGroup({self.name!r})"

    def __mul__(self, other: "TransformGroup") -> "TransformGroup":
        ranges = [group.permittivity_range for group in (self, other) if group.permittivity_range]
        if len(set(ranges)) > 1:
            raise ValueError(f"`{self.name}` and `{other.name}` rescale within different ranges of ε: {ranges}.")
        return TransformGroup(
            " * ".join(group.name for group in (self, other) if group.name != "identity") or "identity",
            generators=(*self.matrices, *other.matrices),
            parts=math.lcm(self.parts, other.parts),
            permittivity_range=ranges[0] if ranges else None,
        )

    def check_fits(self, grid: tuple[int, int], lattice: Float[Tensor, "2 2"]) -> None:
        """Refuse a grid that the group does not map onto itself.

        Args:
            grid: number of points along the two lattice vectors.
            lattice: lattice vectors, one a row.

        Raises:
            ValueError: if an element does not keep the lattice, or the grid, in place.
        """
        lattice = lattice.double()
        metric = lattice @ lattice.T
        matrices = self._matrices.double()
        tolerance = LATTICE_TOLERANCE * float(metric.diagonal().min())
        if not torch.allclose(matrices.transpose(1, 2) @ metric @ matrices, metric.expand_as(matrices), atol=tolerance):
            vectors = " and ".join(f"({x:g}, {y:g})" for x, y in lattice.tolist())
            raise ValueError(f"`{self.name}` does not map a cell with lattice vectors {vectors} onto itself.")
        self._check_grid(grid)

    def _check_grid(self, grid: tuple[int, int]) -> None:
        if grid[0] != grid[1] and any(matrix[0][1] or matrix[1][0] for matrix in self.matrices):
            raise ValueError(f"`{self.name}` needs as many points along x as along y, got {grid[0]} × {grid[1]}.")
        if self.parts and any(points % self.parts for points in grid):
            raise ValueError(f"`{self.name}` needs a grid divisible by {self.parts}, got {grid[0]} × {grid[1]} points.")

    def contains(self, other: "TransformGroup") -> bool:
        """Return whether every element of another group is one of this, whatever the grid."""
        translations = self.parts == 0 or (other.parts > 0 and self.parts % other.parts == 0)
        rescaling = other.permittivity_range in (None, self.permittivity_range)
        return set(other.matrices) <= set(self.matrices) and translations and rescaling

    def order(self, grid: tuple[int, int]) -> int:
        """Return how many elements the group has on a grid of this shape, dielectric rescaling apart."""
        return len(self.matrices) * math.prod(self._steps(grid))

    def draw(
        self,
        count: int,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Elements:
        """Draw elements, each uniformly and independently.

        Args:
            count: how many.
            grid: number of points along the two lattice vectors.
            generator: source of random numbers, on `device`; torch's own where not given.
            device: where the elements are wanted.

        Returns:
            `count` elements.

        Raises:
            ValueError: if the group does not fit the grid.
        """
        self._check_grid(grid)
        labels = torch.randint(self.order(grid), (count,), generator=generator, device=device)
        quantiles = None
        if self.permittivity_range:
            quantiles = torch.rand(count, generator=generator, device=device)
        return Elements(labels, quantiles)

    def apply(self, x: Batch, elements: Elements) -> Batch:
        """Transform each cell of a batch by its own element.

        Args:
            x: cells; relative permittivity where the group rescales it.
            elements: one element a cell.

        Returns:
            Transformed cells, on the device of `x`.
        """
        moved, grid = x, (x.shape[2], x.shape[3])
        if self.order(grid) > 1:
            source = self._source(elements.labels, grid)
            moved = x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1)).view_as(x)
        if elements.quantiles is None or self.permittivity_range is None:
            return moved
        return moved * _factors(x, self.permittivity_range, elements.quantiles)

    def sample(self, x: Batch, generator: torch.Generator | None = None) -> Batch:
        """Transform each cell of a batch by an element drawn for it alone.

        Args:
            x: cells.
            generator: source of random numbers, on the device of `x`.

        Returns:
            Transformed cells, on the device of `x`.

        Raises:
            ValueError: if the group does not fit the grid.
        """
        return self.apply(x, self.draw(len(x), (x.shape[2], x.shape[3]), generator, x.device))

    def orbit(self, x: Batch) -> tuple[Float[Tensor, "copy channel x y"], Int64[Tensor, " copy"]]:
        """Transform each cell of a batch by every element.

        Args:
            x: cells.

        Returns:
            Copies, order · batch of them, all cells under the first element (the identity) before all under the
            second; and the label of each.

        Raises:
            ValueError: if the group rescales ε (it has no finite orbit), or does not fit the grid.
        """
        if self.permittivity_range:
            raise ValueError(f"`{self.name}` rescales ε by any factor: it can be sampled, but has no finite orbit.")
        grid = x.shape[2], x.shape[3]
        self._check_grid(grid)
        labels = torch.arange(self.order(grid), device=x.device)
        source = self._source(labels, grid)[:, None, None].expand(-1, *x.shape[:2], -1)
        copies = x.flatten(2)[None].expand(len(labels), -1, -1, -1).gather(3, source)
        return copies.view(-1, *x.shape[1:]), labels.repeat_interleave(len(x))

    def copies(self, x: Batch, count: int) -> Float[Tensor, "copy batch channel x y"]:
        """Transform each cell of a batch by the same few elements: by all there are, or by a fixed draw of them.

        Args:
            x: cells.
            count: at most how many copies of each to make, at least 2.

        Returns:
            Copies, the untransformed cells first.

        Raises:
            ValueError: if the group does not fit the grid.
        """
        grid = x.shape[2], x.shape[3]
        if self.permittivity_range is None and self.order(grid) <= count:
            return self.orbit(x)[0].unflatten(0, (-1, len(x)))
        drawn = self.draw(count - 1, grid, torch.Generator().manual_seed(0)).repeated(len(x), x.device)
        moved = self.apply(x.repeat(count - 1, 1, 1, 1), drawn)
        return torch.cat([x, moved]).unflatten(0, (count, len(x)))

    def compose(self, first: Labels, then: Labels, grid: tuple[int, int]) -> Labels:
        """Return the labels of doing `first` and `then`, in that order."""
        first_point, first_shift = self._point_and_shift(first, grid)
        then_point, then_shift = self._point_and_shift(then, grid)
        matrices = _on_device(self.matrices, first.device)
        # Not by @, which on a GPU multiplies no whole numbers.
        turned = (matrices[then_point][..., None] * matrices[first_point][:, None]).sum(2)
        point = (turned[:, None] == matrices).flatten(2).all(2).long().argmax(1)
        # (r − c) → M₂ (M₁ (r − c) + t₁) + t₂
        shift = (matrices[then_point] * first_shift[:, None]).sum(2) + then_shift
        return self._label(point, shift, grid)

    def inverse(self, labels: Labels, grid: tuple[int, int]) -> Labels:
        """Return the label of each element's inverse."""
        point, shift = self._point_and_shift(labels, grid)
        matrices, inverses = (_on_device(values, labels.device) for values in (self.matrices, self._inverses))
        inverse_point = (inverses[point][:, None] == matrices).flatten(2).all(2).long().argmax(1)
        return self._label(inverse_point, -(inverses[point] * shift[:, None]).sum(2), grid)

    def shifts(self, labels: Labels, grid: tuple[int, int]) -> Float[Tensor, "n 2"]:
        """Return the translation in each element, in parts of the cell in [0, 1)."""
        return self._point_and_shift(labels, grid)[1] / _on_device(tuple(grid), labels.device)

    def _steps(self, grid: tuple[int, int]) -> tuple[int, int]:
        return (self.parts, self.parts) if self.parts else grid

    def _point_and_shift(self, labels: Labels, grid: tuple[int, int]) -> tuple[Labels, Int64[Tensor, "n 2"]]:
        steps = self._steps(grid)
        point, step = labels // math.prod(steps), labels % math.prod(steps)
        shift = torch.stack((step // steps[1] * (grid[0] // steps[0]), step % steps[1] * (grid[1] // steps[1])), 1)
        return point, shift

    def _label(self, point: Labels, shift: Int64[Tensor, "n 2"], grid: tuple[int, int]) -> Labels:
        steps = self._steps(grid)
        step = [shift[:, axis] % grid[axis] // (grid[axis] // steps[axis]) for axis in (0, 1)]
        return (point * steps[0] + step[0]) * steps[1] + step[1]

    def _source(self, labels: Labels, grid: tuple[int, int]) -> Int64[Tensor, "n {grid[0]*grid[1]}"]:
        """Return which point of the flattened cell each point of the transformed one comes from."""
        point, shift = self._point_and_shift(labels, grid)
        inverse = _on_device(self._inverses, labels.device)[point]
        centre = tuple(n // 2 * 2 if self._centre_on_point else n - 1 for n in grid)
        twice_centre = _on_device(centre, labels.device)
        offset = (twice_centre - (inverse * twice_centre).sum(2)) // 2 - (inverse * shift[:, None]).sum(2)
        x, y = (torch.arange(points, device=labels.device) for points in grid)
        row, column = (
            (inverse[:, axis, 0, None, None] * x[:, None] + inverse[:, axis, 1, None, None] * y)
            .add_(offset[:, axis, None, None])
            .remainder_(grid[axis])
            for axis in (0, 1)
        )
        return row.mul_(grid[1]).add_(column).flatten(1)


def _factors(
    x: Batch, permittivity_range: tuple[float, float], quantiles: Float32[Tensor, " batch"]
) -> Float[Tensor, "batch 1 1 1"]:
    """Return what keeps each cell within the range, at its quantile of all such factors."""
    lowest, highest = permittivity_range
    smallest, largest = (lowest / x.flatten(1).amin(1)).log(), (highest / x.flatten(1).amax(1)).log()
    return (smallest + quantiles * (largest - smallest)).exp()[:, None, None, None].to(x.dtype)


@functools.cache
def _on_device(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Return whole numbers on a device, taken there once: a copy in every step would make a GPU wait for the host."""
    return torch.tensor(values, device=device)


def identity() -> TransformGroup:
    """The group that leaves every cell as it is."""
    return TransformGroup("identity")


def translations(parts: int = 0) -> TransformGroup:
    """Translations by whole multiples of 1/parts of the cell along both axes; 0: by any number of grid points."""
    if parts < 0:
        raise ValueError(f"`parts` must be 0 (any translation) or a positive number of parts, got {parts}.")
    return TransformGroup(f"translations/{parts}" if parts else "translations", parts=parts)


def quarter_turns() -> TransformGroup:
    """Rotations by 0, 90, 180 and 270°."""
    return TransformGroup("quarter-turns", generators=[_QUARTER_TURN])


def mirrors() -> TransformGroup:
    """Mirrors that reverse x, y or both (both is the half turn, without which they are no group)."""
    return TransformGroup("mirrors", generators=[_MIRROR_X, _MIRROR_Y])


def square() -> TransformGroup:
    """The 8 symmetries of the square: quarter turns and mirrors."""
    return TransformGroup("square", generators=[_QUARTER_TURN, _MIRROR_X])


def hexagon() -> TransformGroup:
    """The 12 symmetries of the hexagon, for cells on the hexagonal lattice."""
    return TransformGroup("hexagon", generators=[_SIXTH_TURN, _HEXAGON_MIRROR])


def rescaling(lowest: float = 1.0, highest: float = 20.0) -> TransformGroup:
    """Multiplication of ε by a factor that keeps it within [lowest, highest], log-uniform.

    ε → s·ε sends ω → ω/√s, which leaves the density of states over scaled frequency as it is.
    """
    if not 0 < lowest < highest:
        raise ValueError(f"`lowest` and `highest` must be positive and in order, got {lowest} and {highest}.")
    return TransformGroup("rescaling", permittivity_range=(lowest, highest))


def half_turn() -> TransformGroup:
    """Rotations by 0 and 180°, which every lattice has."""
    return TransformGroup("half-turn", generators=[_HALF_TURN])


def rhombus() -> TransformGroup:
    """The 4 symmetries of the rhombus, for lattice vectors of equal length: half turn, and mirrors that swap them."""
    return TransformGroup("rhombus", generators=[_HALF_TURN, _SWAP])


NAMED_GROUPS = {
    "identity": identity,
    "half-turn": half_turn,
    "translations": translations,
    "quarter-turns": quarter_turns,
    "mirrors": mirrors,
    "rhombus": rhombus,
    "square": square,
    "hexagon": hexagon,
    "rescaling": rescaling,
}


def group(name: str) -> TransformGroup:
    """Return the group of this name, as recipes and the command line spell it.

    Args:
        name: a name of `NAMED_GROUPS`, `translations/n` for whole multiples of 1/n of the cell, or several of these
            joined by `*`, such as `"mirrors * translations/2"`.

    Returns:
        The group, or the product of the groups.

    Raises:
        ValueError: if a name is not one of these, or groups of different lattices are multiplied.
    """
    product = identity()
    for factor in name.split("*"):
        kind, _, parts = factor.strip().partition("/")
        if kind not in NAMED_GROUPS or (parts and (kind != "translations" or not parts.isdecimal())):
            raise ValueError(
                f"unknown group {factor.strip()!r}; there are {', '.join(NAMED_GROUPS)}, `translations/n`, and their "
                "products, joined by `*`."
            )
        product = product * (translations(int(parts)) if parts else NAMED_GROUPS[kind]())
    return product


def lattice_symmetries(grid: tuple[int, int], lattice: Float[Tensor, "2 2"]) -> TransformGroup:
    """Return all symmetries that the density of states of any cell has: translations, and the lattice's point group.

    Args:
        grid: number of points along the two lattice vectors.
        lattice: lattice vectors, one a row.

    Returns:
        The product of translations by grid points and the largest point group of this module that keeps the grid.
    """
    for point in (square, hexagon, mirrors, rhombus):
        chosen = translations() * point()
        with contextlib.suppress(ValueError):
            chosen.check_fits(grid, lattice)
            return chosen
    return translations() * half_turn()


def fitting_group(name: str, grid: tuple[int, int], lattice: Float[Tensor, "2 2"]) -> TransformGroup:
    """Return the group of a name, for cells of a grid and lattice.

    Args:
        name: as for `group`, or `lattice`: what `lattice_symmetries` gives.
        grid: number of points along the two lattice vectors.
        lattice: lattice vectors, one a row.

    Raises:
        ValueError: if there is no such group, or it does not map such cells onto themselves.
    """
    if name == "lattice":
        return lattice_symmetries(grid, lattice)
    chosen = group(name)
    chosen.check_fits(grid, lattice)
    return chosen


PUBLISHED_GROUPS = {
    "blob": ("mirrors * quarter-turns", "translations/2"),
    "gpm": ("translations * mirrors", "quarter-turns"),
}


def published_groups(family: str) -> tuple[TransformGroup, TransformGroup]:
    """Return the two groups of the published recipe for a family of cells (arXiv 2111.00899, section 5).

    Args:
        family: `"blob"` or `"gpm"`.

    Returns:
        The group to be invariant to, and the group to predict.

    Raises:
        ValueError: if nothing was published for the family.
    """
    if family not in PUBLISHED_GROUPS:
        raise ValueError(
            f"no groups were published for the family {family!r}, only for {' and '.join(PUBLISHED_GROUPS)}: name "
            "`invariance`, such as `half-turn` or, on the square lattice, `square`, and, where another group is "
            "predicted, `equivariance`, such as `translations/2`; without one `invariance` may be `lattice`: all that "
            "no density of states sees."
        )
    invariance, equivariance = PUBLISHED_GROUPS[family]
    return group(invariance), group(equivariance)


def _closure(name: str, generators: Sequence[_Matrix]) -> tuple[_Matrix, ...]:
    """Return every product of the matrices, the identity first; of matrices of two lattices there is no end."""
    found = [_IDENTITY]
    for element in found:
        for (a, b), (c, d) in generators:
            (e, f), (g, h) = element
            product = ((a * e + b * g, a * f + b * h), (c * e + d * g, c * f + d * h))
            if product not in found:
                found.append(product)
        if len(found) > _LARGEST_POINT_GROUP:
            raise ValueError(f"`{name}` is the symmetry of no lattice: its rotations and mirrors never come to an end.")
    return tuple(found)
