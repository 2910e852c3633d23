"""Encoders of images: torchvision's ResNets, under its names for their weights, and a small one for the digits."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock, ResNet

from photonic_essl.encoders import Encoder, make_network
from photonic_essl.saving import MODEL_CARD, load_folder, read_folder


def imagenet_resnet18(channels: int = 3, grid: tuple[int, int] = (224, 224)) -> ResNet:
    """Return torchvision's ResNet-18 without its classifier: 512 features."""
    return _headless(resnet18(zero_init_residual=True), channels)


def imagenet_resnet50(channels: int = 3, grid: tuple[int, int] = (224, 224)) -> ResNet:
    """Return torchvision's ResNet-50 without its classifier: 2048 features."""
    return _headless(resnet50(zero_init_residual=True), channels)


def cifar_resnet18(channels: int = 3, grid: tuple[int, int] = (32, 32)) -> ResNet:
    """Return ResNet-18 for small images, without its classifier: a first convolution of 3 × 3, and no pooling after."""
    network = _headless(resnet18(), channels)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


def small_resnet(channels: int = 1, grid: tuple[int, int] = (8, 8), width: int = 24) -> nn.Sequential:
    """Return three of torchvision's residual blocks, the later ones at half the resolution each: 4 · width features."""
    stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    blocks = [BasicBlock(width, width)]
    for inputs, outputs in ((width, 2 * width), (2 * width, 4 * width)):
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))
        blocks.append(BasicBlock(inputs, outputs, stride=2, downsample=shortcut))
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU(inplace=True), *blocks, *pooled)


def _headless(network: ResNet, channels: int) -> ResNet:
    network.fc = nn.Identity()
    if channels != network.conv1.in_channels:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network


BACKBONES = {
    "small": small_resnet,
    "resnet18-cifar": cifar_resnet18,
    "resnet18": imagenet_resnet18,
    "resnet50": imagenet_resnet50,
}


class ImageEncoder(Encoder, model_card_template=MODEL_CARD % "Encoder of images", tags=["vision", "essl"]):
    """A network with the standardisation of its images; saved by `save_pretrained` as safetensors and JSON.

    Args:
        name: of the network: one of `BACKBONES`, or what a network of your own is to be called.
        channels: number of colours.
        grid: rows and columns of the images that it is trained on; others may be seen by a network that pools.
        mean: of the values 0 … 1, in each channel.
        deviation: of the values, in each channel.
        network: the network itself where it is not one of `BACKBONES`; its code is not saved.
    """

    presets = BACKBONES
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        name: str = "small",
        channels: int = 1,
        grid: Sequence[int] = (8, 8),
        mean: Sequence[float] = (0.0,),
        deviation: Sequence[float] = (1.0,),
        network: nn.Module | None = None,
    ):
        super().__init__(name, channels, grid, network=network)
        # Channels last is the layout that convolutions are fastest in, on CPUs as on GPUs.
        self.network.to(memory_format=torch.channels_last)
        for key, value in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(key, torch.tensor(value)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the representation of each image.

        Args:
            images: values 0 … 1, shape `(batch, channel, row, column)`.

        Returns:
            Shape `(batch, features)`.
        """
        standard = (images - self.mean) / self.deviation
        return self.network(standard.to(memory_format=torch.channels_last))


def load_encoder(path: str | Path, factory: str | None = None) -> ImageEncoder:
    """Load an encoder that `pretrain` or `import_encoder` wrote.

    Args:
        path: its folder.
        factory: of its network as `module:factory`, where it is not one of `BACKBONES`.

    Returns:
        The encoder on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such folder, or no encoder in it.
        ValueError: if what is there is something else, or there is no such factory.
    """
    if factory is None:
        return load_folder(ImageEncoder, path)
    settings, _ = read_folder(path, "image encoder")
    network = make_network(factory, settings["channels"], settings["grid"], BACKBONES)
    return load_folder(ImageEncoder, path, network)
