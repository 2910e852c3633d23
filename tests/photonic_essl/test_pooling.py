import pytest
import torch
from torch import nn

from photonic_essl.pooling import NormalisedMaxPool, _have_kernels

SHAPES = [((5, 64, 8, 12), 2), ((3, 80, 16, 8), 4), ((40, 24, 4, 4), 4)]


def numbers(shape, dtype=torch.float64):
    """Return numbers whose mean is far from zero, and a normalisation of them, half of whose weights are negative."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.BatchNorm2d(shape[1]).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(shape[1], generator=generator))
        layer.bias.copy_(torch.randn(shape[1], generator=generator))
    x = 30 + 2 * torch.randn(shape, generator=generator)
    return x.to(dtype).contiguous(memory_format=torch.channels_last), layer


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_kernels_agree_with_double_precision(shape, size, monkeypatch):
    pytest.importorskip("triton")
    from photonic_essl import pooling_kernels as kernels

    monkeypatch.setattr(kernels, "PROGRAMS", 3)  # so that each has several windows, and not all have equally many
    x, layer = numbers(shape)
    moved = layer.running_mean.float(), layer.running_var.float()
    expected = nn.functional.max_pool2d(layer(x.requires_grad_()), size)
    handed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(x)
    expected.backward(handed.contiguous(memory_format=torch.channels_last))
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def on_device(value):
        return value.detach().float().to(device)

    def channel(value):
        return value[:, None, None]

    of_pooled, weight, moved = on_device(handed), on_device(layer.weight), [value.to(device) for value in moved]
    pooled, chosen, sums = kernels.pool(on_device(x), weight, size)
    mean, inverse = kernels.statistics(on_device(x), sums, *moved, layer.momentum, layer.eps)
    apart = pooled - channel(mean)
    of_x = kernels.gradient(
        on_device(x), of_pooled.contiguous(memory_format=torch.channels_last), chosen, weight, mean, inverse,
        of_pooled.sum((0, 2, 3)), (of_pooled * apart).sum((0, 2, 3)), size,
    )  # fmt: skip
    found = apart * channel(inverse * weight) + channel(on_device(layer.bias))
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found.cpu(), expected.detach().float(), **close)
    torch.testing.assert_close(of_x.cpu(), x.grad.float(), **close)
    torch.testing.assert_close(moved[0].cpu(), layer.running_mean.float(), **close)
    torch.testing.assert_close(moved[1].cpu(), layer.running_var.float(), **close)


def test_a_variance_that_rounding_made_negative_is_none():
    pytest.importorskip("triton")
    from photonic_essl import pooling_kernels as kernels

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.zeros(2, 1, 2, 2, device=device).contiguous(memory_format=torch.channels_last)
    sums = torch.tensor([[[8.0], [8.0 - 1e-3]]], device=device)  # of eight numbers, and of their squares
    moved = torch.zeros(2, 1, device=device).unbind()
    mean, inverse = kernels.statistics(x, sums, *moved, 0.1, 1e-5)
    torch.testing.assert_close(torch.cat([mean, inverse]).cpu(), torch.tensor([1.0, 1e-5**-0.5]))
    torch.testing.assert_close(torch.cat(moved).cpu(), torch.tensor([0.1, 0.0]))
    assert not torch.isfinite(kernels.statistics(x, sums * float("nan"), *moved, 0.1, 1e-5)[1]).any()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_training_on_a_gpu_sees_layer_after_layer(shape, size, precision):
    found = []
    for one_pass in (True, False):
        x, layer = numbers(shape, torch.float32)
        pool = NormalisedMaxPool(shape[1], size).cuda()
        pool[0].load_state_dict(layer.state_dict())
        x = x.to("cuda", precision).requires_grad_()
        assert pool._one_pass(x)
        result = pool(x) if one_pass else nn.Sequential.forward(pool, x)
        result.square().sum().backward()
        parameters = [parameter.grad for parameter in pool.parameters()]
        found.append([value.detach().cpu() for value in (result, *parameters, *pool.buffers())])
    close = {"rtol": 1e-4, "atol": 1e-4} if precision == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, **close)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels can be made here")
def test_where_kernels_cannot_be_made_it_is_said_why():
    with pytest.warns(UserWarning, match=r"training takes longer, as kernels cannot be made here: \w+: .+"):
        assert not _have_kernels.__wrapped__(torch.float32)


@pytest.mark.gpu
def test_statistics_that_are_frozen_stay_so_where_the_rest_trains():
    x, layer = numbers(SHAPES[0][0], torch.float32)
    pool = NormalisedMaxPool(x.shape[1], 2).cuda()
    pool[0].load_state_dict(layer.state_dict())
    pool[0].eval()
    torch.testing.assert_close(pool(x.cuda()).cpu(), nn.functional.max_pool2d(layer.eval()(x), 2))
    assert torch.equal(pool[0].running_mean.cpu(), layer.running_mean)
    assert pool(x[:0].cuda()).shape == (0, *pool(x.cuda()).shape[1:])
