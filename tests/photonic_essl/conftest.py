import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from photonic_essl.data import load_cells
from photonic_essl.finetuning import finetune

SMALL = {"epochs": 3, "batch_size": 8, "device": "cpu", "progress": False}
LIGHT = SMALL | {"encoder": "light"}
FREQUENCY = np.linspace(0.0, 1.2, 500)


def write_cells(path, count, labelled=True, seed=0, family="blob", grid=(32, 32), frequency=FREQUENCY, **attributes):
    """Write a dataset file of made-up cells, whose made-up labels do not change under any symmetry."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.arange(points) / points - 0.5 for points in grid), indexing="ij")
    radii = random.uniform(0.1, 0.45, (count, 2, 1, 1))
    inside = (x / radii[:, 0]) ** 2 + (y / radii[:, 1]) ** 2 < 1
    low, high = random.uniform(1, 20, (2, count, 1, 1))
    epsilon = np.where(inside, high, low).astype("f4")
    dataset = xr.Dataset(
        {
            "epsilon": (("sample", "x", "y"), epsilon),
            "epsilon_mean": ("sample", epsilon.mean((1, 2), dtype="f8")),
            "status": ("sample", np.zeros(count, "i1")),
        },
        attrs={
            "family": family,
            "seed": seed,
            "resolution": 32,
            "lattice": [1.0, 0.0, 0.0, 1.0],
            "polarization": "tm",
            "schema_version": 1,
            "package_version": "0",
            **attributes,
        },
    )
    if labelled:
        contrast = epsilon.std((1, 2)) / epsilon.mean((1, 2))
        ripple = 1 + 0.2 * contrast[:, None] * np.sin(20 * frequency + inside.mean((1, 2))[:, None])
        dataset["dos"] = (("sample", "frequency"), (2 * np.pi * frequency * ripple).astype("f4"))
        dataset = dataset.assign_coords(frequency=frequency)
    dataset.to_netcdf(path, engine="h5netcdf")
    return path


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory):
    return write_cells(tmp_path_factory.mktemp("data") / "unlabelled.nc", 24, labelled=False, seed=1)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    return write_cells(tmp_path_factory.mktemp("data") / "labelled.nc", 20, seed=2)


@pytest.fixture(scope="session")
def cells(labelled):
    return load_cells(labelled, labelled=True)


@pytest.fixture(scope="session")
def finished(labelled, tmp_path_factory):
    """The folder of a fine-tuning that is done; to be copied before it is changed."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    finetune(labelled, out, labels=10, **LIGHT)
    return out


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def compiled(monkeypatch):
    """What code was compiled for, and in how many steps: how often it ran with gradients, as it does in training."""
    compiled = SimpleNamespace(inputs=[], steps=0)

    def backend(graph, inputs):
        compiled.inputs.append(inputs)

        def run(*arguments):
            compiled.steps += torch.is_grad_enabled()
            return graph.forward(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    yield compiled
    torch._dynamo.reset()
