"""Weights under torchvision's names: published with arXiv 2111.00899 (`resnet50.pth`), and ours for others to load."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from photonic_essl.saving import load_folder, one_line
from photonic_essl.torch_files import read_torch_file
from photonic_essl.vision.backbones import ImageEncoder
from photonic_essl.vision.datasets import STANDARDISATIONS

_PRESETS = {
    "resnet18-cifar": ("cifar10", (32, 32)),
    "resnet18": ("imagenet", (224, 224)),
    "resnet50": ("imagenet", (224, 224)),
}


def import_encoder(source: str | Path, /, *, out: str | Path) -> ImageEncoder:
    """Turn a file of torchvision-named ResNet weights into the folder of a pre-trained encoder.

    The file is read without running any code that it may hold.

    Args:
        source: a state dict of torchvision's ResNet-18 or ResNet-50, or the published layout, which has it as
            `backbone`; a classifier, `fc`, is left out.
        out: folder to write, for probe and finetune.

    Returns:
        The encoder.

    Raises:
        FileNotFoundError: if there is no such file.
        FileExistsError: if the folder exists.
        ValueError: if the file holds something else.
    """
    if Path(out).exists():
        raise FileExistsError(f"{out} exists; choose another folder.")
    weights = _read(source)
    name = "resnet50" if "layer1.0.conv3.weight" in weights else "resnet18"
    if name == "resnet18" and weights["conv1.weight"].shape[2] == 3:
        name = "resnet18-cifar"
    preset, grid = _PRESETS[name]
    encoder = ImageEncoder(name, weights["conv1.weight"].shape[1], grid, *STANDARDISATIONS[preset])
    try:
        encoder.network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{source} holds no {name} of torchvision's: {one_line(error)}") from None
    encoder.eval().save_pretrained(out)
    print(f"Encoder {name} written to {out}.")
    return encoder


def _read(source: str | Path) -> dict[str, Tensor]:
    held = read_torch_file(source)
    state = held.get("backbone", held) if isinstance(held, Mapping) else {}
    stem = state.get("conv1.weight") if isinstance(state, Mapping) else None
    if not isinstance(stem, Tensor) or stem.ndim != 4:
        raise ValueError(f"{source} holds no weights of a ResNet under torchvision's names: there is no conv1.weight.")
    return {str(name): value for name, value in state.items() if not str(name).startswith("fc.")}


def export_encoder(model: str | Path, *, out: str | Path) -> None:
    """Write the weights of a pre-trained ResNet in the published layout, for torchvision to load.

    `network.load_state_dict(torch.load(out, weights_only=True)["backbone"])`, where `network.fc = nn.Identity()`.

    Args:
        model: folder of a pre-trained encoder.
        out: file to write.

    Raises:
        FileNotFoundError: if there is no model in the folder.
        FileExistsError: if the file exists.
        ValueError: if the model is no ResNet of torchvision's.
    """
    if Path(out).exists():
        raise FileExistsError(f"{out} exists; choose another file.")
    encoder = load_folder(ImageEncoder, model)
    if encoder.name not in _PRESETS:
        raise ValueError(f"{model} holds the encoder `{encoder.name}`, which torchvision does not have.")
    torch.save({"backbone": encoder.network.state_dict()}, out)
    print(f"Weights of {encoder.name} written to {out}.")
