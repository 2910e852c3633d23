"""Random views of images, a whole batch at a time, each image with parameters of its own.

The order is that of the published code: crop and resize, flip, colour jitter, greyscale, blur, solarisation. One
difference to torchvision: the four parts of the jitter always come in the order brightness, contrast, saturation, hue.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ASPECT_RATIOS = (3 / 4, 4 / 3)
BLUR_RANGE = (0.1, 2.0)
"""Standard deviations of a blur, in pixels."""

_CANDIDATES = 10
"""How many boxes are tried; if none lies within the image, it is the largest in the middle, as in torchvision."""

_LUMINANCE = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """A random view of an image.

    Attributes:
        size: side of the view in pixels.
        scale: smallest and largest part of the image's area that is cropped.
        flip: probability of a mirror image.
        jitter: by how much brightness, contrast, saturation and hue change at most; hue in parts of the circle.
        jitter_probability: of a change of colours at all.
        greyscale: probability of losing the colours.
        blur: probability of a Gaussian blur, of 0.1 to 2 pixels.
        solarise: probability of inverting bright values.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 0.8
    greyscale: float = 0.0
    blur: float = 0.0
    solarise: float = 0.0

    def draw(self, count: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """Draw what decides the views of `count` images: quantiles in [0, 1), float32, a row for each.

        Args:
            count: how many.
            generator: source of random numbers, on `device`.
            device: where they are wanted.
        """
        return torch.rand(count, 4 * _CANDIDATES + 10, generator=generator, device=device, dtype=torch.float32)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the views of a batch of images that are all of one size.

        Args:
            images: values 0 … 1, shape `(batch, channel, row, column)`.
            draws: one row for each image, as by `draw`.

        Returns:
            Shape `(batch, channel, size, size)`.
        """
        return self.recoloured(self._cropped(images, self.boxes(draws, images.shape[2:])), draws)

    def boxes(self, draws: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the part of an image of this shape that each view shows: top, left, height, width, `(batch, 4)`."""
        height, width = shape
        area, ratio, top, left = draws[:, : 4 * _CANDIDATES].view(-1, 4, _CANDIDATES).unbind(1)
        area = height * width * _between(area, *self.scale)
        ratio = _between(ratio, *map(math.log, ASPECT_RATIOS)).exp()
        heights, widths = (area / ratio).sqrt(), (area * ratio).sqrt()
        fits = (heights <= height) & (widths <= width)
        first = fits.int().argmax(1, keepdim=True)
        box = torch.stack((top * (height - heights), left * (width - widths), heights, widths))
        return torch.where(fits.any(1), box.gather(2, first.expand(4, -1, -1))[..., 0], _middle(box, height, width)).T

    def _cropped(self, images: Tensor, boxes: Tensor) -> Tensor:
        top, left, height, width = boxes.to(images.dtype).unbind(1)
        rows = _interpolation(top, height, images.shape[2], self.size)
        columns = _interpolation(left, width, images.shape[3], self.size)
        with _full_precision(images):
            return rows[:, None] @ images @ columns[:, None].mT

    def recoloured(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return images that are cropped already, flipped and with other colours.

        Args:
            images: values 0 … 1, shape `(batch, channel, row, column)`.
            draws: one row for each image, as by `draw`.
        """
        flip, jitter, *changes, grey, blur, sigma, solarise = (
            draws[:, 4 * _CANDIDATES :, None, None].to(images.dtype).split(1, 1)
        )
        images = torch.where(flip < self.flip, images.flip(3), images)
        if any(self.jitter):
            images = torch.where(jitter < self.jitter_probability, self._jittered(images, changes), images)
        if self.greyscale:
            images = torch.where(grey < self.greyscale, luminance(images), images)
        if self.blur:
            sigma = torch.where(blur < self.blur, _between(sigma, *BLUR_RANGE), 0.0)
            with _full_precision(images):
                images = blurred(images, sigma.flatten())
        if self.solarise:
            images = torch.where((solarise < self.solarise) & (images >= 0.5), 1 - images, images)
        return images

    def _jittered(self, images: Tensor, quantiles: Sequence[Tensor]) -> Tensor:
        brightness, contrast, saturation = (
            _between(quantile, max(0.0, 1 - most), 1 + most) for quantile, most in zip(quantiles, self.jitter[:3])
        )
        images = (images * brightness).clamp(0, 1)
        mean = luminance(images).mean((2, 3), keepdim=True)
        images = mean.lerp(images, contrast).clamp(0, 1)
        if images.shape[1] == 1:
            return images
        images = luminance(images).lerp(images, saturation).clamp(0, 1)
        return hue_shifted(images, _between(quantiles[3], -self.jitter[3], self.jitter[3]))


def _full_precision(images: Tensor) -> torch.autocast:
    """Hold back the half precision that networks are trained in, which is too rough for boxes and kernels."""
    return torch.autocast(images.device.type, enabled=False)


def luminance(images: Tensor) -> Tensor:
    """Return how bright the points of images are, shape `(batch, 1, row, column)`; of grey ones, the images."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return _LUMINANCE[0] * red + _LUMINANCE[1] * green + _LUMINANCE[2] * blue


def hue_shifted(images: Tensor, shift: Tensor) -> Tensor:
    """Return colour images with their hues moved around the circle.

    Args:
        images: values 0 … 1, shape `(batch, 3, row, column)`.
        shift: in parts of the circle, shape `(batch, 1, 1, 1)`.
    """
    value, largest = images.max(1)
    spread = value - images.amin(1)
    red, green, blue = images.unbind(1)
    safe = torch.where(spread > 0, spread, 1.0)
    sextants = torch.stack(((green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4))
    hue = sextants.gather(0, largest[None])[0] + 6 * shift[:, 0]
    # Each channel is at the value, below it by the spread, or on a ramp between, depending on its distance in hue.
    channels = torch.arange(5, 0, -2, device=images.device, dtype=images.dtype)[:, None, None]
    distance = (channels + hue[:, None]) % 6
    return value[:, None] - spread[:, None] * torch.minimum(distance, 4 - distance).clamp(0, 1)


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Return images blurred by Gaussians of their own.

    Args:
        images: shape `(batch, channel, row, column)`.
        sigma: standard deviations in pixels, at most 2, shape `(batch,)`; 0 leaves an image as it is.
    """
    batch, channels, height, width = images.shape
    radius = min(math.ceil(3 * BLUR_RANGE[1]), height - 1, width - 1)
    offset = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.softmax(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]).square(), 1).to(images.dtype)
    kernel = kernel.repeat_interleave(channels, 0)[:, None, None]
    flat = functional.pad(images.reshape(1, batch * channels, height, width), [radius] * 4, mode="reflect")
    flat = functional.conv2d(flat, kernel, groups=batch * channels)
    return functional.conv2d(flat, kernel.transpose(2, 3), groups=batch * channels).view(images.shape)


def _between(quantile: Tensor, lowest: float, highest: float) -> Tensor:
    return lowest + quantile * (highest - lowest)


def _interpolation(start: Tensor, length: Tensor, points: int, size: int) -> Tensor:
    """Return how much each point of an image counts in each point of a view, along one axis: `(batch, size, points)`.

    Linear interpolation; where the view is coarser than the image, its triangle is as wide as to cover all points.
    """
    start, length = start[:, None, None], length[:, None, None]
    centre, place = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5 for count in (points, size))
    wanted = start + length * place[:, None] / size
    weights = (1 - (centre - wanted).abs() / (length / size).clamp(min=1)).clamp(min=0)
    weights = weights * ((centre >= start) & (centre <= start + length))
    return weights / weights.sum(2, keepdim=True)


def _middle(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the largest box in the middle whose shape is allowed, shape `(4, 1)`, like the boxes."""
    tall = min(height, width / ASPECT_RATIOS[0])
    wide = min(width, height * ASPECT_RATIOS[1])
    return torch.stack([boxes.new_full((1,), value) for value in ((height - tall) / 2, (width - wide) / 2, tall, wide)])


class Augmentations(NamedTuple):
    """What is used together.

    Attributes:
        first: makes the first view.
        second: makes the second view.
        copied: makes what is turned, for the turn to be predicted.
        labelled: makes what a classifier is trained on.
    """

    first: Augmentation
    second: Augmentation
    copied: Augmentation
    labelled: Augmentation


_STROKES = Augmentation(8, (0.4, 1.0), flip=0.0, jitter=(0.4, 0.4, 0.0, 0.0))
_SMALL = Augmentation(32, (0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), greyscale=0.2)
_LARGE = Augmentation(224, jitter=(0.4, 0.4, 0.2, 0.1), greyscale=0.2)

PUBLISHED_AUGMENTATIONS = {
    # Ours: the mirror image of a digit is none.
    "digits": Augmentations(_STROKES, _STROKES, _STROKES, Augmentation(8, (0.8, 1.0), flip=0.0)),
    "cifar10": Augmentations(_SMALL, _SMALL, replace(_SMALL, size=16), Augmentation(32)),
    "imagenet": Augmentations(
        replace(_LARGE, blur=1.0),
        replace(_LARGE, blur=0.1, solarise=0.2),
        replace(_LARGE, size=96, scale=(0.05, 0.14), blur=0.1),
        Augmentation(224),
    ),
}
"""By preset, as the code of arXiv 2111.00899 has them."""
