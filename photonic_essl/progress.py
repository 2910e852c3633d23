"""How far long work has come, where it is no training with a bar of its own."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds that work may take without a sign of life."""


def with_progress(batches: Sequence[T], what: str) -> Iterator[T]:
    """Go through batches, with a progress bar in a terminal if that takes more than two seconds."""
    return iter(tqdm(batches, desc=what, unit="batch", delay=PATIENCE, leave=False, disable=None))
