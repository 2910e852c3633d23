"""Regression of the density of states: the model, and what is done with one that is trained."""

from collections.abc import Sequence
from pathlib import Path

import h5netcdf
import numpy as np
import torch
import xarray as xr
from huggingface_hub import PyTorchModelHubMixin
from numpy.typing import ArrayLike
from torch import Tensor, nn
from xarray.backends import H5NetCDFStore

from data_gen.dataset import new_hdf5_file
from photonic_essl.data import Cells, load_cells
from photonic_essl.encoders import MODEL_CARD, PERMITTIVITY_RANGE, Encoder, load_folder, make_network, multilayer
from photonic_essl.metrics import FREQUENCIES, PREDICTED, empty_lattice, relative_error, relative_errors


class Regressor(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="photonic_essl",
    tags=["photonic-crystals", "density-of-states"],
    model_card_template=MODEL_CARD % "Regressor of the density of states of photonic crystal cells",
):
    """An encoder with a head that predicts the density of states; saved by `save_pretrained` as safetensors and JSON.

    Args:
        encoder: name of the encoder's network.
        channels: of a cell.
        grid: number of points along the two lattice vectors.
        permittivity_range: values of ε that the network sees as 0 and 1.
        head: widths of the head's hidden layers.
        network: the encoder's network where it is not one of the presets; its code is not saved.
    """

    def __init__(
        self,
        encoder: str = "light",
        channels: int = 1,
        grid: Sequence[int] = (32, 32),
        permittivity_range: Sequence[float] = PERMITTIVITY_RANGE,
        head: Sequence[int] = (256, 256),
        network: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = Encoder(encoder, channels, grid, permittivity_range, network)
        self.head = multilayer([self.encoder.features, *head, PREDICTED], normalise=False)
        self.register_buffer("empty_lattice", torch.tensor(empty_lattice()[:PREDICTED]).float(), persistent=False)

    def forward(self, epsilon: Tensor) -> Tensor:
        """Return the densities of states D/n.

        Args:
            epsilon: relative permittivity, shape `(batch, channel, x, y)`, float32.

        Returns:
            Shape `(batch, 400)`: on the first 400 of the 500 scaled frequencies.
        """
        return self.empty_lattice + self.difference(epsilon)

    def difference(self, epsilon: Tensor) -> Tensor:
        """Return the difference of D/n from the empty lattice, which is what the network learns, `(batch, 400)`."""
        return self.head(self.encoder(epsilon))

    def predict(self, epsilon: ArrayLike, batch_size: int = 256) -> xr.DataArray:
        """Predict densities of states.

        Args:
            epsilon: relative permittivity of one cell, shape `(x, y)`, or of several, `(sample, x, y)`, on the grid
                that the model was trained on; numpy, torch or xarray.
            batch_size: cells at a time.

        Returns:
            D/n with dimensions `(frequency)` or `(sample, frequency)`, float32, on the scaled frequencies below 0.96.

        Raises:
            ValueError: if the shape does not fit the model, or a value is not finite or not positive.
        """
        cells = torch.as_tensor(np.asarray(epsilon), dtype=torch.float32)
        grid = self.encoder.grid
        if cells.ndim not in (2, 3) or tuple(cells.shape[-2:]) != grid:
            raise ValueError(
                f"`epsilon` must have shape (x, y) or (sample, x, y) with a grid of {grid[0]} × {grid[1]}, "
                f"got {tuple(cells.shape)}."
            )
        if not (torch.isfinite(cells) & (cells > 0)).all():
            raise ValueError("`epsilon` must be finite and positive everywhere.")
        dos = self.predicted(cells.reshape(-1, 1, *grid), batch_size)
        return dos_array(dos if cells.ndim == 3 else dos[0])

    def predicted(self, cells: Tensor, batch_size: int = 256) -> np.ndarray:
        """Return the densities of states of cells `(sample, 1, x, y)` as `(sample, 400)`, whatever the mode."""
        training = self.training
        self.eval()
        with torch.no_grad():
            parts = [self(batch.to(self.empty_lattice)).float().cpu() for batch in cells.split(batch_size)]
        self.train(training)
        return torch.cat(parts).numpy()


def dos_array(dos: np.ndarray) -> xr.DataArray:
    """Return densities of states `(400,)` or `(sample, 400)` with their scaled frequencies and units."""
    frequency = ("frequency", FREQUENCIES[:PREDICTED], {"units": "2πc/a", "long_name": "scaled frequency ωn"})
    return xr.DataArray(
        dos,
        dims=("sample", "frequency")[-dos.ndim :],
        coords={"frequency": frequency},
        attrs={"units": "a/2πc", "long_name": "predicted density of states per unit cell, divided by n"},
        name="dos",
    )


def load_regressor(path: str | Path, network: nn.Module | None = None) -> Regressor:
    """Load a model that `finetune` wrote.

    Args:
        path: its folder.
        network: the encoder's network, where it is not one of the presets.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such folder, or no model in it.
        ValueError: if what is there is no regressor of this package.
    """
    return load_folder(Regressor, path, network)


def evaluate(model: str | Path, data: str | Path, *, encoder: str | None = None) -> float:
    """Print and return the relative error of a model on labelled cells, the metric of arXiv 2111.00899.

    Args:
        model: folder of a regressor.
        data: labelled dataset file; its cells should be none that the model has seen.
        encoder: factory of the model's encoder as `module:factory`, if it is not a preset.

    Returns:
        Mean over cells of Σ|D̂ − D| / Σ|D| over 0.24 < ωn < 0.96, a fraction.

    Raises:
        FileNotFoundError: if the model or the file is missing.
        ValueError: if they are of another kind or do not fit each other, or the file is unlabelled.
    """
    cells = load_cells(data, labelled=True)
    predicted = _loaded(model, encoder, cells).predict(cells.epsilon[:, 0])
    errors = relative_errors(predicted, cells.dos)
    guess = relative_error(np.broadcast_to(empty_lattice()[:PREDICTED], cells.dos.shape), cells.dos)
    print(
        f"relative error on {len(cells)} cells: {100 * errors.mean():.2f} % (median {100 * np.median(errors):.2f} %, "
        f"worst {100 * errors.max():.2f} %; empty lattice {100 * guess:.2f} %)"
    )
    return float(errors.mean())


def predict(model: str | Path, data: str | Path, out: str | Path, *, encoder: str | None = None) -> xr.DataArray:
    """Predict the densities of states of all cells of a dataset file, and write them to a netCDF file.

    Args:
        model: folder of a regressor.
        data: dataset file; labels, if it has any, are not looked at.
        out: netCDF file to write.
        encoder: factory of the model's encoder as `module:factory`, if it is not a preset.

    Returns:
        D/n with dimensions `(sample, frequency)`, as `Regressor.predict`.

    Raises:
        FileNotFoundError: if the model or the file is missing, or the folder to write to.
        ValueError: if they are of another kind or do not fit each other.
        OSError: if the file cannot be written; one that was there stays as it is.
    """
    cells = load_cells(data)
    dos = _loaded(model, encoder, cells).predict(cells.epsilon[:, 0])
    if not Path(out).parent.is_dir():
        raise FileNotFoundError(f"there is no folder {Path(out).parent} to write {Path(out).name} to.")
    with new_hdf5_file(Path(out)) as new, h5netcdf.File(new, "w") as file:
        dos.to_dataset().assign_attrs(data=cells.fingerprint).dump_to_store(H5NetCDFStore(file))
    print(f"Predictions for {len(cells)} cells written to {out}.")
    return dos


def _loaded(model: str | Path, encoder: str | None, cells: Cells) -> Regressor:
    return load_regressor(model, None if encoder is None else make_network(encoder, 1, cells.grid))
