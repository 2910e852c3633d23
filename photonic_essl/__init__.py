"""Equivariant self-supervised learning for photonic crystals: from unit cells to predicted densities of states."""

import importlib
from typing import Any

_HOMES = {
    "pretrain": "pretraining",
    "finetune": "finetuning",
    "evaluate": "prediction",
    "predict": "prediction",
    "report": "reporting",
    "load_regressor": "regression",
    "import_encoder": "published",
    "explore": "explorer.command",
    "relative_error": "metrics",
}
_MODULES = ("symmetry", "encoders", "objectives", "metrics", "bands", "plotting")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: Lightning and its friends take seconds to import.
    if name in _HOMES:
        return getattr(importlib.import_module(f"photonic_essl.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"photonic_essl.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
