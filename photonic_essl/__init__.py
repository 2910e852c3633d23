"""Equivariant self-supervised learning for photonic crystals: from unit cells to predicted densities of states."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from photonic_essl.explorer.command import explore
    from photonic_essl.finetuning import finetune
    from photonic_essl.metrics import relative_error
    from photonic_essl.prediction import evaluate, predict
    from photonic_essl.pretraining import pretrain
    from photonic_essl.published import import_encoder
    from photonic_essl.regression import load_regressor
    from photonic_essl.reporting import report

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

__all__ = [
    "bands",
    "encoders",
    "evaluate",
    "explore",
    "finetune",
    "import_encoder",
    "load_regressor",
    "metrics",
    "objectives",
    "plotting",
    "predict",
    "pretrain",
    "relative_error",
    "report",
    "symmetry",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: Lightning and its friends take seconds to import.
    if name in _HOMES:
        return getattr(importlib.import_module(f"photonic_essl.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"photonic_essl.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
