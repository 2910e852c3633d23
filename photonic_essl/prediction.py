"""What is done with a trained regressor: measure it on labelled cells, and predict."""

import warnings
from pathlib import Path
from typing import Literal

import h5netcdf
import numpy as np
import xarray as xr
from torch import Tensor
from xarray.backends import H5NetCDFStore

from data_gen.dataset import file_to_write, new_hdf5_file, open_array
from photonic_essl.data import Cells, load_cells
from photonic_essl.encoders import make_network
from photonic_essl.known_cells import TRAINED_ON, VALIDATED_ON
from photonic_essl.metrics import PREDICTED, SCORED, empty_lattice, relative_error, relative_errors
from photonic_essl.regression import Regressor, load_regressor
from photonic_essl.saving import read_folder, weights_fingerprint


def evaluate(data: str | Path, model: str | Path | None = None, *, encoder: str | None = None) -> float:
    """Print and return the relative error of a model on labelled cells, the metric of arXiv 2111.00899.

    Args:
        data: labelled dataset file; its cells should be none that the model has seen.
        model: folder of a regressor; the one for the cells' polarization that comes with the package where not given.
        encoder: factory of the model's encoder as `module:factory`, if it is not a preset.

    Returns:
        Mean over cells of Σ|D̂ − D| / Σ|D| over 0.24 < ωn < 0.96, a fraction.

    Raises:
        FileNotFoundError: if the model or the file is missing.
        ValueError: if they are of another kind or do not fit each other, or the file is unlabelled.

    Warns:
        UserWarning: if the model was trained or validated on cells of this file, itself or where it started from; or if
            the file holds symmetric copies of a cell.
    """
    cells = load_cells(data, labelled=True)
    regressor = _load(model, encoder, cells.attributes["polarization"])
    regressor.check_physics(cells.attributes["polarization"], cells.lattice)
    warn_of_copies(cells)
    warn_of_known_cells(regressor, cells)
    predicted = predictions(regressor, cells.epsilon[:, 0].numpy())
    errors = relative_errors(predicted["dos"], cells.dos)
    print(
        f"relative error on {len(cells)} cells: {100 * errors.mean():.3g} % (median {100 * np.median(errors):.3g} %, "
        f"worst {100 * errors.max():.3g} %)"
    )
    compared = {name: relative_error(dos, cells.dos) for name, dos in untrained(regressor, cells).items()}
    print(f"nothing learnt: {', '.join(f'{name} {100 * error:.3g} %' for name, error in compared.items())}")
    if "lowest" in predicted:
        true, coverage = cells.dos.numpy(), predicted.attrs["coverage"]
        within = float(((predicted["lowest"] <= true) & (true <= predicted["highest"]))[:, SCORED].mean())
        print(f"within its {100 * coverage:.0f} % interval: {100 * within:.1f} % of cells and frequencies")
    return float(errors.mean())


