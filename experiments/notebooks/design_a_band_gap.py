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
# # Design: ascend the gradient of a band gap
#
# The fast solver is differentiable: by the Hellmann–Feynman theorem, the derivative of every band frequency by every
# pixel of ε comes from the modes that it has found anyway. Here gradient ascent opens a TM gap between the first and
# the second band of a cell that starts as noise.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tqdm import trange

import data_gen
from data_gen.lattices import symmetry_path
from data_gen.solvers.rbme import solve_bands
from photonic_essl.bands import Gap
from photonic_essl.plotting import draw_bands, draw_cell, draw_turned_dos

# %% tags=["parameters"]
STEPS = 80

# %%
FOLDER = Path("runs/notebooks")
FOLDER.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The cell, within bounds
#
# What is varied is a level θ at each pixel. ε = 1 + 7.9 σ(θ) lies between air and 8.9 whatever θ is. The mean over
# mirrors and quarter turns gives the cell the symmetry p4mm, so that the bands have their extrema on Γ–X–M–Γ.

# %%
LOWEST, HIGHEST, GRID = 1.0, 8.9, 24


def permittivity(level):
    """Return ε `(x, y)` within its bounds, symmetric, of a level of the same shape."""
    for axis in (0, 1):
        level = (level + level.flip(axis)) / 2
    level = (level + level.T) / 2
    return LOWEST + (HIGHEST - LOWEST) * torch.sigmoid(level)


torch.manual_seed(0)
waves = torch.fft.fftfreq(GRID, d=1 / GRID) ** 2
noise = torch.fft.fft2(torch.randn(GRID, GRID, dtype=torch.float64)) * torch.exp(-(waves[:, None] + waves) / 4)
level = torch.fft.ifft2(noise).real
level = (level / level.std() / 2).requires_grad_()
start = permittivity(level).detach()

# %% [markdown]
# ## The gap, and its gradient
#
# A gap is the lowest frequency of the upper band minus the highest of the lower one, over the middle of both. The
# highest and lowest of many wavevectors change places from step to step; a soft maximum, `logsumexp`, counts all that
# are within a few thousandths of it. `solve_bands` is what `data_gen.solve` calls, tensors in and out.

# %%
path = symmetry_path("square", points=17)


def soft_gap(epsilon, width=0.005):
    """Return the smoothed gap over mid-gap between the first two TM bands, a tensor; negative where they overlap."""
    first, second = solve_bands(epsilon[None], path.wavevector, bands=2).frequency[0].T
    top, bottom = width * torch.logsumexp(first / width, 0), -width * torch.logsumexp(-second / width, 0)
    return 2 * (bottom - top) / (bottom + top)


optimizer = torch.optim.Adam([level], lr=0.3)
history = []
for _ in trange(STEPS, mininterval=1):
    optimizer.zero_grad()
    gap = soft_gap(permittivity(level))
    (-gap).backward()
    optimizer.step()
    history.append(gap.item())

# %% [markdown]
# ## Solved again
#
# A design counts once it is two materials, and once its bands are computed anew: on the 25 × 25 grid of the whole zone,
# where nothing was optimised.

# %%
middle = (LOWEST + HIGHEST) / 2
design = torch.where(permittivity(level.detach()) > middle, HIGHEST, LOWEST).double()


def gap_of_zone(epsilon):
    """Return the gap between the first two TM bands over the whole zone; its ratio is negative where they overlap."""
    bands = data_gen.solve(epsilon, 25, bands=2, solver="rbme")["frequency"].values
    return Gap(bands[:, 0].max(), bands[:, 1].min())


before, after = gap_of_zone(start), gap_of_zone(design)
print(f"gap over mid-gap: {100 * before.ratio:.1f} % at the start, {100 * after.ratio:.1f} % in the end")

# %%
figure, axes = plt.subplots(2, 3, figsize=(13, 8), width_ratios=(1.2, 1.6, 0.8), layout="constrained")
long_path = symmetry_path("square", points=61)
for row, epsilon in zip(axes, (start, design)):
    draw_cell(epsilon, row[0], periods=3)
    bands = data_gen.solve(epsilon, long_path.wavevector, bands=5, solver="rbme")
    draw_bands(long_path.position, long_path.labels, tm=bands["frequency"], ax=row[1])
    grid = data_gen.solve(epsilon, 25, bands=5, solver="rbme")
    dos = data_gen.density_of_states(grid, epsilon_mean=epsilon.mean().item())
    dos = dos[dos["valid"].values]
    draw_turned_dos(dos["frequency"], dos, epsilon.mean().item(), row[2])
    row[2].set_ylim(row[1].get_ylim())
figure.savefig(FOLDER / "design.png", dpi=120)

# %%
figure, ax = plt.subplots(layout="constrained")
ax.plot([100 * value for value in history], color="#0072B2")
ax.set(xlabel="step", ylabel="smoothed gap over mid-gap (%)")
figure.savefig(FOLDER / "design_history.png", dpi=120)

# %% [markdown]
# Gradient ascent ends where the textbook begins, at round rods in air. Start from another seed, ask for the gap above
# the third band, or take `polarization="te"` (on a finer ε with `resolution`, so that interfaces are smoothed).
