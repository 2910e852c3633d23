"""Encoders that were published with arXiv 2111.00899 (`rdangovs/essl`, photonics), as encoders of this package."""

import re
from collections.abc import Mapping
from pathlib import Path

from photonic_essl.encoders import Encoder
from photonic_essl.saving import one_line
from photonic_essl.torch_files import read_torch_file

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
    if Path(out).exists():
        raise FileExistsError(f"{out} exists; choose another folder.")
    held = read_torch_file(source)
    state = held.get("model_state_dict") if isinstance(held, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"{source} is no published checkpoint: it holds no `model_state_dict`.")
    encoder = Encoder("paper")
    try:
        encoder.load_state_dict({ours: value for key, value in state.items() if (ours := _our_key(str(key)))})
    except RuntimeError as error:
        raise ValueError(f"{source} holds an encoder of another architecture: {one_line(error)}") from None
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
