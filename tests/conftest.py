import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

from tests import shapes

# Of property tests: the same few examples everywhere, or with `--hypothesis-profile many` new ones each time.
hypothesis.settings.register_profile("few", max_examples=10, derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("many", max_examples=300, database=None, deadline=None, print_blob=True)
hypothesis.settings.load_profile("few")

# Before either package is imported.
install_import_hook(["data_gen", "photonic_essl"], f"{shapes.__name__}.checked")


def pytest_configure(config):
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    from data_gen.solvers import mpb

    needs_mpb = [item for item in items if "mpb" in item.keywords]
    if needs_mpb and not mpb.is_available():
        for item in needs_mpb:
            item.add_marker(pytest.mark.skip(reason=mpb.MISSING))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
