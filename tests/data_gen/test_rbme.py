import numpy as np
import pytest
import torch

from data_gen.lattices import basis_vectors, half_grid, reciprocal_vectors, wavevector_grid
from data_gen.solvers import mpb, rbme
from data_gen.solvers.bloch import Grid
from data_gen.solvers.contract import ConvergenceError
from data_gen.solvers.rbme import solve_bands
from data_gen.solvers.smoothing import effective_inverse_permittivity

SQUARE, HEXAGONAL = basis_vectors("square"), basis_vectors("hexagonal")
GENERIC = np.array([(0.13, 0.21), (0.31, -0.28), (-0.47, 0.19), (0.06, 0.02), (0.5, 0.3), (0.29, 0.3)])


def level_set(n: int, seed: int, low: float = 1.0, high: float = 12.0) -> np.ndarray:
    """A two-material cell without any symmetry, one period on an n x n grid."""
    rng = np.random.default_rng(seed)
    x = (np.arange(n) + 0.5) / n
    waves = [(i, j) for i in range(-1, 2) for j in range(-1, 2) if (i, j) > (0, 0)]
    total = sum(
        rng.uniform(0.2, 1) * np.cos(2 * np.pi * (i * x[:, None] + j * x[None] + rng.uniform())) for i, j in waves
    )
    return np.where(total > np.quantile(total, rng.uniform(0.3, 0.7)), high, low)


def rod(n: int, radius: float, inside: float, outside: float, basis: np.ndarray = SQUARE) -> np.ndarray:
    """A circle at the centre of the cell."""
    x = (np.arange(n) + 0.5) / n - 0.5
    fractional = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
    images = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    distance = np.linalg.norm((fractional[..., None, :] + images) @ basis, axis=-1).min(-1)
    return np.where(distance < radius, inside, outside)


def dense_frequencies(
    epsilon: np.ndarray, wavevectors: np.ndarray, polarization: str, basis: np.ndarray = SQUARE, factor: int = 1
) -> np.ndarray:
    """Diagonalise the whole problem, written down independently; the mesh must be odd, so that each G has its -G."""
    fine = torch.as_tensor(epsilon)[None]
    x, y = epsilon.shape[0] // factor, epsilon.shape[1] // factor
    assert x % 2 == y % 2 == 1
    orders = np.stack(np.meshgrid(np.fft.fftfreq(x, 1 / x), np.fft.fftfreq(y, 1 / y), indexing="ij"), axis=-1)
    g = orders.reshape(-1, 2) @ reciprocal_vectors(basis)
    fourier = np.fft.fft2(np.eye(x * y).reshape(-1, x, y), norm="ortho").reshape(x * y, -1).T
    result = []
    for k in wavevectors @ reciprocal_vectors(basis):
        q = k + g
        if polarization == "tm":
            inverse_root = 1 / np.sqrt(epsilon.reshape(x, factor, y, factor).mean((1, 3)).ravel())
            operator = inverse_root[:, None] * (fourier.conj().T @ ((q**2).sum(-1)[:, None] * fourier)) * inverse_root
        else:
            eta = effective_inverse_permittivity(fine, factor, basis)[0].numpy().reshape(-1, 2, 2)
            curl = [fourier.conj().T @ (component[:, None] * fourier) for component in (q[:, 1], -q[:, 0])]
            operator = sum(curl[i].conj().T @ (eta[:, i, j, None] * curl[j]) for i in range(2) for j in range(2))
        result.append(np.sqrt(np.clip(np.linalg.eigvalsh(operator), 0, None)))
    return np.array(result)


def largest_error(frequency: torch.Tensor, reference: np.ndarray) -> float:
    return float(np.max(np.abs(frequency.numpy() - reference) / np.maximum(reference, 0.02)))