def predict(
    data: str | Path,
    out: str | Path,
    model: str | Path | None = None,
    *,
    polarization: Literal["tm", "te"] | None = None,
    encoder: str | None = None,
) -> xr.Dataset:
    """Predict the densities of states of cells, and write them to a netCDF file.

    Args:
        data: dataset file (labels, if it has any, are not looked at), or an .npy file of ε, `(x, y)` or
            `(sample, x, y)`, which is taken to be of the model's lattice and polarization, and may be sampled more
            finely than the model's pixels by a whole factor.
        out: netCDF file to write, whose name ends in .nc; one that is there is replaced.
        model: folder of a regressor; one that comes with the package where not given.
        polarization: of the densities of states; that of the dataset file or of the model where not given, or else tm.
        encoder: factory of the model's encoder as `module:factory`, if it is not a preset.

    Returns:
        D/n as `dos` on the scaled frequencies below 0.96, the first 400 of a label's 500, and the bounds `lowest` and
        `highest` of its 90 % interval where the model has been calibrated, as `Regressor.predict_interval` gives them.

    Raises:
        FileNotFoundError: if the model or the file is missing, or the folder to write to.
        ValueError: if they are of another kind or do not fit each other, `out` does not end in .nc, or is `data`.
        OSError: if the file cannot be written; one that was there stays as it is.
    """
    out = file_to_write(out, ".nc")
    if out.exists() and Path(data).exists() and out.samefile(data):
        raise ValueError(f"`out` must be another file than `data`, got {out} for both.")
    if Path(data).suffix == ".npy":
        epsilon = np.array(open_array(data), dtype=np.float32)
        regressor = _load(model, encoder, polarization)
        regressor.check_physics(polarization, regressor.lattice)
        found, source = predictions(regressor, epsilon), str(data)
    else:
        cells = load_cells(data)
        own = cells.attributes.get("polarization")
        regressor = _load(model, encoder, polarization or own)
        for asked in (polarization, own):
            regressor.check_physics(asked, cells.lattice)
        found, source = predictions(regressor, cells.epsilon[:, 0].numpy()), cells.fingerprint
    found = found.assign_attrs(
        data=source,
        model=weights_fingerprint(regressor),
        polarization=regressor.polarization,
        lattice=regressor.lattice.reshape(-1).tolist(),
    )
    with new_hdf5_file(out) as new, h5netcdf.File(new, "w") as file:
        found.dump_to_store(H5NetCDFStore(file))
    count = found.sizes.get("sample", 1)
    physics = f"{regressor.polarization.upper()}, lattice {_in_words(regressor.lattice)}"
    print(f"Predictions ({physics}) for {count} {'cell' if count == 1 else 'cells'} written to {out}.")
    return found


def untrained(regressor: Regressor, cells: Cells) -> dict[str, np.ndarray]:
    """Return what a model is to be compared with, densities of states `(sample, 400)` by name: what needs no labels."""
    compared = {"empty lattice": np.tile(empty_lattice(area=cells.area)[:PREDICTED], (len(cells), 1))}
    if regressor.approximate is not None:
        name = f"{len(regressor.approximate.waves)} plane waves"
        compared[name] = regressor.uncorrected(cells.epsilon[:, 0].numpy()).values
    return compared


def warn_of_copies(cells: Cells) -> None:
    """Warn where models are to be measured on a cell more than once."""
    if (distinct := len(cells.hashes.unique())) < len(cells):
        warnings.warn(f"these {len(cells)} cells are {distinct}, if symmetric copies are counted once.", stacklevel=3)


def warn_of_known_cells(regressor: Regressor, cells: Cells, name: str = "the model") -> None:
    """Warn where a model, called so, is to be measured on cells whose labels it was made with."""
    trained_on, validated_on = (regressor.known.among(use, cells.hashes) for use in (TRAINED_ON, VALIDATED_ON))
    others = validated_on & ~trained_on
    if trained_on.any() or others.any():
        warnings.warn(
            f"of these {len(cells)} cells, symmetric copies counted, {name} was trained on {int(trained_on.sum())} and "
            f"validated or calibrated on {int(others.sum())} others: errors on these say little of new cells.",
            stacklevel=3,
        )


def predictions(regressor: Regressor, epsilon: np.ndarray) -> xr.Dataset:
    """Return predictions as `Regressor.predict_interval`, without bounds where the model has not been calibrated."""
    if regressor.calibration.done:
        return regressor.predict_interval(epsilon)
    return regressor.predict(epsilon).to_dataset()


def _load(model: str | Path | None, encoder: str | None, polarization: str | None) -> Regressor:
    """Load a regressor, building the network of the user's own that its encoder may need."""
    network = None
    if encoder is not None and model is not None:
        network = make_network(encoder, 1, read_folder(model, "regressor")[0].get("grid", (32, 32)))
    return load_regressor(model, network, polarization=polarization or "tm")


def _in_words(lattice: Tensor) -> str:
    """Return lattice vectors as (1, 0), (0, 1)."""
    return ", ".join(f"({x:.4g}, {y:.4g})" for x, y in lattice.tolist())
