"""Whether splits share cells: two cells are one if a translation, rotation or mirror maps one onto the other."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np


class LeakError(ValueError):
    """Two splits share a cell, or one has a symmetric copy of a cell of the other."""


def check_disjoint(splits: Mapping[str, np.ndarray]) -> None:
    """Refuse splits that share cells or symmetric copies of a cell.

    Args:
        splits: permittivity of each split's cells on the square lattice, shape `(sample, n, n)`, by name.

    Raises:
        LeakError: naming the two splits and the two cells.
    """
    owners: dict[bytes, list[tuple[str, int]]] = {}
    for name, cells in splits.items():
        for index, cell in enumerate(cells):
            owners.setdefault(values_hash(cell), []).append((name, index))
    for alike in owners.values():
        if len({name for name, _ in alike}) > 1:
            _refuse_copies(alike, splits)


def _refuse_copies(alike: list[tuple[str, int]], splits: Mapping[str, np.ndarray]) -> None:
    """Raise `LeakError` if cells with the same values are one cell in two splits."""
    found: dict[bytes, tuple[str, int]] = {}
    for name, index in alike:
        first = found.setdefault(canonical_form(splits[name][index]), (name, index))
        if first[0] != name:
            raise LeakError(
                f"cell {index} of the split {name} is cell {first[1]} of the split {first[0]}, or a symmetric copy"
            )


def values_hash(cell: np.ndarray) -> bytes:
    """Return a hash of the values of a cell, wherever they lie: cheap, and equal for symmetric copies."""
    return hashlib.sha256(np.sort(cell, axis=None).tobytes()).digest()


def canonical_form(cell: np.ndarray) -> bytes:
    """Return the least of all copies of a cell `(n, n)` under the square's point group and all translations.

    Two cells have one canonical form exactly if they are symmetric copies of each other.
    """
    return min(
        np.roll(copy, (-row, -column), (0, 1)).tobytes()
        for copy in point_group_copies(np.ascontiguousarray(cell))
        for row, column in np.argwhere(copy == copy.min())
    )


def point_group_copies(cell: np.ndarray) -> Iterator[np.ndarray]:
    """Give the 8 copies of cells `(..., n, n)` under the point group of the square."""
    for turns in range(4):
        turned = np.rot90(cell, turns, (-2, -1))
        yield turned
        yield turned[..., ::-1]