@pytest.mark.parametrize("polarization", ["tm", "te"])
@pytest.mark.parametrize("basis", [SQUARE, HEXAGONAL])
def test_agrees_with_dense_diagonalisation(polarization, basis):
    cell = level_set(19 * 4, seed=3)
    reference = dense_frequencies(cell, GENERIC, polarization, basis, factor=4)[:, :10]
    answer = solve_bands(cell[None], GENERIC, polarization=polarization, basis=basis, resolution=19)
    assert largest_error(answer.frequency[0], reference) < 2e-5
    assert largest_error(answer.frequency[0], reference) < 10 * answer.error.item()


@pytest.mark.parametrize(("polarization", "jump"), [("tm", 1.3), ("tm", 4.0), ("te", 4.0)])
def test_no_level_of_an_elongated_cell_is_missed(polarization, jump):
    # Alike along its length: the lowest modes at the corners of the zone differ along it alone, in the middle not.
    basis = np.array([(1.0, 0.0), (0.0, 5.0)])
    cell = np.tile(np.where(np.arange(15) < 7, jump, 1.0)[:, None], (1, 15))
    wavevectors = half_grid(15)[::5]
    reference = dense_frequencies(cell, wavevectors, polarization, basis)[:, :10]
    answer = solve_bands(cell[None], wavevectors, polarization=polarization, basis=basis)
    assert largest_error(answer.frequency[0], reference) < 2e-5


@pytest.mark.parametrize(
    ("mesh", "inside", "width", "wave", "bands"),
    [(15, 9.0, 2, 0.0, 10), (17, 20.0, 3, 0.0, 12), (17, 50.0, 2, 1e-3, 14), (19, 20.0, 2, 1e-3, 10)],
)
def test_no_level_of_a_slab_is_missed(mesh, inside, width, wave, bands):
    # Its modes are kept apart by how they vary along it: of one that is missing, the others' residuals tell nothing.
    x = np.arange(mesh)
    along = 1 + wave * np.cos(2 * np.pi * (x[:, None] + x) / mesh)
    cell = np.where(x < width, inside, 1.0) * along
    for polarization in ("tm", "te"):
        reference = dense_frequencies(cell, GENERIC[:3], polarization)[:, :bands]
        answer = solve_bands(cell[None], GENERIC[:3], bands=bands, polarization=polarization)
        assert largest_error(answer.frequency[0], reference) < 5e-5


@pytest.mark.parametrize(
    ("mesh", "length", "width", "inside", "polarization", "bands"),
    [
        ((14, 12), 3.5, 3, 19.1, "te", 10),
        ((18, 12), 3.5, 5, 13.1, "tm", 16),
        ((13, 12), 2.0, 3, 40.0, "te", 15),
    ],
)
def test_no_level_of_a_wave_at_the_edge_of_the_mesh_is_missed(mesh, length, width, inside, polarization, bands):
    cell = np.ones(mesh)
    cell[:width] = inside
    # Of so many bands the whole problem is solved.
    found, whole = (
        solve_bands(
            cell[None], GENERIC[:2], bands=number, polarization=polarization, basis=np.diag([1.0, length])
        ).frequency[0]
        for number in (bands, 60)
    )
    assert largest_error(found, whole[:, :bands].numpy()) < 5e-5


def test_no_level_from_beyond_the_edge_of_the_zone_is_missed():
    # Levels lie so close in a long cell that the one from beyond was the eighth at the centre of a patch of six.
    basis, edge = np.array([(1.0, 0.0), (0.0, 10.0)]), np.array([(0.5, 0.0), (0.5, 0.3)])
    cell = np.where(np.random.default_rng(0).random((17, 13)) < 0.5, 1.02, 1.0)
    reference = dense_frequencies(cell, edge, "te", basis)[:, :2]
    answer = solve_bands(cell[None], edge, bands=2, polarization="te", basis=basis)
    assert largest_error(answer.frequency[0], reference) < 2e-5


def test_a_lattice_is_elongated_whatever_vectors_span_it():
    shapes = {"square": False, "hexagonal": False, "centred": False, "rectangular": True, "oblique": True}
    for name, elongated in shapes.items():
        basis = basis_vectors(name)
        for other in (basis, [[1, 0], [3, 1]] @ basis, [[2, 1], [1, 1]] @ basis):
            assert Grid((8, 8), other, torch.device("cpu")).elongated == elongated
    assert Grid((8, 8), np.array([(1.0, 0.1), (1.0, -0.1)]), torch.device("cpu")).elongated


