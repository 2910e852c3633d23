# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Generate a dataset
#
# Unit cells of one family, each with its density of states (DOS), in one file; and what a label is made of.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import data_gen
from data_gen.inspection import info, preview
from data_gen.lattices import symmetry_path
from photonic_essl.plotting import draw_bands, draw_cell, draw_turned_dos

# %% tags=["parameters"]
CELLS = 64

# %%
FOLDER = Path("runs/notebooks")
FOLDER.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The file
#
# The same as `data-gen generate rods --out … --samples 64 --seed 1`. Cell *i* of a seed is the same cell on any
# machine. `workers=1` works in this process; without it every core works, and a script needs its
# `if __name__ == "__main__":` then. Run it again and nothing is done twice.

# %%
file = FOLDER / "rods.h5"
data_gen.generate("rods", out=file, samples=CELLS, seed=1, workers=1)
info(file)

# %%
preview(file, out=FOLDER / "rods.png", cells=min(CELLS, 8))

# %% [markdown]
# ## What is in it
#
# An `xarray.Dataset`, read when asked for. `dos` is D/n over the scaled frequency ωn, n² = mean ε: on these axes a
# uniform cell of any ε is the same straight line, 2π·ωn. `dos_error` is how far a label is from a perfect one.

# %%
cells = data_gen.open_dataset(file)
print(cells)
print(f"labels are within {100 * float(cells['dos_error'].max()):.3f} % of the limit of infinitely many wavevectors")

# %% [markdown]
# ## What a label is made of
#
# Bands along the path Γ–X–M–Γ, and the DOS from a grid over the whole Brillouin zone, for the cell of the highest
# contrast; both polarizations. TE needs a finer sampling of ε than the solver's grid, here nine samples a pixel along
# each axis, for the direction of the interfaces.

# %%
ratio = (cells["epsilon_inside"] / cells["epsilon_outside"]).values
cell = cells.isel(sample=np.abs(np.log(ratio)).argmax()).load()
along = (np.arange(288) + 0.5) / 288 - 0.5
inside = np.hypot(along[:, None], along) < cell["radius"].item()
epsilon = np.where(inside, cell["epsilon_inside"].item(), cell["epsilon_outside"].item())

path = symmetry_path("square", points=61)
options = {"bands": 6, "solver": "rbme", "resolution": 32}
figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 4.6), width_ratios=(1.2, 1.6, 0.8), layout="constrained"
)
draw_cell(epsilon, left, periods=3)
bands = {
    polarization: data_gen.solve(epsilon, path.wavevector, polarization=polarization, **options)
    for polarization in ("tm", "te")
}
draw_bands(path.position, path.labels, tm=bands["tm"]["frequency"], te=bands["te"]["frequency"], ax=middle)
for polarization in ("tm", "te"):
    grid = data_gen.solve(epsilon, 25, polarization=polarization, **options)
    dos = data_gen.density_of_states(grid, epsilon_mean=epsilon.mean())
    dos = dos[dos["valid"].values]  # as far up as six bands reach
    draw_turned_dos(dos["frequency"], dos, epsilon.mean(), right, polarization=polarization)
right.set_ylim(middle.get_ylim())
figure.savefig(FOLDER / "bands.png", dpi=120)

# %% [markdown]
# `data-gen verify runs/notebooks/rods.h5 --samples 4` solves some of them again with MPB and says how far they are.
