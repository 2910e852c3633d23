"""What networks see of a cell's permittivity ε, in numbers of order one."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

PERMITTIVITY_RANGE = (1.0, 20.0)

_Cells = Float[Tensor, "batch channel x y"]


class FixedRange(nn.Module):
    """ε, scaled so that the lowest and the highest it may be become 0 and 1, as published (arXiv 2111.00899).

    Args:
        permittivity_range: the lowest and the highest ε.
    """

    copies = 1
    """How many channels each channel becomes."""

    def __init__(self, permittivity_range: Sequence[float] = PERMITTIVITY_RANGE):
        super().__init__()
        self.lowest, self.highest = permittivity_range
        self.scope = f"ε from {self.lowest:g} to {self.highest:g}"

    def forward(self, epsilon: _Cells) -> _Cells:
        """Return what a network sees of cells."""
        return (epsilon - self.lowest) / (self.highest - self.lowest)

    def outside(self, epsilon: _Cells) -> Bool[Tensor, " batch"]:
        """Return which cells lie outside of what this is made for."""
        return ((epsilon < self.lowest) | (epsilon > self.highest)).flatten(1).any(1)


class ScaleFree(nn.Module):
    """ε over its mean, and the logarithm of that: what no factor of ε changes.

    ε → s·ε sends ω → ω/√s, and so leaves the density of states over scaled frequency as it is. A network that sees only
    what is left of ε knows this without having to learn it.

    Args:
        permittivity_range: the lowest and the highest ε, which bound the contrast.
    """

    copies = 2

    def __init__(self, permittivity_range: Sequence[float] = PERMITTIVITY_RANGE):
        super().__init__()
        self.contrast = permittivity_range[1] / permittivity_range[0]
        self.scope = f"a contrast of ε of {self.contrast:g} at most"

    def forward(self, epsilon: _Cells) -> Float[Tensor, "batch channels x y"]:
        """Return what a network sees of cells."""
        relative = epsilon / epsilon.mean((2, 3), keepdim=True)
        return torch.cat([(relative - 1) / 2, relative.log()], 1)

    def outside(self, epsilon: _Cells) -> Bool[Tensor, " batch"]:
        """Return which cells lie outside of what this is made for."""
        values = epsilon.flatten(1)
        return values.amax(1) > self.contrast * values.amin(1) * (1 + 1e-6)
