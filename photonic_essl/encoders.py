"""Encoders: from unit cells to representations.

`Encoder` is what the rest of the package uses. It standardises the permittivity (`photonic_essl.standardisation`) and
hands it to a network: a preset of `NETWORKS`, or your own. Your own is any `nn.Module` that maps
`(batch, channel, x, y)` to `(batch, features)`, given as `"module:factory"`, where `factory(channels, grid)` builds it:

    photonic-essl pretrain --encoder my_networks:perceiver --data cells.nc --out runs/perceiver
    photonic_essl.load_regressor("runs/tuned", network=my_networks.perceiver(1, (32, 32)))

It has to tell apart the elements of the group that it is asked to predict: a network that ends in global pooling, for
one, cannot see where in the cell anything is.
"""

import contextlib
import functools
import importlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from photonic_essl.convolutions import PeriodicConvolution, WindowConvolution
from photonic_essl.pooling import NormalisedMaxPool
from photonic_essl.saving import MODEL_CARD, SavedModel, one_line
from photonic_essl.standardisation import PERMITTIVITY_RANGE, FixedRange, ScaleFree


class DivergenceError(RuntimeError):
    """A loss, or a representation, is no longer a finite number."""


class ConvolutionalNetwork(nn.Module):
    """A convolutional trunk, whose layout the head sees whole.

    Args:
        trunk: from cells to feature maps.
        head: from feature maps to the representation.
        stride: by how many grid points a cell has to be shifted for the feature maps to move along by whole points;
            None if they do not.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, stride: int | None):
        super().__init__()
        # Channels last is the layout that convolutions are fastest in, on CPUs as on GPUs.
        self.trunk, self.head, self.stride = trunk.to(memory_format=torch.channels_last), head, stride

    def forward(self, x: Float[Tensor, "batch channel x y"]) -> Float[Tensor, "batch features"]:
        """Return the representation of cells."""
        return self.head(self.trunk(x.to(memory_format=torch.channels_last)))


def paper_network(channels: int = 1, grid: tuple[int, int] = (32, 32), periodic: bool = False) -> ConvolutionalNetwork:
    """Return the network of arXiv 2111.00899, photonics: three 7 × 7 convolutions, each pooled, and two linear layers.

    It is as published but for what takes time and changes nothing that it can learn: convolutions have no biases, which
    batch normalisation would take away, and what is rectified is what pooling leaves.

    Args:
        channels: of a cell.
        grid: number of points along the two lattice vectors, multiples of 32.
        periodic: whether convolutions wrap around, as the cell does; as published they are padded with zeros. The
            periodic network is invariant by construction to half-cell translations: its last pooling covers the cell.

    Raises:
        ValueError: if the grid is not a multiple of 32.
    """
    _check_grid("paper", grid, 32)
    stages: list[nn.Module] = []
    for inputs, outputs, pool in ((channels, 64, 2), (64, 256, 4), (256, 256, 4)):
        if not stages:
            convolution: nn.Conv2d = WindowConvolution(inputs, outputs, periodic)
        elif periodic:
            convolution = PeriodicConvolution(inputs, outputs, 7)
        else:
            convolution = nn.Conv2d(inputs, outputs, 7, padding=3, bias=False)
        stages += [convolution, NormalisedMaxPool(outputs, pool), nn.ReLU(inplace=True)]
    pooled = 256 * (grid[0] // 32) * (grid[1] // 32)
    head = nn.Sequential(nn.Flatten(), nn.Linear(pooled, 1024), nn.ReLU(), nn.Linear(1024, 1024))
    return ConvolutionalNetwork(nn.Sequential(*stages), head, stride=32 if periodic else None)


def light_network(
    channels: int = 1, grid: tuple[int, int] = (32, 32), width: int = 16, features: int = 256
) -> ConvolutionalNetwork:
    """Return a periodic residual network that trains on two CPU cores.

    All convolutions wrap around, so that the trunk moves along with the cell when it is shifted by a multiple of
    8 points. The linear layer sees the trunk's whole layout, not a mean over it: the representation knows where
    things are, and can be asked.

    Args:
        channels: of a cell.
        grid: number of points along the two lattice vectors, multiples of 8.
        width: channels of the first stage; each of the next two has twice as many.
        features: of the representation.

    Raises:
        ValueError: if the grid is not a multiple of 8.
    """
    _check_grid("light", grid, 8)
    trunk = nn.Sequential(
        PeriodicConvolution(channels, width, 5, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        ResidualBlock(width, width),
        ResidualBlock(width, 2 * width, stride=2),
        ResidualBlock(2 * width, 4 * width, stride=2),
    )
    layout = 4 * width * (grid[0] // 8) * (grid[1] // 8)
    head = nn.Sequential(nn.Flatten(), nn.Linear(layout, features))
    return ConvolutionalNetwork(trunk, head, stride=8)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions that wrap around, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.branch = nn.Sequential(
            PeriodicConvolution(inputs, outputs, 3, stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            PeriodicConvolution(outputs, outputs, 3),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            pooled, projected = nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(pooled, projected, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of branch and shortcut, rectified."""
        return (self.branch(x) + self.shortcut(x)).relu_()


