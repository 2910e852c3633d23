"""Labelled images, in memory or in files, and random views of them.

Small ones lie in memory, and are augmented on the device, a batch at a time. Files are decoded, cropped and resized by
worker processes, which is where a processor's time goes; the rest of their augmentation happens on the device as well.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from photonic_essl.distributed import own_part, processes
from photonic_essl.training import derived_seed
from photonic_essl.vision.augmentation import Augmentation

VISIBLE_PART = 224 / 256
"""Of the shorter side of a file's image: what is seen of it, in the middle, where nothing is random."""


@dataclass(frozen=True)
class MemoryImages:
    """Images in memory.

    Attributes:
        pixels: values 0 … 255, shape `(image, channel, row, column)`, uint8.
        labels: numbers of classes, shape `(image,)`, int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of colours."""
        return self.pixels.shape[1]

    @property
    def fingerprint(self) -> str:
        """A hash of pixels and labels, the same for equal contents."""
        return hashlib.sha256(self.pixels.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()[:16]

    def subset(self, rows: Tensor) -> "MemoryImages":
        """Return some of the images, in the order of their numbers."""
        return MemoryImages(self.pixels[rows], self.labels[rows])

    def batches(self, size: int, batch_size: int = 256) -> Iterator[Tensor]:
        """Give the images as they are, values 0 … 1, shape `(batch, channel, size, size)`, float32.

        Raises:
            ValueError: if they have another size.
        """
        height, width = self.pixels.shape[2:]
        if (height, width) != (size, size):
            raise ValueError(f"images of {height} × {width} points do not suit a model of {size} × {size}.")
        return (batch.float() / 255 for batch in self.pixels.split(batch_size))

    def augmented(
        self, batches: Sequence[Tensor], augmentations: Sequence[Augmentation], seed: int, device: torch.device
    ) -> Iterator[list[Tensor]]:
        """Give random views of the images of each batch.

        Args:
            batches: numbers of the images in each, all processes' together.
            augmentations: what makes the views.
            seed: of all of them together.
            device: where they are wanted.

        Returns:
            For each batch a tensor `(image, channel, size, size)` for each augmentation, of this process's images.
        """
        pixels = self.pixels.to(device)
        generator = torch.Generator(device)
        for number, rows in enumerate(batches):
            generator.manual_seed(derived_seed(seed, number))
            part = own_part(len(rows))
            images = pixels[rows[part].to(device)].float() / 255
            yield [
                augmentation.apply(images, augmentation.draw(len(rows), generator, device)[part])
                for augmentation in augmentations
            ]


@dataclass(frozen=True)
class FileImages:
    """Images in files, decoded when they are needed.

    Attributes:
        files: where they are.
        labels: numbers of classes, shape `(image,)`, int64.
    """

    files: tuple[Path, ...]
    labels: Tensor
    channels = 3

    def __len__(self) -> int:
        return len(self.files)

    @property
    def fingerprint(self) -> str:
        """A hash of names, sizes and labels of the files, the same for equal ones."""
        facts = [f"{'/'.join(file.parts[-2:])} {file.stat().st_size}" for file in self.files]
        return hashlib.sha256("\n".join(facts).encode() + self.labels.numpy().tobytes()).hexdigest()[:16]

    def subset(self, rows: Tensor) -> "FileImages":
        """Return some of the images, in the order of their numbers."""
        return FileImages(tuple(self.files[row] for row in rows.tolist()), self.labels[rows])

    def batches(self, size: int, batch_size: int = 256) -> Iterator[Tensor]:
        """Give what is in the middle of the images, values 0 … 1, shape `(batch, 3, size, size)`, float32.

        Raises:
            ValueError: if a file is damaged.
        """
        groups = [self.files[start : start + batch_size] for start in range(0, len(self), batch_size)]
        return (pixels.float() / 255 for pixels in _on_workers(functools.partial(_centred, size=size), groups))

    def augmented(
        self, batches: Sequence[Tensor], augmentations: Sequence[Augmentation], seed: int, device: torch.device
    ) -> Iterator[list[Tensor]]:
        """Give random views of the images of each batch, as `MemoryImages.augmented`.

        Raises:
            ValueError: if a file is damaged.
        """
        tasks = []
        for number, rows in enumerate(batches):
            part = own_part(len(rows))
            files = [self.files[row] for row in rows[part].tolist()]
            tasks.append((files, len(rows), part, derived_seed(seed, number)))
        for views in _on_workers(functools.partial(_cropped, augmentations=augmentations), tasks):
            yield [
                augmentation.recoloured(
                    crops.to(device, non_blocking=True).float() / 255, draws.to(device, non_blocking=True)
                )
                for augmentation, (crops, draws) in zip(augmentations, views)
            ]


class _Tasks(Dataset[Any]):
    """A function over a list of arguments; what goes wrong with a file comes back as the line that says so."""

    def __init__(self, function: Callable[[Any], Any], tasks: Sequence[Any]):
        self.function, self.tasks = function, tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.function(self.tasks[number])
        except _DamagedFileError as damage:
            return str(damage)


class _DamagedFileError(ValueError):
    pass


def _on_workers(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
    """Give the results of a function for each task in order, computed ahead by worker processes."""
    workers = max(1, len(os.sched_getaffinity(0)) // processes())
    loader = DataLoader(
        _Tasks(function, tasks),
        batch_size=None,
        num_workers=min(workers, len(tasks)),
        pin_memory=torch.cuda.is_available(),
    )
    results = iter(loader)
    for left in reversed(range(len(tasks))):
        result = next(results)
        if not left or isinstance(result, str):
            del results  # ends the processes; the garbage collector would first take the queue that tells them to
        if isinstance(result, str):
            raise ValueError(result)
        yield result


def _decoded(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise _DamagedFileError(f"{file} is damaged, or no image.") from None


def _pixels(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> Tensor:
    """Return what is in a box (left, top, right, bottom) as uint8, shape `(3, size, size)`."""
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BICUBIC, box))).permute(2, 0, 1)


def _centred(files: Sequence[Path], size: int) -> Tensor:
    views = []
    for file in files:
        image = _decoded(file)
        side = VISIBLE_PART * min(image.size)
        left, top = ((points - side) / 2 for points in image.size)
        views.append(_pixels(image, size, (left, top, left + side, top + side)))
    return torch.stack(views)


def _cropped(
    task: tuple[Sequence[Path], int, slice, int], augmentations: Sequence[Augmentation]
) -> list[tuple[Tensor, Tensor]]:
    """Return crops, uint8, and the draws that decide what else becomes of them, for each augmentation."""
    files, total, part, seed = task
    generator = torch.Generator().manual_seed(seed)
    draws = [augmentation.draw(total, generator)[part] for augmentation in augmentations]
    crops: list[list[Tensor]] = [[] for _ in augmentations]
    for row, file in enumerate(files):
        image = _decoded(file)
        for augmentation, drawn, views in zip(augmentations, draws, crops):
            top, left, height, width = augmentation.boxes(drawn[row : row + 1], image.size[::-1])[0].tolist()
            right, bottom = min(left + width, image.size[0]), min(top + height, image.size[1])
            views.append(_pixels(image, augmentation.size, (left, top, right, bottom)))
    return [(torch.stack(views), drawn) for views, drawn in zip(crops, draws)]


Images = MemoryImages | FileImages
