"""The regressor: an encoder with a head that predicts the density of states, and intervals around it."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Float32
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

from photonic_essl.calibration import Calibration
from photonic_essl.encoders import Encoder, evaluating, multilayer
from photonic_essl.known_cells import TRAINED_ON, VALIDATED_ON, KnownCells, cell_hashes, first_of_each
from photonic_essl.metrics import FREQUENCIES, PREDICTED, SCORED, empty_lattice
from photonic_essl.plane_waves import REVISION, PlaneWaves
from photonic_essl.progress import with_progress
from photonic_essl.saving import MODEL_CARD, SavedModel, load_folder
from photonic_essl.standardisation import PERMITTIVITY_RANGE
from photonic_essl.symmetry import group

SHIPPED = {polarization: Path(__file__).with_name("shipped") / polarization for polarization in ("tm", "te")}
"""Folders of the models that come with the package, and of their cards."""

COPIES = 8
"""At most so many symmetric copies of a cell are predicted, and averaged."""

THEREABOUTS = 0.02
"""Standard deviation over the scaled frequency within which a correction tells how sure a prediction is."""

WIDEST_SMOOTHING = 0.1
"""Standard deviation over the scaled frequency beyond which a density of states has no features left."""


class Regressor(
    SavedModel,
    tags=["photonic-crystals", "density-of-states"],
    model_card_template=MODEL_CARD % "Regressor of the density of states of photonic crystal cells",
):
    """An encoder with a head that predicts the density of states; saved by `save_pretrained` as safetensors and JSON.

    Args:
        encoder: name of the encoder's network.
        channels: of a cell.
        grid: number of points along the two lattice vectors.
        permittivity_range: between which ε of the cells lies.
        head: widths of the head's hidden layers.
        smoothing: standard deviation, in scaled frequency, of the Gaussian over what the head predicts; 0 for none.
            Labels are smoothed themselves (`data_gen.density_of_states`), so that finer structure is noise.
        plane_waves: largest |G|, in 2π/a, of the plane waves that make a first approximation, which the head sees
            beside the representation, and corrects; 0 for none.
        invariance: name of the group over whose copies of a cell predictions are averaged.
        polarization: of the densities of states, tm or te.
        lattice: lattice vectors of the cells, one a row.
        approximation: which revision of the plane waves' approximation the head corrects: that of this version, which
            is also what is saved where none is given.
        network: the encoder's network where it is not one of the presets; its code is not saved.
    """

    kernel: Tensor | None
    thereabouts: Tensor
    empty_lattice: Tensor

    def __init__(
        self,
        encoder: str = "light",
        channels: int = 1,
        grid: Sequence[int] = (32, 32),
        permittivity_range: Sequence[float] = PERMITTIVITY_RANGE,
        head: Sequence[int] = (256, 256),
        smoothing: float = 0.0,
        plane_waves: float = 0.0,
        invariance: str = "identity",
        polarization: str = "tm",
        lattice: Sequence[Sequence[float]] = ((1.0, 0.0), (0.0, 1.0)),
        approximation: int | None = None,
        network: nn.Module | None = None,
    ):
        super().__init__()
        if plane_waves:
            current = REVISION.get(polarization)
            if approximation not in (None, current):
                raise ValueError(f"it corrects approximation {approximation}, this version has {current}: train anew.")
            self._hub_mixin_config["approximation"] = current
        if plane_waves and channels != 1:
            raise ValueError(f"plane waves are of one channel, ε, got {channels} channels.")
        if not 0 <= smoothing <= WIDEST_SMOOTHING:
            raise ValueError(f"`smoothing` must be from 0 to {WIDEST_SMOOTHING}, got {smoothing}.")
        self.invariance, self.polarization = group(invariance), polarization
        self.lattice = torch.tensor(lattice, dtype=torch.float64, device="cpu")
        self.encoder = Encoder(encoder, channels, grid, permittivity_range, network)
        self.approximate = (
            PlaneWaves(plane_waves, self.encoder.grid, self.lattice, polarization) if plane_waves else None
        )
        seen = self.encoder.features + (PREDICTED if plane_waves else 0)
        if not seen:
            raise ValueError(
                "a regressor without an encoder needs `plane_waves`, got 0; a recipe without them needs an encoder, "
                "which `few-labels` does not make."
            )
        self.head = multilayer([seen, *head, PREDICTED], normalise=False)
        if plane_waves:  # no correction before there are labels
            for parameter in self.head[-1].parameters():
                nn.init.zeros_(parameter)
        self.calibration = Calibration(PREDICTED)
        self.known = KnownCells()
        self.register_buffer("kernel", gaussian_kernel(smoothing) if smoothing else None, persistent=False)
        self.register_buffer("thereabouts", gaussian_kernel(THEREABOUTS), persistent=False)
        self.register_buffer("empty_lattice", torch.tensor(empty_lattice()[:PREDICTED]).float(), persistent=False)

    def forward(self, epsilon: Float[Tensor, "batch channel x y"]) -> Float[Tensor, "batch 400"]:
        """Return the densities of states D/n on the first 400 of the 500 scaled frequencies.

        Args:
            epsilon: relative permittivity.
        """
        return self.empty_lattice + self.difference(epsilon)

    def difference(
        self, epsilon: Float[Tensor, "batch channel x y"], approximation: Float[Tensor, "batch wide"] | None = None
    ) -> Float[Tensor, "batch 400"]:
        """Return the difference of D/n from the empty lattice.

        Args:
            epsilon: relative permittivity.
            approximation: what `approximations` gives for these cells; made here where not given.
        """
        if approximation is None:
            approximation = self.approximations(epsilon)
        predicted = self.head(torch.cat([self.encoder(epsilon), approximation], 1))
        if self.kernel is not None:
            predicted = functional.linear(predicted, self.kernel)
        return predicted + approximation if self.approximate else predicted

    def approximations(self, epsilon: Float[Tensor, "batch channel x y"]) -> Float[Tensor, "batch wide"]:
        """Return the first approximation of what `difference` gives, `(batch, 400)`; `(batch, 0)` if there is none.

        It has no weights and is the same for all symmetric copies of a cell (on other lattices than the square one, to
        the error of its grid of wavevectors), so that training makes it once.
        """
        if not self.approximate:
            return epsilon.new_zeros(len(epsilon), 0)
        try:
            return self.approximate(epsilon).to(self.empty_lattice.dtype)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            extent = f"from {float(epsilon.min()):g} to {float(epsilon.max()):g}"
            raise ValueError(f"ε {extent} is beyond what plane waves can be solved for in single precision.") from None

    def predict(self, epsilon: ArrayLike, batch_size: int = 256) -> xr.DataArray:
        """Predict densities of states, each as the mean over symmetric copies of the cell.

        Args:
            epsilon: relative permittivity of one cell, shape `(x, y)`, or of several, `(sample, x, y)`, on the grid
                that the model was trained on, or one finer by a whole factor, of which pixels are the means; numpy,
                torch or xarray. Arrays that do not say so are taken to be of the model's lattice.
            batch_size: cells at a time, symmetric copies included.

        Returns:
            D/n with dimensions `(frequency)` or `(sample, frequency)`, float32, on the scaled frequencies below 0.96.

        Raises:
            ValueError: if the shape does not fit the model, or a value is not real, finite and positive; if cells that
                `data_gen.open_dataset` gave are of another lattice or polarization than the model's.

        Warns:
            UserWarning: if cells are outside of what the model was made for.
        """
        mean, _ = self.mean_and_spread(self._trusted(epsilon), batch_size)
        return dos_array(_like(epsilon, mean))

    def uncorrected(self, epsilon: ArrayLike) -> xr.DataArray:
        """Return the densities of states that the plane waves give by themselves, without anything learnt.

        Args:
            epsilon: as for `predict`.

        Returns:
            As `predict`.

        Raises:
            ValueError: as for `predict`; if the model has no plane waves.
        """
        if self.approximate is None:
            raise ValueError("the model starts from no plane waves: `plane_waves` is 0.")
        difference = self.approximations(self._checked(epsilon).to(self.empty_lattice.device))
        return dos_array(_like(epsilon, (self.empty_lattice + difference).float().clamp(min=0).cpu()))

    def predict_interval(self, epsilon: ArrayLike, coverage: float = 0.9, batch_size: int = 256) -> xr.Dataset:
        """Predict densities of states with the intervals that hold the true ones.

        Args:
            epsilon: as for `predict`.
            coverage: share of cells and frequencies, 0.24 < ωn < 0.96, whose true value lies within, for cells like
                those that the model was validated on; from 0.01 to 0.99.
            batch_size: cells at a time, symmetric copies included.

        Returns:
            `dos`, as `predict` gives it, `lowest` and `highest`.

        Raises:
            ValueError: as for `predict`; if `coverage` is out of range, or the model was not calibrated.

        Warns:
            UserWarning: as for `predict`.
        """
        mean, spread = self.mean_and_spread(self._trusted(epsilon), batch_size)
        half = self.calibration.half_width(spread, self.difficulty(mean), coverage)
        found = {"dos": mean, "lowest": (mean - half).clamp(min=0), "highest": mean + half}
        arrays = {name: dos_array(_like(epsilon, values)).rename(name) for name, values in found.items()}
        for name in ("lowest", "highest"):
            arrays[name].attrs["long_name"] = f"{name} value of the {100 * coverage:g} % interval of dos"
        return xr.Dataset(arrays, attrs={"coverage": coverage})

    def calibrate(self, epsilon: ArrayLike, dos: ArrayLike, batch_size: int = 256) -> xr.DataArray:
        """Learn from cells that were not trained on how far predictions are off: `predict_interval` rests on it.

        `finetune` does so with its validation cells. Cells like those to be predicted make the intervals theirs.

        Args:
            epsilon: relative permittivity, `(sample, x, y)`, of 50 cells or more, symmetric copies counted once.
            dos: their true densities of states D/n, `(sample, frequency)`, on the first 400 scaled frequencies or all.
            batch_size: as for `predict`.

        Returns:
            What is predicted for them, as `predict` does.

        Raises:
            ValueError: as for `predict`; if there are fewer cells, not as many true densities of states, or cells that
                the model was trained on, or symmetric copies of those.
        """
        cells = self._checked(epsilon)
        hashes = cell_hashes(cells, self.lattice)
        if learnt := int(self.known.among(TRAINED_ON, hashes).sum()):
            raise ValueError(
                f"{learnt} of the cells to calibrate on are among those that the model was trained on, or symmetric "
                "copies."
            )
        mean, spread = self.mean_and_spread(cells, batch_size)
        true = torch.as_tensor(np.asarray(dos, dtype=np.float32))[..., :PREDICTED]
        if true.shape != mean.shape:
            raise ValueError(
                f"`dos` must have shape ({len(mean)}, {PREDICTED} or more), as there are {len(mean)} cells, "
                f"got {np.shape(dos)}."
            )
        once = first_of_each(hashes)
        self.calibration.fit((mean - true).abs()[once], spread[once], self.difficulty(mean)[once])
        self.known.add(VALIDATED_ON, hashes)
        return dos_array(mean.numpy())

    def predicted(
        self,
        cells: Float[Tensor, "sample channel x y"],
        approximations: Float[Tensor, "sample wide"],
        batch_size: int = 256,
    ) -> Float32[np.ndarray, "sample 400"]:
        """Return the densities of states of cells in one pass, without their symmetric copies, whatever the mode."""
        with evaluating(self):
            batches = zip(cells.split(batch_size), approximations.split(batch_size))
            return torch.cat([self._densities(*batch) for batch in batches]).numpy()

    def mean_and_spread(
        self, cells: Float[Tensor, "sample channel x y"], batch_size: int = 256
    ) -> tuple[Float32[Tensor, "sample 400"], Float32[Tensor, "sample 400"]]:
        """Return the mean of the predictions for symmetric copies of each cell, and how unsure they are of it.

        That is their mean distance from it, and by how much the first approximation was corrected thereabouts.
        """
        means, spreads = [], []
        number = COPIES if self.encoder.features else 1  # of a network that sees no image, all are the same
        cells = cells.to(self.empty_lattice.device)
        with evaluating(self):
            both = (part.split(max(batch_size // number, 1)) for part in (cells, self.approximations(cells)))
            for batch, approximation in with_progress(list(zip(*both)), "predictions"):
                copies = self.invariance.copies(batch, number) if number > 1 else batch[None]
                inputs = copies.flatten(0, 1), approximation.repeat(len(copies), 1)
                predicted = self._densities(*inputs).unflatten(0, copies.shape[:2])
                means.append(predicted.mean(0))
                spreads.append((predicted - means[-1]).abs().mean(0))
                if self.approximate:
                    corrected = (means[-1] - (self.empty_lattice + approximation).float().cpu()).abs()
                    spreads[-1] += functional.linear(corrected, self.thereabouts.float().cpu())
        return torch.cat(means), torch.cat(spreads)

    def difficulty(self, mean: Float[Tensor, "sample 400"]) -> Float[Tensor, " sample"]:
        """Return how hard cells are to predict: how far their densities of states are from those of uniform ones."""
        uniform = self.empty_lattice.to(mean) * torch.linalg.det(self.lattice).abs().to(mean)
        return (mean - uniform).abs()[:, SCORED].mean(1)

    def check_physics(self, polarization: str | None, lattice: Float[Tensor, "2 2"]) -> None:
        """Refuse cells whose densities of states the model was not trained for.

        Args:
            polarization: tm, te, or None where it is not known.
            lattice: lattice vectors, one a row.

        Raises:
            ValueError: if polarization or lattice are others than the model's.
        """
        if polarization not in (None, self.polarization):
            raise ValueError(
                f"the model predicts {self.polarization.upper()}, the cells are for {polarization.upper()}."
            )
        if not torch.allclose(lattice.double(), self.lattice.double(), atol=1e-6):
            raise ValueError(
                f"the model was trained on the lattice {self.lattice.tolist()}, the cells have {lattice.tolist()}."
            )

    def _densities(self, *cells_and_approximations: Tensor) -> Tensor:
        """Return what is predicted in one pass, on the CPU; no density of states is negative."""
        difference = self.difference(*(values.to(self.empty_lattice) for values in cells_and_approximations))
        return (self.empty_lattice + difference).float().clamp(min=0).cpu()

    def _trusted(self, epsilon: ArrayLike) -> Tensor:
        """Return the cells as the model sees them, with a warning where it was not made for them."""
        cells = self._checked(epsilon)
        standardise = self.encoder.standardise
        if outside := int(standardise.outside(cells).sum()):
            warnings.warn(
                f"the model was made for {standardise.scope}: do not trust its predictions where that does not hold "
                f"({outside} of {len(cells)} cells).",
                stacklevel=3,
            )
        return cells

    def _checked(self, epsilon: ArrayLike) -> Tensor:
        """Return the cells as the model sees them."""
        if isinstance(epsilon, xr.DataArray) and "lattice" in epsilon.attrs:  # as those of `open_dataset` have
            lattice = torch.tensor(np.reshape(epsilon.attrs["lattice"], (2, 2)))
            self.check_physics(epsilon.attrs.get("polarization"), lattice)
        if isinstance(epsilon, Tensor):
            epsilon = epsilon.detach().cpu().numpy()
        if isinstance(epsilon, xr.DataArray) and {"x", "y"} <= set(epsilon.dims):
            epsilon = epsilon.transpose(..., "x", "y")
        if np.iscomplexobj(epsilon):
            raise ValueError(f"`epsilon` must be real, got {np.asarray(epsilon).dtype}.")
        cells = torch.from_numpy(np.array(epsilon, dtype=np.float32, order="C"))  # a copy, which may be written to
        grid = self.encoder.grid
        factor = max(cells.shape[-1] // grid[1], 1) if cells.ndim else 1
        if cells.ndim not in (2, 3) or tuple(cells.shape[-2:]) != (factor * grid[0], factor * grid[1]):
            raise ValueError(
                f"`epsilon` must have shape (x, y) or (sample, x, y) with a grid of {grid[0]} × {grid[1]}, or one "
                f"finer by a whole factor, got {tuple(cells.shape)}."
            )
        if factor > 1:  # a pixel is the mean of the samples in it
            cells = functional.avg_pool2d(cells.double().reshape(-1, 1, *cells.shape[-2:]), factor).float()
        cells = cells.reshape(-1, 1, *grid)
        good = (torch.isfinite(cells) & (cells > 0)).flatten(1)
        if not good.all():
            cell = int(good.all(1).long().argmin())
            value = float(cells.flatten(1)[cell][~good[cell]][0])
            raise ValueError(f"`epsilon` must be finite and positive everywhere, got {value:g} in cell {cell}.")
        return cells


def gaussian_kernel(deviation: float) -> Float32[Tensor, "400 400"]:
    """Return the weights of a moving average over the predicted scaled frequencies, one a row, Gaussian.

    Args:
        deviation: its standard deviation in scaled frequency; positive.
    """
    frequency = torch.tensor(FREQUENCIES[:PREDICTED])
    weights = torch.exp(-((frequency[:, None] - frequency) ** 2) / (2 * deviation**2))
    return (weights / weights.sum(1, keepdim=True)).float()


def _like(epsilon: ArrayLike, values: Tensor) -> np.ndarray:
    """Return values `(sample, 400)` as they belong to `epsilon`, which may be one cell."""
    return (values if np.ndim(epsilon) == 3 else values[0]).numpy()


def dos_array(dos: Float[np.ndarray, " 400"] | Float[np.ndarray, "sample 400"]) -> xr.DataArray:
    """Return densities of states with their scaled frequencies and units."""
    frequency = ("frequency", FREQUENCIES[:PREDICTED], {"units": "2πc/a", "long_name": "scaled frequency ωn"})
    return xr.DataArray(
        dos,
        dims=("sample", "frequency")[-dos.ndim :],
        coords={"frequency": frequency},
        attrs={"units": "a/2πc", "long_name": "predicted density of states per unit cell, divided by n"},
        name="dos",
    )


def load_regressor(
    path: str | Path | None = None, network: nn.Module | None = None, *, polarization: str = "tm"
) -> Regressor:
    """Load a model that `finetune` wrote, or one of those that come with the package.

    Args:
        path: its folder; where not given, a model for the square lattice, 32 × 32 pixels, that comes with the package:
            `README.md` in `photonic_essl/shipped/tm` and `te` says how good it is, and on what.
        network: the encoder's network, where it is not one of the presets.
        polarization: of the model that comes with the package, tm or te.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such folder, or no model in it.
        ValueError: if what is there is no regressor of this package, or the polarization is neither.
    """
    if path is None and polarization not in SHIPPED:
        raise ValueError(f"`polarization` must be {' or '.join(SHIPPED)}, got {polarization!r}.")
    return load_folder(Regressor, SHIPPED[polarization] if path is None else path, network)
