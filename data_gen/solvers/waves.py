"""Standing waves: cosines and sines of k + G at the wavevectors with k ≡ -k, where modes can be chosen real.

Those are the centre of the Brillouin zone, the middles of its edges and its corners, four in all.
"""

from dataclasses import dataclass

import numpy as np
import torch

SYMMETRIC_POINTS = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5))  # in units of the reciprocal vectors


@dataclass(frozen=True)
class StandingWaves:
    """The shortest k + G, in complete shells, at each symmetric point.

    Points with fewer waves than others are padded with waves of `weight` 0.

    Attributes:
        position: flat index of G in the mesh, and that of its opposite -2k - G, shape `(2, point, wave)`.
        difference: flat mesh index of G - G', shape `(point, wave, wave)`.
        total: flat mesh index of 2k + G + G', likewise.
        kappa: Cartesian k + G, shape `(point, wave, 2)`, in 2π/a.
        weight: norm of each cosine and sine, shape `(point, 2, wave)`.
    """

    position: torch.Tensor
    difference: torch.Tensor
    total: torch.Tensor
    kappa: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def shortest(cls, shape: tuple[int, int], reciprocal: torch.Tensor, count: int) -> "StandingWaves":
        """Select about `count` cosines and sines at each symmetric point, of a mesh of `shape`."""
        points = np.array(SYMMETRIC_POINTS)
        chosen = [_half_set(point, shape, reciprocal.cpu().numpy(), count) for point in points]
        waves = max(len(orders) for orders in chosen)
        orders = np.zeros((len(chosen), waves, 2), dtype=np.int64)
        weight = np.zeros((len(chosen), 2, waves))
        for i, selected in enumerate(chosen):
            orders[i, : len(selected)] = selected
            weight[i, :, : len(selected)] = 1.0
        weight[0, :, 0] = np.sqrt(0.5), 0.0  # k + G = 0: the constant, which has no sine

        def flat(index: np.ndarray) -> torch.Tensor:
            x, y = np.moveaxis(index % shape, -1, 0)
            return torch.as_tensor(x * shape[1] + y, device=reciprocal.device)

        twice = np.rint(2 * points).astype(np.int64)[:, None]
        kappa = torch.as_tensor(orders + points[:, None], device=reciprocal.device) @ reciprocal
        return cls(
            position=torch.stack([flat(orders), flat(-twice - orders)]),
            difference=flat(orders[:, :, None] - orders[:, None]),
            total=flat(twice[:, None] + orders[:, :, None] + orders[:, None]),
            kappa=kappa,
            weight=torch.as_tensor(weight, device=reciprocal.device),
        )

    def overlap(self, function: torch.Tensor) -> torch.Tensor:
        """Return ⟨f|function|f'⟩ between all cosines, then sines, of each point.

        Args:
            function: real, on the mesh, shape `(sample, x, y)`.

        Returns:
            Shape `(sample, point, 2, wave, 2, wave)`.
        """
        spectrum = torch.fft.fft2(function, norm="forward").flatten(1)
        minus, plus = spectrum[:, self.difference], spectrum[:, self.total]
        cosine = torch.stack([minus.real + plus.real, minus.imag - plus.imag], dim=3)
        sine = torch.stack([-minus.imag - plus.imag, minus.real - plus.real], dim=3)
        return torch.stack([cosine, sine], dim=2) * self.weight[..., None, None] * self.weight[:, None, None]

    def stiffness(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return ⟨∇f|tensor|∇f'⟩ likewise, for a symmetric tensor `(sample, x, y, 2, 2)`."""
        outer = self.kappa[:, :, None, :, None] * self.kappa[:, None, :, None, :]
        # ∇cos = -(k + G) sin and ∇sin = (k + G) cos.
        sign = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=outer.dtype, device=outer.device)
        result = torch.zeros((), dtype=outer.dtype, device=outer.device)
        for i, j, copies in ((0, 0, 1), (0, 1, 2), (1, 1, 1)):
            overlap = self.overlap(tensor[..., i, j].contiguous()).flip((2, 4))
            pair = copies * (outer[..., i, j] + outer[..., j, i]) / 2
            result = result + overlap * pair[:, None, :, None] * sign[:, None, :, None]
        absent = torch.diag_embed((self.weight == 0).to(outer.dtype).flatten(1)).reshape(result.shape[1:])
        return result + absent * 10 * self.kappa.square().sum(-1).max()

    def fields(self, coefficients: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Sum the waves into periodic parts.

        Args:
            coefficients: real, shape `(sample, point, 2, wave, mode)`.
            shape: points of the mesh.

        Returns:
            Complex fields with shape `(sample, point, mode, x, y)`.
        """
        cosine, sine = (coefficients * self.weight[..., None]).unbind(2)
        samples, points, _, modes = cosine.shape
        half = torch.complex(cosine, -sine) / np.sqrt(2)
        spectrum = half.new_zeros(samples, points, shape[0] * shape[1], modes)
        index = self.position[:, None, ..., None].expand(2, samples, -1, -1, modes)
        spectrum.scatter_add_(2, index[0], half)
        spectrum.scatter_add_(2, index[1], half.conj().resolve_conj())
        return torch.fft.ifft2(spectrum.mT.reshape(samples, points, modes, *shape), norm="forward")


def edge_waves(shape: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return, for each symmetric point, the waves that are never standing waves: those at the edge of a mesh.

    There k + G, or its opposite, stands for another wave as well.

    Returns:
        Flat index of G, that of its opposite, and the coefficient of G in a field that is real like cosines and sines
        are; that of its opposite is the conjugate.
    """
    index = np.stack(np.unravel_index(np.arange(shape[0] * shape[1]), shape), axis=-1)
    order = (index + np.array(shape) // 2) % shape - np.array(shape) // 2
    found = []
    for twice in np.rint(2 * np.array(SYMMETRIC_POINTS)).astype(np.int64):
        opposite = -twice - order
        edge = (np.maximum(abs(order), abs(opposite)) > (np.array(shape) - 1) // 2).any(1)
        here = np.flatnonzero(edge)
        there = np.ravel_multi_index(tuple((opposite[edge] % shape).T), shape)
        coefficient = np.where(here == there, 0.5, np.where(here < there, np.sqrt(0.5), 1j * np.sqrt(0.5)))
        found.append((here, there, coefficient))
    return found


def _half_set(point: np.ndarray, shape: tuple[int, int], reciprocal: np.ndarray, count: int) -> np.ndarray:
    """Return one G of each pair G, -2k - G, shortest k + G first: complete shells of about `count` waves."""
    ranges = [np.arange(-((n - 1) // 2), (n - 1) // 2 + 1) for n in shape]
    orders = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 2)
    kappa = orders + point
    opposite = np.rint(-2 * point).astype(np.int64) - orders
    paired = ((opposite >= orders.min(0)) & (opposite <= orders.max(0))).all(1)
    first = (kappa[:, 0] > 0) | ((kappa[:, 0] == 0) & (kappa[:, 1] >= 0))
    orders, kappa = orders[paired & first], kappa[paired & first]
    length = np.linalg.norm(kappa @ reciprocal, axis=1)
    cutoff = np.sort(length)[min(count // 2, len(length)) - 1]
    keep = length <= cutoff * (1 + 1e-9)
    return orders[keep][np.argsort(length[keep], kind="stable")]