def test_more_bands_show_no_level_that_fewer_missed():
    # Of ten bands the last was 2 % too high at the edge of the zone, as two modes above the bands wanted were too few.
    fine = (np.arange(32 * 9) + 0.5) / (32 * 9)
    layer = np.tile(np.where(fine < 0.08, 15.66, 1.0), (32 * 9, 1))
    edge = np.array([[0.5, 0.0]])
    ten, fourteen = (
        solve_bands(layer[None], edge, bands=bands, polarization="te", resolution=32).frequency[0] for bands in (10, 14)
    )
    assert largest_error(ten, fourteen[:, :10].numpy()) < 5e-5


@pytest.mark.parametrize("polarization", ["tm", "te"])
@pytest.mark.parametrize("mesh", [(18, 18), (18, 17)])
def test_no_frequency_is_below_that_of_the_whole_problem(mesh, polarization):
    # By the minimum principle, unless the basis holds what is no field: the wave that an even mesh leaves out.
    cell = rod(18, 0.3, 4.0, 1.0)[: mesh[0], : mesh[1]]
    found, whole = (
        solve_bands(cell[None], GENERIC, bands=bands, polarization=polarization).frequency[..., :6] for bands in (6, 60)
    )
    assert float(((found - whole) / whole).min()) > -1e-6


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_one_band_of_an_elongated_cell(polarization):
    answer = solve_bands(np.full((1, 9, 9), 4.0), GENERIC, bands=1, polarization=polarization, basis=np.diag([1.0, 2]))
    expected = np.linalg.norm(GENERIC / (1, 2), axis=1) / 2
    np.testing.assert_allclose(answer.frequency[0, :-2, 0], expected[:-2], rtol=2e-5)


def test_as_many_bands_as_plane_waves():
    cell = level_set(5, seed=0)
    answer = solve_bands(cell[None], GENERIC, bands=25)
    np.testing.assert_allclose(answer.frequency[0].numpy(), dense_frequencies(cell, GENERIC, "tm"), atol=1e-9)


def test_rectangular_mesh_of_a_rectangular_cell():
    cell = level_set(75, seed=1)[:45]
    basis = np.array([(0.6, 0.0), (0.0, 1.0)])
    reference = dense_frequencies(cell, GENERIC, "tm", basis, factor=3)[:, :6]
    answer = solve_bands(cell[None], GENERIC, bands=6, basis=basis, resolution=15)
    assert largest_error(answer.frequency[0], reference) < 2e-5


def test_long_waves_in_a_checkerboard():
    # Dykhne: the effective permittivity is the geometric mean, exactly.
    cell = np.kron(np.array([[1.0, 4.0], [4.0, 1.0]]), np.ones((128, 128)))
    k = np.array([(0.01, 0.0), (0.007, 0.007)])
    frequency = solve_bands(cell[None], k, bands=1, polarization="te", resolution=64).frequency[0, :, 0].numpy()
    np.testing.assert_allclose(np.linalg.norm(k, axis=1) / frequency, np.sqrt(2.0), rtol=0.01)


def test_converges_as_the_square_of_the_pixel():
    cell = rod(576, 0.31, 9.0, 1.0)[None]
    resolutions = np.array([12, 18, 24, 36])
    frequency = {r: solve_bands(cell, GENERIC, bands=4, resolution=int(r)).frequency for r in (*resolutions, 144)}
    errors = [float((frequency[r] / frequency[144] - 1).abs().mean()) for r in resolutions]
    slope = np.polyfit(np.log(resolutions), np.log(errors), 1)[0]
    assert -2.6 < slope < -1.6


