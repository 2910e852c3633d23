"""What a physicist would try first: the empty lattice, nearest neighbour, and regression on low Fourier coefficients.

The density of states over *scaled* frequency changes neither when the cell is translated, rotated or mirrored, nor when
ε is multiplied by a factor. To be fair, the baselines know all of it, which is more than the networks are told:

- all see ε divided by its mean;
- the nearest neighbour is the nearest over all translations (by whole pixels of a 16 × 16 grid), rotations and mirrors;
- features are the moduli of the Fourier coefficients with |n| ≤ 4, which no translation changes, sorted within each
  orbit of the square's point group, and quantiles of the values of ε. The phases, and so part of the shape, are lost.

Settings are chosen on the validation split. Ridge regression, random forest and Gaussian process predict the
difference from the empty lattice, as the networks do; the last two through its principal components.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import avg_pool2d

from photonic_essl.data import LabelledCells
from photonic_essl.finetuning import regression_recipe, split
from photonic_essl.metrics import PREDICTED, empty_lattice, relative_error
from photonic_essl.plane_waves import PlaneWaves

FEW_LABELS, PLANE_WAVES = "few-labels", "plane-waves"
HIGHEST_ORDER = 4
QUANTILES = np.linspace(0, 1, 9)
COMPONENTS = 20
CELLS_FOR_KERNEL = 400
"""The kernel's parameters are fitted to at most so many cells; the prediction uses all of them."""

RIDGE_PENALTIES = np.logspace(-2, 4, 13)
LEAF_SIZES = (1, 3, 10)
TREES = 200
NEIGHBOUR_PIXELS = 16


class Model(Protocol):
    """What every baseline and every regressor can do."""

    def predict(self, epsilon: Tensor) -> ArrayLike:
        """Return the densities of states of cells `(sample, x, y)` as `(sample, 400)`."""


class EmptyLattice:
    """The density of states of a uniform cell, whatever the cell."""

    def predict(self, epsilon: Tensor) -> np.ndarray:
        return np.tile(empty_lattice()[:PREDICTED], (len(epsilon), 1))


class UncorrectedPlaneWaves:
    """The first approximation of the recipe `few-labels`, which needs no labels."""

    def __init__(self, training: LabelledCells):
        cutoff = regression_recipe(FEW_LABELS, "none")["plane_waves"]
        self.approximate = PlaneWaves(cutoff, training.grid, training.lattice)

    def predict(self, epsilon: Tensor) -> np.ndarray:
        return empty_lattice()[:PREDICTED] + self.approximate(epsilon[:, None]).numpy()


def point_group_copies(cells: np.ndarray) -> Iterator[np.ndarray]:
    """Give the 8 copies of cells `(..., n, n)` under the point group of the square."""
    for turns in range(4):
        turned = np.rot90(cells, turns, (-2, -1))
        yield turned
        yield turned[..., ::-1]


class NearestNeighbour:
    """The label of the training cell that is nearest in ε over its mean, over all symmetric copies."""

    def __init__(self, training: LabelledCells):
        copies = torch.cat([torch.from_numpy(copy.copy()) for copy in point_group_copies(coarse(training.epsilon))])
        self.spectra, self.squares = torch.fft.rfft2(copies), copies.square().sum((1, 2))
        self.dos = training.dos.numpy()

    def predict(self, epsilon: Tensor) -> np.ndarray:
        nearest = [self._nearest(cell) for cell in torch.from_numpy(coarse(epsilon[:, None]))]
        return self.dos[nearest]

    def _nearest(self, cell: Tensor) -> int:
        overlap = torch.fft.irfft2(self.spectra.conj() * torch.fft.rfft2(cell), s=cell.shape)
        distance = self.squares - 2 * overlap.amax((1, 2))
        return int(distance.argmin()) % len(self.dos)


class OnFeatures:
    """A regressor of scikit-learn, from invariant features to the difference from the empty lattice."""

    def __init__(self, regressor: Any, training: LabelledCells):
        self.regressor = make_pipeline(StandardScaler(), regressor)
        self.regressor.fit(features(training.epsilon), training.dos.numpy() - empty_lattice()[:PREDICTED])

    def predict(self, epsilon: Tensor) -> np.ndarray:
        return empty_lattice()[:PREDICTED] + self.regressor.predict(features(epsilon[:, None]))


