"""How good a representation is while it is being learnt: regression from it, frozen, of the density of states."""

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from photonic_essl.data import Cells
from photonic_essl.encoders import Encoder
from photonic_essl.metrics import empty_lattice, relative_error
from photonic_essl.training import SeededModule


class Probe(lightning.Callback):
    """How good the representation is so far: ridge regression of the density of states from it, frozen.

    Args:
        cells: labelled cells; the first half is fitted, the second scored.
        every: epochs between probes; the last epoch is always probed.

    Attributes:
        last: the latest error, by name.
    """

    def __init__(self, cells: Cells, every: int):
        if every < 1:
            raise ValueError(f"`probe_every` must be at least 1, got {every}.")
        if len(cells) < 4:
            raise ValueError(f"a probe needs at least 4 labelled cells, got {len(cells)}.")
        self.cells, self.every = cells, every
        self.last: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: SeededModule) -> None:
        """Score the representation, and log the error."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every == 0 or epoch == trainer.max_epochs:
            self.last = {"probe_relative_error": probe_error(module.encoder, self.cells)}
            module.report(**self.last)


def probe_error(encoder: Encoder, cells: Cells) -> float:
    """Return the relative error of a ridge regression from the frozen representation, as a fraction.

    Args:
        encoder: on any device.
        cells: labelled cells; the first half is fitted, the second scored.
    """
    from sklearn.linear_model import RidgeCV  # takes a second and 50 MB to import, for runs that are probed alone

    features = representations(encoder, cells.epsilon)
    half = len(cells) // 2
    mean, deviation = features[:half].mean(0), features[:half].std(0) + 1e-6
    features = (features - mean) / deviation
    difference = cells.dos.numpy() - empty_lattice()[: cells.dos.shape[1]]
    ridge = RidgeCV(alphas=np.logspace(-2, 4, 13)).fit(features[:half], difference[:half])
    predicted = ridge.predict(features[half:]) + empty_lattice()[: cells.dos.shape[1]]
    return relative_error(predicted, cells.dos[half:])


def representations(encoder: nn.Module, epsilon: Tensor, batch_size: int = 512) -> np.ndarray:
    """Return the representations of cells by a frozen encoder, shape `(sample, features)`, float64.

    Args:
        encoder: on any device; its mode is put back.
        epsilon: shape `(sample, channel, x, y)`.
        batch_size: cells at a time.
    """
    training, weight = encoder.training, next(encoder.parameters())
    encoder.eval()
    with torch.no_grad():
        parts = [encoder(batch.to(weight)).double().cpu() for batch in epsilon.split(batch_size)]
    encoder.train(training)
    return torch.cat(parts).numpy()
