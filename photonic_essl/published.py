"""Encoders that were published with arXiv 2111.00899 (`rdangovs/essl`, photonics), as encoders of this package."""

import pickle
import re
from pathlib import Path

import torch

from photonic_essl.encoders import Encoder

_TRUNK = re.compile(r"(?:.*\.)?enc\.enc_block2d\.(.+)")
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
    if not Path(source).is_file():
        raise FileNotFoundError(f"no checkpoint at {source}")
    if Path(out).exists():
        raise FileExistsError(f"{out} exists; choose another folder.")
    try:
        held = torch.load(source, map_location="cpu", weights_only=True)
        state = held["model_state_dict"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError):
        raise ValueError(f"{source} is no published checkpoint: it holds no plain `model_state_dict`.") from None
    encoder = Encoder("paper")
    try:
        encoder.load_state_dict({ours: value for key, value in state.items() if (ours := _our_key(key))})
    except RuntimeError as error:
        raise ValueError(f"{source} holds an encoder of another architecture: {error}") from None
    encoder.eval().save_pretrained(out)
    print(f"Encoder written to {out}.")
    return encoder


def _our_key(key: str) -> str | None:
    """Return our name of one of their parameters; None for what is not the encoder's."""
    if match := _TRUNK.fullmatch(key):
        return f"network.trunk.{match[1]}"
    if match := _HEAD.fullmatch(key):
        return f"network.head.{int(match[1]) + 1}.{match[2]}"  # ours flattens first
    return None