class OnComponents(RegressorMixin, BaseEstimator):
    """A regressor of scikit-learn that predicts the principal components of the training targets."""

    def __init__(self, regressor: Any, cells_for_kernel: int | None = None):
        self.regressor, self.cells_for_kernel = regressor, cells_for_kernel

    def fit(self, inputs: np.ndarray, targets: np.ndarray) -> "OnComponents":
        """Fit to inputs `(sample, feature)` and targets `(sample, 400)`."""
        self.components_ = PCA(min(COMPONENTS, len(targets))).fit(targets)
        wanted = self.components_.transform(targets)
        self.scale_ = wanted.std(0).max() + 1e-12
        wanted = wanted / self.scale_
        if self.cells_for_kernel and len(inputs) > self.cells_for_kernel:
            self.regressor.fit(inputs[: self.cells_for_kernel], wanted[: self.cells_for_kernel])
            self.regressor.set_params(kernel=self.regressor.kernel_, optimizer=None)
        self.regressor.fit(inputs, wanted)
        return self

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return targets `(sample, 400)`."""
        found = self.regressor.predict(inputs).reshape(len(inputs), -1)
        return self.components_.inverse_transform(self.scale_ * found)


def coarse(epsilon: Tensor) -> np.ndarray:
    """Return ε over its mean on a coarse grid, `(sample, 16, 16)`."""
    cells = epsilon / epsilon.mean((2, 3), keepdim=True)
    return avg_pool2d(cells, cells.shape[2] // NEIGHBOUR_PIXELS)[:, 0].numpy()


def features(epsilon: Tensor) -> np.ndarray:
    """Return features of cells `(sample, 1, x, y)` that no symmetry of the square lattice changes, `(sample, feature)`.

    Moduli of low Fourier coefficients of ε over its mean, sorted within orbits of the point group, and quantiles of
    the logarithm of ε over its mean.
    """
    cells = (epsilon / epsilon.mean((2, 3), keepdim=True))[:, 0].double().numpy()
    moduli = np.abs(np.fft.fft2(cells)) / cells[0].size
    orbits = []
    for first in range(1, HIGHEST_ORDER + 1):
        for second in range(first + 1):
            signs = [(x, y) for x in (first, -first) for y in (second, -second)]
            orbit = sorted({*signs, *((y, x) for x, y in signs)})
            orbits.append(np.sort(moduli[:, [x for x, _ in orbit], [y for _, y in orbit]], axis=1))
    quantiles = np.quantile(np.log(cells), QUANTILES, axis=(1, 2)).T
    return np.concatenate([*orbits, quantiles], axis=1)


def ridge(training: LabelledCells, validation: LabelledCells, seed: int) -> Model:
    """Return the ridge regression whose penalty is the best on validation."""
    return best([OnFeatures(Ridge(alpha=penalty), training) for penalty in RIDGE_PENALTIES], validation)


def random_forest(training: LabelledCells, validation: LabelledCells, seed: int) -> Model:
    """Return the random forest whose leaf size is the best on validation."""
    forests = [
        RandomForestRegressor(TREES, min_samples_leaf=size, max_features=1 / 3, random_state=seed)
        for size in LEAF_SIZES
    ]
    return best([OnFeatures(OnComponents(forest), training) for forest in forests], validation)


def gaussian_process(training: LabelledCells, validation: LabelledCells, seed: int) -> Model:
    """Return a Gaussian process whose kernel maximises the likelihood."""
    kernel = ConstantKernel(1.0) * RBF(5.0, (0.1, 1e3)) + WhiteKernel(1e-3, (1e-8, 1.0))
    return OnFeatures(OnComponents(GaussianProcessRegressor(kernel), CELLS_FOR_KERNEL), training)


BASELINES: Mapping[str, Callable[[LabelledCells, LabelledCells, int], Model]] = {
    "empty-lattice": lambda training, validation, seed: EmptyLattice(),
    PLANE_WAVES: lambda training, validation, seed: UncorrectedPlaneWaves(training),
    "nearest-neighbour": lambda training, validation, seed: NearestNeighbour(training),
    "ridge": ridge,
    "random-forest": random_forest,
    "gaussian-process": gaussian_process,
}
"""How each baseline is made from training cells, validation cells and a seed."""


def best(models: list[Model], validation: LabelledCells) -> Model:
    """Return the model with the lowest error on validation cells."""
    return min(models, key=lambda model: relative_error(model.predict(validation.epsilon[:, 0]), validation.dos))


def run_baseline(
    name: str, pool: LabelledCells, validation: LabelledCells, *, labels: int, label_seed: int, seed: int
) -> tuple[Model, dict[str, Any]]:
    """Fit a baseline to the draw of labels that the networks are trained on.

    Returns:
        The model, and columns of the table.
    """
    start = time.monotonic()
    model = BASELINES[name](split(pool, labels, label_seed, validation)[0], validation, seed)
    return model, {
        "validation_relative_error": relative_error(model.predict(validation.epsilon[:, 0]), validation.dos),
        "seconds": round(time.monotonic() - start, 3),
        "device": "cpu",
    }