def _check_grid(name: str, grid: tuple[int, int], multiple: int) -> None:
    if len(grid) != 2 or any(points < multiple or points % multiple for points in grid):
        raise ValueError(f"the `{name}` encoder needs a grid of multiples of {multiple} points, got {tuple(grid)}.")


class NoNetwork(nn.Module):
    """No encoder: of a representation without features, so that a regressor sees its first approximation alone."""

    def forward(self, x: Float[Tensor, "batch channel x y"]) -> Float[Tensor, "batch 0"]:
        """Return nothing for each cell."""
        return x.new_zeros(len(x), 0)


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "paper": paper_network,
    "paper-circular": functools.partial(paper_network, periodic=True),
    "light": light_network,
    "none": lambda channels, grid: NoNetwork(),
}


STANDARDISATIONS = {"light": ScaleFree, "none": ScaleFree}
"""What the presets see of ε where that is not the published `FixedRange`; a network of your own sees that too."""


def make_network(
    name: str,
    channels: int = 1,
    grid: Sequence[int] = (32, 32),
    presets: Mapping[str, Callable[..., nn.Module]] = NETWORKS,
) -> nn.Module:
    """Build a preset, or the network of a user's own factory.

    Args:
        name: a name of `presets`, or `"module:factory"`; modules are looked up in the working directory too.
        channels: of a cell.
        grid: number of points along the two lattice vectors.
        presets: factories by name.

    Returns:
        A module from `(batch, channel, x, y)` to `(batch, features)`.

    Raises:
        ValueError: if there is no such preset or factory, it fails, or the grid does not suit it.
    """
    if name in presets:
        return presets[name](channels, tuple(grid))
    module, _, factory = name.partition(":")
    if not factory:
        raise ValueError(f"unknown encoder {name!r}; there are {', '.join(presets)}, or your own as `module:factory`.")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(module), factory)
        network = make(channels, tuple(grid)) if callable(make) else None
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"the encoder {name!r} cannot be built: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"the encoder {name!r} must be a function that returns a `torch.nn.Module`, got {make!r}.")
    return network


def own_network(name: str, grid: tuple[int, int]) -> nn.Module | None:
    """Return the network of a user's own factory; None for the name of a preset, which needs no network given."""
    return None if name in NETWORKS else make_network(name, 1, grid)


AnyEncoder = TypeVar("AnyEncoder", bound="Encoder")


