"""Encoders that are tried against the light one."""

import torch
from torch import Tensor, nn

from photonic_essl.encoders import light_network
from photonic_essl.standardisation import FixedRange, ScaleFree


class MeanPooled(nn.Module):
    """The light trunk, of which the head sees mean, maximum and standard deviation over the cell: no layout."""

    def __init__(self, channels: int, grid: tuple[int, int], features: int = 256):
        super().__init__()
        self.published, self.scale_free = FixedRange(), ScaleFree()
        self.trunk = light_network(ScaleFree.copies * channels, grid).trunk
        widths = 3 * self.trunk[-1].branch[-1].num_features
        self.head = nn.Sequential(nn.Linear(widths, features), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Return the representation of cells in the published range, `(batch, 1, x, y)`."""
        epsilon = self.published.lowest + x * (self.published.highest - self.published.lowest)
        maps = self.trunk(self.scale_free(epsilon).contiguous(memory_format=torch.channels_last))
        return self.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3)), maps.std((2, 3))], 1))