def test_textbook_gaps():
    zone = wavevector_grid(14)[:98]
    edge = np.array([(0.0, 0.0), (0.5, 0.0), (0.5, 0.5)])
    rods = solve_bands(rod(256, 0.2, 8.9, 1.0)[None], np.concatenate([zone, edge]), bands=2, resolution=32).frequency[0]
    assert rods[:, 0].max() == pytest.approx(0.322, rel=0.02)
    assert rods[:, 1].min() == pytest.approx(0.443, rel=0.02)
    holes = rod(256, 0.48, 1.0, 13.0, HEXAGONAL)[None]
    points = np.concatenate([zone, edge, [(1 / 3, 1 / 3), (2 / 3, -1 / 3), (1 / 3, -2 / 3)]])
    for polarization, below in (("tm", 2), ("te", 1)):
        bands = solve_bands(
            holes, points, bands=4, polarization=polarization, basis=HEXAGONAL, resolution=32
        ).frequency[0]
        assert bands[:, below - 1].max() < 0.44
        assert bands[:, below].min() > 0.50


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_quarter_wave_stack(polarization):
    # n = 3 : 1, a quarter and three quarters of the period: the first gap at the zone edge is 2/9 to 4/9.
    stack = np.where(np.arange(256) < 64, 9.0, 1.0)[None, :, None] * np.ones((1, 1, 16))
    basis = np.array([(1.0, 0.0), (0.0, 0.0625)])
    answer = solve_bands(stack, np.array([(0.5, 0.0)]), bands=2, polarization=polarization, basis=basis, resolution=128)
    np.testing.assert_allclose(answer.frequency[0, 0].numpy(), [2 / 9, 4 / 9], rtol=2e-3)


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_velocities_are_slopes_of_the_bands(polarization):
    cell, step = level_set(64, seed=8)[None], 1e-4
    shifts = np.array([(0, 0), (step, 0), (-step, 0), (0, step), (0, -step)])
    k = np.array([(0.13, 0.21), (0.31, -0.28), (0.06, 0.02), (0.22, 0.23)])
    answer = solve_bands(cell, (k[:, None] + shifts).reshape(-1, 2), bands=6, polarization=polarization, resolution=32)
    frequency = answer.frequency.reshape(4, 5, 6)
    slope = torch.stack([frequency[:, 1] - frequency[:, 2], frequency[:, 3] - frequency[:, 4]], dim=-1) / (2 * step)
    torch.testing.assert_close(answer.group_velocity.reshape(4, 5, 6, 2)[:, 0], slope, rtol=0, atol=1e-5)


