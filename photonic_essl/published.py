"""Encoders that were published with arXiv 2111.00899 (`rdangovs/essl`, photonics), as encoders of this package."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from photonic_essl.encoders import Encoder
from photonic_essl.saving import one_line
from photonic_essl.torch_files import read_torch_file

_TRUNK = re.compile(r"(?:.*\.)?enc\.enc_block2d\.(\d+)\.(.+)")
_HEAD = re.compile(r"(?:.*\.)?enc\.fcpart\.(\d+)\.(.+)")


def import_encoder(source: str | Path, /, *, out: str | Path) -> Encoder:
    """Turn a published encoder (`*.pt`) into the folder of a pre-trained `paper` encoder.

    The file is read without running any code that it may hold.

    Args:
        source: checkpoint with `model_state_dict`, keys `enc.enc_block2d.*` and `enc.fcpart.*`.
        out: folder to write, for `finetune --pretrained`.

    Returns:
        The encoder.

    Raises:
        FileNotFoundError: if there is no such file.
        FileExistsError: if the folder exists.
        ValueError: if the file holds something else.
    """
    if Path(out).exists():
        raise FileExistsError(f"{out} exists; choose another folder.")
    held = read_torch_file(source)
    state = held.get("model_state_dict") if isinstance(held, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"{source} is no published checkpoint: it holds no `model_state_dict`.")
    encoder = Encoder("paper")
    convolutions = _with_biases(encoder)
    try:
        encoder.load_state_dict({ours: value for key, value in state.items() if (ours := _our_key(str(key)))})
    except RuntimeError as error:
        raise ValueError(f"{source} holds an encoder of another architecture: {one_line(error)}") from None
    _fold_biases(encoder, convolutions)
    encoder.eval().save_pretrained(out)
    print(f"Encoder written to {out}.")
    return encoder


def _with_biases(encoder: Encoder) -> list[nn.Conv2d]:
    """Give the encoder's convolutions the biases that theirs have, and return them."""
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    for convolution in convolutions:
        convolution.register_parameter("bias", nn.Parameter(torch.zeros(convolution.out_channels)))
    return convolutions


def _fold_biases(encoder: Encoder, convolutions: list[nn.Conv2d]) -> None:
    """Take biases off convolutions, and from the means that batch normalisation subtracts after them."""
    normalisations = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
    for convolution, normalisation in zip(convolutions, normalisations):
        normalisation.get_buffer("running_mean").sub_(convolution.get_parameter("bias").detach())
        convolution.register_parameter("bias", None)


def _our_key(key: str) -> str | None:
    """Return our name of one of their parameters; None for what is not the encoder's."""
    if match := _TRUNK.fullmatch(key):
        stage, place = divmod(int(match[1]), 4)  # theirs normalises, rectifies and pools one after the other
        return f"network.trunk.{3 * stage + place}{'.0' if place else ''}.{match[2]}"
    if match := _HEAD.fullmatch(key):
        return f"network.head.{int(match[1]) + 1}.{match[2]}"  # ours flattens first
    return None
