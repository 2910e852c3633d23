import pytest
import torch

from photonic_essl.encoders import Encoder
from photonic_essl.standardisation import FixedRange, ScaleFree

CELLS = 1 + 12 * torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_published_range_becomes_0_to_1():
    ends = torch.tensor([1.0, 10.5, 20.0]).reshape(1, 1, 3, 1)
    torch.testing.assert_close(FixedRange()(ends).flatten(), torch.tensor([0.0, 0.5, 1.0]))


def test_the_light_encoder_sees_no_factor_of_epsilon_and_the_published_one_does():
    light, paper = (Encoder(name).eval() for name in ("light", "paper"))
    torch.testing.assert_close(light(1.5 * CELLS), light(CELLS), rtol=1e-4, atol=1e-5)
    assert (paper(1.5 * CELLS) - paper(CELLS)).abs().max() > 1e-3


def test_no_two_patterns_look_the_same():
    seen = ScaleFree()(CELLS)
    torch.testing.assert_close(seen[:, 1].exp(), CELLS[:, 0] / CELLS.mean((2, 3)).reshape(-1, 1, 1))
    torch.testing.assert_close(2 * seen[:, 0] + 1, seen[:, 1].exp())


@pytest.mark.parametrize(
    ("standardise", "epsilon", "outside"),
    [
        (FixedRange(), [0.9, 2], True),
        (FixedRange(), [2, 21], True),
        (FixedRange(), [1, 20], False),
        (ScaleFree(), [2, 40], False),
        (ScaleFree(), [2, 41], True),
        (ScaleFree((1, 5)), [2, 11], True),
    ],
)
def test_what_it_is_made_for_is_known(standardise, epsilon, outside):
    cells = torch.tensor(epsilon, dtype=torch.float32).reshape(1, 1, 2, 1)
    assert standardise.outside(cells).tolist() == [outside]
