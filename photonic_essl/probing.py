"""How good a representation is while it is being learnt: regression from it, frozen, of the density of states."""

from typing import Any

import numpy as np
import pytorch_lightning as lightning
from torch import nn

from photonic_essl.data import LabelledCells
from photonic_essl.encoders import representations
from photonic_essl.metrics import empty_lattice, relative_error
from photonic_essl.training import SeededModule


class Monitor(lightning.Callback):
    """How good the representation of a module's `encoder` is so far. Subclasses give `scores(encoder)`.

    Args:
        every: epochs between looks at it; after the last epoch it is always looked at.

    Attributes:
        last: the latest scores, by name.
    """

    def __init__(self, every: int):
        if every < 1:
            raise ValueError(f"`probe_every` must be at least 1, got {every}.")
        self.every = every
        self.last: dict[str, float] = {}

    def scores(self, encoder: nn.Module) -> dict[str, float]:
        """Return what is measured of an encoder, by name."""
        raise NotImplementedError

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: SeededModule) -> None:
        """Score the representation, and log the scores."""
        module.check_finite()
        epoch = trainer.current_epoch + 1
        if epoch % self.every == 0 or epoch == module.epochs:
            self.last = self.scores(module.get_submodule("encoder"))
            module.report(**self.last)

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a stop."""
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what survived a stop."""
        self.last = state["last"]


class Probe(Monitor):
    """Ridge regression of the density of states from the representation, frozen.

    Args:
        cells: labelled cells; the first half is fitted, the second scored.
        every: epochs between probes.
    """

    def __init__(self, cells: LabelledCells, every: int):
        super().__init__(every)
        if len(cells) < 4:
            raise ValueError(f"a probe needs at least 4 labelled cells, got {len(cells)}.")
        self.cells = cells

    def scores(self, encoder: nn.Module) -> dict[str, float]:
        """Return the relative error of the probe."""
        return {"probe_relative_error": probe_error(encoder, self.cells)}


def probe_error(encoder: nn.Module, cells: LabelledCells) -> float:
    """Return the relative error of a ridge regression from the frozen representation, as a fraction.

    Args:
        encoder: on any device.
        cells: labelled cells; the first half is fitted, the second scored.
    """
    from sklearn.linear_model import RidgeCV  # takes a second and 50 MB to import, for runs that are probed alone

    features = representations(encoder, cells.epsilon.split(512)).double().numpy()
    half = len(cells) // 2
    mean, deviation = features[:half].mean(0), features[:half].std(0) + 1e-6
    features = (features - mean) / deviation
    difference = cells.dos.numpy() - empty_lattice()[: cells.dos.shape[1]]
    ridge = RidgeCV(alphas=np.logspace(-2, 4, 13)).fit(features[:half], difference[:half])
    predicted = ridge.predict(features[half:]) + empty_lattice()[: cells.dos.shape[1]]
    return relative_error(predicted, cells.dos[half:])
