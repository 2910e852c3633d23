import pytest
import torch
from torch import nn

from photonic_essl.encoders import Encoder
from photonic_essl.published import import_encoder
from photonic_essl.saving import load_folder


def published_state(seed=0):
    """Return the state of a published encoder, by its keys, and the encoder as a function."""
    torch.manual_seed(seed)
    block = []
    for inputs, outputs, pool in ((1, 64, 2), (64, 256, 4), (256, 256, 4)):
        block += [nn.Conv2d(inputs, outputs, 7, 1, 3), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(pool, pool)]
    for normalisation in block[1::4]:
        normalisation.running_mean.normal_()
    block, linear = nn.Sequential(*block), nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024))
    state = {f"enc.enc_block2d.{key}": value for key, value in block.state_dict().items()}
    state |= {f"enc.fcpart.{key}": value for key, value in linear.state_dict().items()}
    return state, lambda x: linear(block.eval()(x).flatten(1))


def test_a_published_encoder_gives_what_it_gave(tmp_path):
    state, published = published_state()
    torch.save({"model_state_dict": state, "ptepoch": 200}, tmp_path / "encoder.pt")
    import_encoder(tmp_path / "encoder.pt", out=tmp_path / "encoder")
    cells = torch.rand(3, 1, 32, 32) * 19 + 1
    with torch.no_grad():
        torch.testing.assert_close(load_folder(Encoder, tmp_path / "encoder")(cells), published((cells - 1) / 19))
    with pytest.raises(FileExistsError, match="choose another folder"):
        import_encoder(tmp_path / "encoder.pt", out=tmp_path / "encoder")


class Code:
    def __reduce__(self):
        return print, ("this code must not run",)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"weights": {}}, "is no published checkpoint"),
        ([1, 2], "is no published checkpoint"),
        ({"model_state_dict": Code()}, "holds more than tensors"),
        ({"model_state_dict": {"enc.fcpart.0.weight": torch.ones(3)}}, "of another architecture"),
    ],
)
def test_other_files_are_refused_and_no_code_runs(held, message, tmp_path, capsys):
    torch.save(held, tmp_path / "encoder.pt")
    with pytest.raises(ValueError, match=message):
        import_encoder(tmp_path / "encoder.pt", out=tmp_path / "encoder")
    assert capsys.readouterr().out == ""
    with pytest.raises(FileNotFoundError):
        import_encoder(tmp_path / "nothing.pt", out=tmp_path / "encoder")
