import subprocess
import sys

import pytest
import torch
from torch import nn

from photonic_essl.encoders import Encoder, make_network, multilayer
from photonic_essl.saving import load_folder


def own_network(channels, grid):
    """A network as a user would bring it."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * grid[0] * grid[1], 16), nn.BatchNorm1d(16))


class EncoderContract:
    """What every encoder must do; a new one inherits these tests by giving `name`, and `trunk` if it is periodic."""

    name: str
    grid = (32, 32)

    @pytest.fixture
    def encoder(self):
        torch.manual_seed(0)
        encoder = Encoder.of(self.name, 1, self.grid)
        encoder(self.cells())  # moves the running statistics away from where they start
        return encoder.eval()

    def cells(self, count=4):
        return torch.rand(count, 1, *self.grid, generator=torch.Generator().manual_seed(0)) * 19 + 1

    def test_shape_dtype_and_device(self, encoder):
        representation = encoder(self.cells())
        assert representation.shape == (4, encoder.features)
        assert representation.dtype == torch.float32
        assert encoder.double()(self.cells().double()).dtype == torch.float64
        assert encoder.to("meta")(self.cells().double().to("meta")).device.type == "meta"

    def test_a_cell_does_not_depend_on_its_batch(self, encoder):
        encoder, cells = encoder.double(), self.cells().double()
        together = encoder(cells)
        for i in range(len(cells)):
            torch.testing.assert_close(encoder(cells[i : i + 1])[0], together[i], rtol=1e-9, atol=1e-9)

    def test_every_parameter_learns(self, encoder):
        encoder.train()(self.cells(16)).square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())

    @pytest.mark.gpu
    def test_a_gpu_gives_what_the_cpu_gives(self, encoder):
        encoder, cells = encoder.double().train(), self.cells().double()
        found = {}
        for device in ("cuda", "cpu"):
            encoder.to(device).zero_grad()
            representation = encoder(cells.to(device))
            representation.square().sum().backward()
            found[device] = [values.cpu() for values in (representation, *(p.grad for p in encoder.parameters()))]
        for on_gpu, on_cpu in zip(found["cuda"], found["cpu"]):
            torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-9, atol=1e-9)

    def test_cells_differ(self, encoder):
        assert encoder(self.cells()).std(0).max() > 1e-3

    def test_saved_and_loaded_alike(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.pt"))
        network = make_network(self.name, 1, self.grid) if ":" in self.name else None
        loaded = load_folder(Encoder, tmp_path, network)
        assert loaded.name == self.name
        assert torch.equal(loaded(self.cells()), encoder(self.cells()))


class PeriodicContract(EncoderContract):
    """What a periodic encoder must do besides: its trunk moves along with a shifted cell."""

    grid = (64, 64)

    def test_the_trunk_moves_along_with_the_cell(self, encoder):
        network = encoder.double().network
        cells = encoder.standardise(self.cells().double())
        there = network.trunk(torch.roll(cells, (network.stride, -network.stride), (2, 3)))
        moved = torch.roll(network.trunk(cells), (1, -1), (2, 3))
        torch.testing.assert_close(there, moved, rtol=1e-9, atol=1e-9)
        assert (moved - network.trunk(cells)).abs().max() > 1e-3, "a shift leaves the trunk as it is"


class TestPaper(EncoderContract):
    name = "paper"

    def test_parameters_are_the_published_ones(self):
        shapes = [tuple(p.shape) for name, p in Encoder("paper").named_parameters() if p.ndim > 1]
        assert shapes == [(64, 1, 7, 7), (256, 64, 7, 7), (256, 256, 7, 7), (1024, 256), (1024, 1024)]


class TestPaperCircular(PeriodicContract):
    name = "paper-circular"


class TestLight(PeriodicContract):
    name = "light"


class TestOwn(EncoderContract):
    name = "tests.photonic_essl.test_encoders:own_network"


def test_normalisations_are_not_shared():
    layers = multilayer([8, 4, 4, 2], normalise=True)
    assert [type(layer).__name__ for layer in layers] == [
        "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear",
    ]  # fmt: skip
    assert layers[1] is not layers[4]


def unfinished_network(channels, grid):
    return nn.Linear(channels, undefined)  # noqa: F821


def test_what_the_users_own_code_raises_is_one_line_that_names_it():
    own = "tests.photonic_essl.test_encoders:unfinished_network"
    with pytest.raises(ValueError, match=f"the encoder '{own}' cannot be built: NameError: name 'undefined' is not"):
        make_network(own)
    with pytest.raises(
        ValueError,
        match=r"the encoder `own` cannot be applied to cells of shape \(2, 1, 32, 32\): RuntimeError: .*mat1",
    ):
        Encoder("own", network=nn.Linear(5, 5))


def test_bad_names_and_grids_are_refused():
    with pytest.raises(ValueError, match="unknown encoder 'tiny'; there are paper, paper-circular, light, none, or"):
        make_network("tiny")
    with pytest.raises(
        ValueError, match=r"'json:__name__' must be a function that returns a `torch.nn.Module`, got 'json'"
    ):
        make_network("json:__name__")
    with pytest.raises(ValueError, match="the encoder 'nowhere:make' cannot be built: ModuleNotFoundError: "):
        make_network("nowhere:make")
    with pytest.raises(ValueError, match="`light` encoder needs a grid of multiples of 8 points, got \\(30, 30\\)"):
        make_network("light", 1, (30, 30))
    with pytest.raises(ValueError, match="not a preset, and has to be given"):
        Encoder("os:getcwd")
    with pytest.raises(ValueError, match=r"the encoder `own` must return \(batch, features\), got \(2, 1, 32, 32\)"):
        Encoder("own", network=nn.ReLU())


WHOLE = """
import torch
from photonic_essl.encoders import Encoder
for name in ("paper", "paper-circular", "light"):
    encoder = Encoder(name).to({device!r})
    encoder.compile(dynamic=False, fullgraph=True, backend="eager")
    with torch.autocast({device!r}, torch.bfloat16):
        encoder(torch.rand(4, 1, 32, 32, device={device!r}) + 1)
"""


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_presets_are_compiled_whole(device):
    # In a process of its own, without the checks of shapes that tests have, which are not compiled.
    code = WHOLE.format(device=device)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
