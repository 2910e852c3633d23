import contextlib
import os
import resource
import subprocess

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

from tests import shapes

# Of processes that tests start: they run beside each other, and threads that wait for cores cost more than they do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Of GPU kernels where there is no GPU: carried out step by step. Triton reads this as it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Of property tests: the same few examples everywhere, or with `--hypothesis-profile many` new ones each time.
hypothesis.settings.register_profile("few", max_examples=10, derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("many", max_examples=300, database=None, deadline=None, print_blob=True)
hypothesis.settings.load_profile("few")

# Before either package is imported, but for kernels, whose source Triton reads: they are to stay as they are.
with contextlib.suppress(ImportError):
    import photonic_essl.pooling_kernels  # noqa: F401
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


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 KB at `tmp_path / "disk"`; calling it with "size=30m" or "ro" makes it larger, or read-only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield lambda option: subprocess.run(["mount", "-o", f"remount,{option}", disk], check=True)
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def files_up_to():
    """Lets no file of this process grow larger than so many bytes, in a `with` block."""

    @contextlib.contextmanager
    def limited(size):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited


@pytest.fixture
def other_repository(tmp_path):
    """A folder that is no part of the repository that it lies in, as an environment in somebody's project."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    for words in (["init"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    return folder
