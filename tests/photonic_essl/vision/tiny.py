from torch import nn


def network(channels, grid):
    """A network of a user's own that takes images of any size and sees which way up they are."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, 16), nn.BatchNorm1d(16))
