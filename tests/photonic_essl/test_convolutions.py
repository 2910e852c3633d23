import pytest
import torch
from torch import nn

from photonic_essl.convolutions import PeriodicConvolution, WindowConvolution


def assert_alike(ours, reference, shape):
    """Assert that two layers with the same weights give the same, and the same gradients."""
    ours.load_state_dict(reference.state_dict())
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
        torch.testing.assert_close(ours(x), reference(x))
        gradients = [torch.autograd.grad(layer(x).sin().sum(), [x, layer.weight]) for layer in (ours, reference)]
        for found, expected in zip(*gradients):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 2), (7, 1)])
def test_periodic_convolution_is_torchs(size, stride):
    torch.manual_seed(0)
    reference = nn.Conv2d(2, 3, size, stride, size // 2, padding_mode="circular", bias=False).double()
    assert_alike(PeriodicConvolution(2, 3, size, stride).double(), reference, (2, 2, 8, 12))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("periodic", "mode"), [(True, "circular"), (False, "zeros")])
def test_window_convolution_is_torchs(periodic, mode, channels):
    torch.manual_seed(0)
    reference = nn.Conv2d(channels, 3, 7, padding=3, padding_mode=mode, bias=False).double()
    assert_alike(WindowConvolution(channels, 3, periodic).double(), reference, (2, channels, 8, 12))


def test_window_convolution_has_channels_last():
    x = torch.rand(2, 1, 8, 12)
    assert WindowConvolution(1, 3, periodic=False)(x).is_contiguous(memory_format=torch.channels_last)


def test_an_even_size_is_refused():
    with pytest.raises(ValueError, match="`size` must be odd and at least 3, got 4"):
        PeriodicConvolution(1, 1, 4)
