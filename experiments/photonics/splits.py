"""Whether splits share cells: two cells are one if a translation, rotation or mirror maps one onto the other."""

from collections.abc import Mapping

from photonic_essl.data import Cells


class LeakError(ValueError):
    """Two splits share a cell, or one has a symmetric copy of a cell of the other."""


def check_disjoint(splits: Mapping[str, Cells]) -> None:
    """Refuse splits that share cells or symmetric copies of a cell.

    Args:
        splits: each split's cells, by name.

    Raises:
        LeakError: naming the two splits and the two cells.
    """
    found: dict[tuple[str, int], tuple[str, int]] = {}
    for name, cells in splits.items():
        lattice = str(cells.lattice.tolist())
        for index, hashed in enumerate(cells.hashes.tolist()):
            first = found.setdefault((lattice, hashed), (name, index))
            if first[0] != name:
                raise LeakError(
                    f"cell {index} of the split {name} is cell {first[1]} of the split {first[0]}, or a symmetric copy"
                )
