import pytest
import torch

from data_gen.solvers import mpb


def pytest_configure(config):
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    needs_mpb = [item for item in items if "mpb" in item.keywords]
    if needs_mpb and not mpb.is_available():
        for item in needs_mpb:
            item.add_marker(pytest.mark.skip(reason=mpb.MISSING))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