def test_velocities_of_degenerate_bands():
    # The fourfold symmetry of a rod makes pairs of bands at the zone's corner, on which the velocity operator vanishes
    # along the diagonal no more than elsewhere; near the centre, the pair splits linearly or not at all.
    cell, step = rod(96, 0.3, 9.0, 1.0)[None], 1e-4
    corner = np.array([(0.5, 0.5), (0.5 - step, 0.5 - 0.618 * step)])
    answer = solve_bands(cell, corner, bands=8, resolution=32)
    frequency, velocity = answer.frequency[0], answer.group_velocity[0, 0]
    degenerate = frequency[0].diff() < 1e-6
    assert degenerate.any()
    predicted = frequency[0] + velocity @ torch.tensor(corner[1] - corner[0])
    torch.testing.assert_close(predicted.sort().values, frequency[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bands", [14, 15, 17])
def test_velocities_of_a_level_that_is_cut(bands):
    # The empty lattice's, of which the fourteenth to twenty-first have the same frequency at the centre of the zone.
    answer = solve_bands(np.ones((1, 24, 24)), np.zeros((1, 2)), bands=bands)
    assert answer.frequency[0, 0, 13:].numpy() == pytest.approx(np.sqrt(5), abs=1e-9)
    assert answer.group_velocity[0, 0, 13:].norm(dim=-1).numpy() == pytest.approx(1, abs=1e-6)


def test_pair_k_and_minus_k():
    answer = solve_bands(level_set(32, seed=9)[None], np.concatenate([GENERIC, -GENERIC]))
    torch.testing.assert_close(answer.frequency[:, :6], answer.frequency[:, 6:], rtol=1e-12, atol=0)
    torch.testing.assert_close(answer.group_velocity[:, :6], -answer.group_velocity[:, 6:], rtol=0, atol=1e-9)


ADVERSARIAL = {
    "nearly uniform": lambda n: 4.0 + 1e-3 * level_set(n, 1),
    "20 : 1": lambda n: level_set(n, 2, 1.0, 20.0),
    "1 : 20": lambda n: level_set(n, 3, 20.0, 1.0),
    "thin veins": lambda n: np.where((np.arange(n)[:, None] < n // 21) | (np.arange(n)[None] < n // 21), 13.0, 1.0),
    "thin cracks": lambda n: np.where((np.arange(n)[:, None] < n // 21) | (np.arange(n)[None] < n // 21), 1.0, 13.0),
    "checkerboard": lambda n: np.where((np.arange(n)[:, None] < n // 2) ^ (np.arange(n)[None] < n // 2), 12.0, 1.0),
    "one pixel": lambda n: np.where((np.arange(n)[:, None] < n // 21) & (np.arange(n)[None] < n // 21), 20.0, 1.0),
    "small rod": lambda n: rod(n, 0.1, 20.0, 1.0),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_error_is_at_most_ten_times_the_estimate(name, polarization):
    cell = ADVERSARIAL[name](84).astype(float)
    k = GENERIC[[0, 2, 5]]
    reference = dense_frequencies(cell, k, polarization, factor=4)[:, :10]
    for tolerance in (1e-3, 2e-5):
        answer = solve_bands(cell[None], k, polarization=polarization, resolution=21, tolerance=tolerance)
        assert answer.error.item() <= tolerance
        assert largest_error(answer.frequency[0], reference) <= 10 * answer.error.item() + 1e-10


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_gradient_agrees_with_finite_differences(polarization):
    cell = torch.as_tensor(level_set(32, seed=4, high=5.0))[None]
    k, weight = GENERIC[:2], torch.linspace(1, 2, 10, dtype=torch.float64) ** 2
    direction = torch.randn(cell.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def total(epsilon):
        answer = solve_bands(epsilon, k, polarization=polarization, resolution=16, tolerance=1e-7)
        return (answer.frequency * weight).sum()

    (gradient,) = torch.autograd.grad(total(cell.requires_grad_()), cell)
    with torch.no_grad():
        step = 1e-3
        difference = (total(cell + step * direction) - total(cell - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=1e-3)


def test_frequency_at_rest_has_no_gradient():
    cell = torch.full((1, 16, 16), 3.0, dtype=torch.float64, requires_grad=True)
    solve_bands(cell, np.zeros((1, 2)), bands=1).frequency.sum().backward()
    assert torch.equal(cell.grad, torch.zeros_like(cell))


def test_never_returns_what_has_not_converged(monkeypatch):
    cells = np.stack([np.full((32, 32), 2.0), level_set(32, seed=0)])
    monkeypatch.setattr(rbme, "_EXTENSIONS", 0)
    with pytest.raises(ConvergenceError, match=r"cell 1: .* of the largest basis, over 0\.\d+ of `tolerance` 1e-09"):
        solve_bands(cells, GENERIC, tolerance=1e-9)
    with pytest.raises(ConvergenceError, match="cell 0: estimated relative error"):
        solve_bands(level_set(4, seed=0)[None], GENERIC, bands=4, tolerance=1.2e-11)  # rounding alone is 1e-11
    solve_reduced = rbme._solve_reduced

    def doubtful(answer, cells, *arguments):
        solve_reduced(answer, cells, *arguments)
        answer.error[cells] = 2e-6

    monkeypatch.setattr(rbme, "_solve_reduced", doubtful)
    with pytest.raises(ConvergenceError, match=r"cell 0: estimated relative error 2\.0e-06, over `tolerance` 1e-06"):
        solve_bands(cells[:1], GENERIC, tolerance=1e-6)


def test_modes_that_cannot_be_told_apart_are_an_error():
    cell = np.where(np.random.default_rng(0).random((9, 5)) < 0.5, 1e-3, 1.0)
    with pytest.raises(ConvergenceError, match="cell 0: at so high a contrast, modes are numerically dependent"):
        solve_bands(np.tile(cell, (2, 2))[None], GENERIC, bands=1, polarization="te")


def test_there_are_no_more_bands_than_modes():
    cell = level_set(4, seed=0)[None]
    for polarization, most in (("tm", 16), ("te", 15)):
        assert solve_bands(cell, GENERIC, bands=most, polarization=polarization).frequency.shape[2] == most
        with pytest.raises(ValueError, match="`bands` must be"):
            solve_bands(cell, GENERIC, bands=most + 1, polarization=polarization)


@pytest.mark.parametrize("thin", [1, 2])
@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_layers_one_or_two_pixels_wide(polarization, thin):
    layers = np.where(np.arange(64) < 16, 9.0, 1.0)
    k = np.array([(0.0, 0.3), (0.0, 0.5)])
    settings = {"bands": 2, "polarization": polarization, "basis": np.array([(0.1, 0.0), (0.0, 1.0)])}
    narrow, wide = (solve_bands(np.tile(layers, (1, width, 1)), k, **settings).frequency for width in (thin, 5))
    torch.testing.assert_close(narrow, wide, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("change", [lambda cell: cell[::-1], np.rot90, lambda cell: cell.astype(">f8")])
def test_cells_of_any_strides_and_byte_order(change):
    cell = level_set(8, seed=0)
    expected = solve_bands(np.ascontiguousarray(change(cell), dtype=float)[None], GENERIC, bands=4).frequency
    assert torch.equal(solve_bands(change(cell)[None], GENERIC, bands=4).frequency, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": np.zeros((1, 8, 8))}, r"`epsilon` must be positive and finite everywhere, got 0\.0"),
        ({"epsilon": -np.ones((1, 8, 8))}, r"positive and finite everywhere, got -1\.0"),
        ({"epsilon": np.full((1, 8, 8), np.nan)}, r"positive and finite everywhere, got nan"),
        ({"epsilon": np.ones((1, 8, 8)) + 0j}, "`epsilon` must be real, got complex numbers"),
        ({"epsilon": np.ones(8)}, r"must have shape .*, got \(8,\)"),
        ({"resolution": 3}, r"`resolution` must divide the fine grid 8 x 8 by a whole factor, got 3"),
        ({"bands": 65}, r"`bands` must be a whole number from 1 to the number of plane waves, 64, got 65"),
        ({"polarization": "tem"}, r"`polarization` must be one of tm, te, got 'tem'"),
        ({"tolerance": 0.0}, r"`tolerance` must be positive, got 0\.0"),
    ],
)
def test_errors_state_the_rule_and_the_value(change, message):
    settings = {"epsilon": np.ones((1, 8, 8)), "wavevectors": GENERIC, **change}
    with pytest.raises(ValueError, match=message):
        solve_bands(**settings)


@pytest.mark.mpb
@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_agrees_with_mpb(polarization):
    cell = level_set(128, seed=11, low=2.0, high=8.0)[None]
    settings = {"polarization": polarization, "resolution": 32}
    fast = solve_bands(cell, GENERIC[:4], **settings)
    # MPB's highest frequency has a sign, and k and -k differ by it: their mean does not.
    reference, opposite = (mpb.solve_bands(cell, sign * GENERIC[:4], **settings) for sign in (1, -1))
    mean = (reference.frequency + opposite.frequency) / 2
    assert largest_error(fast.frequency[0], mean[0].numpy()) < 3e-5
    torch.testing.assert_close(fast.group_velocity, reference.group_velocity, rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_gpu_agrees_with_cpu(polarization):
    cells = np.stack([level_set(64, seed) for seed in range(4)])
    settings = {"polarization": polarization, "resolution": 32}
    host, device = (solve_bands(cells, GENERIC, device=name, **settings) for name in ("cpu", "cuda"))
    torch.testing.assert_close(device.frequency.cpu(), host.frequency, rtol=1e-9, atol=0)
    torch.testing.assert_close(device.group_velocity.cpu(), host.group_velocity, rtol=0, atol=1e-6)
