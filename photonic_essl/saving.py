"""Models as folders: settings in `config.json`, weights in `model.safetensors`, and a digest that both have to match.

The digest is in the header of the weights. It tells damage, and files of two models put together; it is no signature.
Nothing is unpickled, and no code that a folder names is run.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from data_gen.dataset import replaced_when_complete

SETTINGS, WEIGHTS, DIGEST = "config.json", "model.safetensors", "digest"

MODEL_CARD = """---
{{ card_data }}
---

%s, made by photonic_essl after [E-SSL](https://arxiv.org/abs/2111.00899).
`run.json`, where it is beside this file, says from what data and with what settings.
"""

Model = TypeVar("Model", bound="SavedModel")


class SavedModel(nn.Module, PyTorchModelHubMixin, library_name="photonic_essl"):
    """A model that `save_pretrained` writes to a folder, with a digest that is checked wherever it is loaded.

    Subclasses are built from settings that JSON can hold, and from `network`, a network of the user's own or None.
    """

    _hub_mixin_config: dict[str, Any]

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {
            name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in self.state_dict().items()
        }
        # safetensors' own `save_file` makes files that nobody else may read, and models travel between groups.
        with replaced_when_complete(save_directory / WEIGHTS) as partial:
            partial.write_bytes(save(weights, {DIGEST: digest(self._hub_mixin_config, weights)}))

    @classmethod
    def from_pretrained(
        cls: type[Model], path: str | Path, *, network: nn.Module | None = None, **download: Any
    ) -> Model:
        """Load a model from a folder, or from a repository of the Hugging Face hub.

        Args:
            path: the folder, or the name of the repository.
            network: the network of the encoder, where it is not one of the presets.
            download: options of `huggingface_hub.snapshot_download`, such as `revision`.

        Returns:
            The model on the CPU, in evaluation mode.

        Raises:
            FileNotFoundError: if there is no model.
            ValueError: if the model is damaged, or of another kind or architecture.
        """
        if not Path(path).is_dir():
            path = snapshot_download(str(path), allow_patterns=[SETTINGS, WEIGHTS], **download)
        return load_folder(cls, path, network)


def load_folder(kind: type[Model], path: str | Path, network: nn.Module | None = None) -> Model:
    """Load a model that was saved to a folder.

    Args:
        kind: of the model, such as `Encoder` or `Regressor`.
        path: the folder.
        network: the network of the encoder, where it is not one of the presets.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such folder, or no model in it.
        ValueError: if settings or weights are not those that were saved, or are of another kind or architecture.
    """
    noun = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()
    settings, weights = read_folder(path, noun)
    if set(settings) | {"network"} != set(inspect.signature(kind).parameters):
        raise ValueError(f"{path} holds no {noun}, or one of another version: its settings are {', '.join(settings)}.")
    settings["network"] = network
    try:
        if network is None:
            # Tried without memory first: the settings may claim any size, but for plane waves, which have a bound.
            with torch.device("meta"):
                kind(**settings).load_state_dict(weights, assign=True)
        model = kind(**settings)
        model.load_state_dict(weights)
    except Exception as error:
        raise ValueError(f"the {noun} in {path} cannot be loaded: {one_line(error)}") from error
    return model.eval()


def read_folder(path: str | Path, noun: str = "model") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings of a saved model, and its weights by name.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if they are not those that were saved together.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"{path} holds no saved {noun}: there is no such folder.")
    for file in (SETTINGS, WEIGHTS):
        if not (folder / file).is_file():
            hint = "; its run goes on by the same command" if (folder / "run.json").exists() else ""
            raise FileNotFoundError(f"{path} holds no saved {noun}: there is no {file}{hint}.")
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, "pt") as file:
            saved = (file.metadata() or {}).get(DIGEST)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = digest(settings, weights)
    except Exception as error:  # whatever the readers of either format raise
        raise ValueError(f"the {noun} in {path} is damaged: {one_line(error)}.") from error
    if saved is None:
        raise ValueError(f"the {noun} in {path} has no digest: it is damaged, or was saved by something else.")
    if found != saved:
        raise ValueError(f"the {noun} in {path} is damaged: settings and weights are not those saved together.")
    return settings, weights


def digest(settings: Any, weights: Mapping[str, Tensor] = MappingProxyType({})) -> str:
    """Return the SHA-256 of settings, as JSON holds them, and of the names, dtypes, shapes and bytes of weights."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in sorted(weights.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def one_line(error: Exception) -> str:
    """Return what an error says, on one line, as torch does not."""
    return " ".join(str(error).split())


def weights_fingerprint(module: nn.Module) -> str:
    """Return a short hash of a module's weights, the same for equal weights."""
    return digest(None, module.state_dict())[:16]