class Encoder(
    SavedModel, model_card_template=MODEL_CARD % "Encoder of photonic crystal cells", tags=["photonic-crystals", "essl"]
):
    """A network with the standardisation of its input; saved by `save_pretrained` as safetensors and JSON.

    Args:
        name: of the network: one of `NETWORKS`, or what a network of your own is to be called.
        channels: of a cell.
        grid: number of points along the two lattice vectors.
        permittivity_range: between which ε of the cells lies.
        network: the network itself where it is not one of the presets. Its weights are saved, its code is not: it has
            to be given again to `from_pretrained`.

    Attributes:
        features: number of features in the representation.
    """

    presets: Mapping[str, Callable[..., nn.Module]] = NETWORKS

    def __init__(
        self,
        name: str = "light",
        channels: int = 1,
        grid: Sequence[int] = (32, 32),
        permittivity_range: Sequence[float] = PERMITTIVITY_RANGE,
        network: nn.Module | None = None,
    ):
        super().__init__()
        self.name, self.channels, self.grid = name, channels, (grid[0], grid[1])
        self.permittivity_range = tuple(permittivity_range)
        self.standardise = STANDARDISATIONS.get(name, FixedRange)(permittivity_range)
        if network is None and name not in self.presets:
            raise ValueError(
                f"the network of the encoder {name!r} is not a preset, and has to be given: `encoder` of a command, "
                "`network` in Python."
            )
        self.network = self.presets[name](self.seen, self.grid) if network is None else network
        self.features = self._features()

    @classmethod
    def of(
        cls: type[AnyEncoder], name: str, channels: int = 1, grid: Sequence[int] = (32, 32), **standardisation: Any
    ) -> AnyEncoder:
        """Build an encoder with new weights; `name` is as for `make_network`, the rest as for the class."""
        network = None if name in cls.presets else make_network(name, channels, grid, cls.presets)
        return cls(name, channels, grid, **standardisation, network=network)

    def forward(self, epsilon: Float[Tensor, "batch channel x y"]) -> Float[Tensor, "batch {self.features}"]:
        """Return the representation of each cell, given its relative permittivity."""
        return self.network(self.standardise(epsilon))

    @property
    def seen(self) -> int:
        """Number of channels that the network sees."""
        return self.channels * self.standardise.copies

    def _features(self) -> int:
        cells = torch.zeros(2, self.seen, *self.grid)
        try:
            with evaluating(self.network):
                representation = self.network(cells)
        except Exception as error:  # whatever the user's code raises
            raise ValueError(
                f"the encoder `{self.name}` cannot be applied to cells of shape {tuple(cells.shape)}: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        if representation.ndim != 2:
            raise ValueError(
                f"the encoder `{self.name}` must return (batch, features), got {tuple(representation.shape)}."
            )
        return representation.shape[1]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, without gradients, and afterwards back into the mode that it was in."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def representations(encoder: nn.Module, batches: Iterable[Tensor]) -> Float[Tensor, "sample features"]:
    """Return the representations of samples by a frozen encoder, on the CPU.

    Args:
        encoder: on any device; its mode is put back.
        batches: what it sees at a time, shape `(batch, channel, x, y)` each.

    Raises:
        DivergenceError: if they are not finite.
    """
    weight = next(encoder.parameters())
    with evaluating(encoder):
        # Forward, not a call: what was compiled for the batches of training would be compiled anew for these.
        found = torch.cat([encoder.forward(batch.to(weight)).cpu() for batch in batches])
    if not torch.isfinite(found).all():
        raise DivergenceError("the encoder's representations are not finite: it has diverged")
    return found


def check_widths(name: str, widths: Sequence[int]) -> None:
    """Refuse widths of layers that are not positive, or none; raises `ValueError`."""
    if not len(widths) or min(widths) < 1:
        raise ValueError(f"`{name}` must be widths of layers, at least 1 each, got {list(widths)}.")


def multilayer(widths: Sequence[int], normalise: bool) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between; each may have a BatchNorm of its own before it.

    Args:
        widths: of the input, each hidden layer and the output.
        normalise: whether hidden layers are batch-normalised.
    """
    layers = []
    for inputs, outputs in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if normalise else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
