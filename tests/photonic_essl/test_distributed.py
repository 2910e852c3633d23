import pytest
import torch
from torch import nn

from photonic_essl import distributed
from photonic_essl.distributed import GlobalBatchNorm, with_global_batch_norm


@pytest.fixture
def two_processes(monkeypatch):
    """As if another process held the same values (real ones: test_pretraining.py)."""
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.mul_(2))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
def test_normalisation_over_processes_is_that_of_the_whole_batch(two_processes, dtype, tolerance):
    own = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected, module = nn.BatchNorm2d(3), with_global_batch_norm(nn.Sequential(nn.BatchNorm2d(3)))
    if dtype == torch.float64:
        expected, module = expected.double(), module.double()
    whole = expected(torch.cat([own, own]))
    found = module(own)
    assert found.dtype == dtype
    torch.testing.assert_close(found, whole[:16], rtol=0, atol=tolerance)
    statistics = dict(expected.named_buffers())
    for name, value in module[0].named_buffers():
        torch.testing.assert_close(value, statistics[name], rtol=0, atol=1e-6 if dtype == torch.bfloat16 else 1e-12)


def test_normalisation_without_running_statistics_is_refused():
    with pytest.raises(ValueError, match="needs running statistics; 0 has none"):
        with_global_batch_norm(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))
    assert isinstance(with_global_batch_norm(nn.Sequential(nn.BatchNorm1d(3)))[0], GlobalBatchNorm)
