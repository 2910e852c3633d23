"""Processes that share the work of a study or a benchmark."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from data_gen.messages import end_with_parent


def process_pool(processes: int) -> ProcessPoolExecutor:
    """Return a pool of new processes of one thread each, which end with this one, however it ends."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin)


def _begin() -> None:
    end_with_parent()
    torch.set_num_threads(1)
