import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from photonic_essl import regression
from photonic_essl.encoders import Encoder
from photonic_essl.regression import Regressor, load_regressor
from photonic_essl.saving import DIGEST, digest, load_folder, read_folder, weights_fingerprint
from photonic_essl.vision.backbones import ImageEncoder, load_encoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a regressor."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    torch.manual_seed(0)
    Regressor("light").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(saved, tmp_path / "model")


def same(first, second):
    return weights_fingerprint(first) == weights_fingerprint(second)


def test_a_folder_and_a_repository_of_the_hub_give_the_model_back(saved, tmp_path):
    model = load_regressor(saved)
    assert same(model, Regressor.from_pretrained(saved))
    # What a download leaves in the hub's cache.
    repository = tmp_path / "models--group--dos"
    shutil.copytree(saved, repository / "snapshots" / "0a1b")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0a1b")
    options = {"cache_dir": tmp_path, "local_files_only": True}
    assert same(model, Regressor.from_pretrained("group/dos", **options))
    (repository / "snapshots" / "0a1b" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        Regressor.from_pretrained("group/dos", **options)


def test_the_card_says_what_the_model_is(saved):
    card = (saved / "README.md").read_text()
    assert "Regressor of the density of states of photonic crystal cells, made by photonic_essl" in card
    assert "library_name: photonic_essl" in card


def test_others_may_read_a_model_as_the_user_lets_them(folder):
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert set(modes.values()) == {0o666 & ~_umask()}, modes


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("setting", "value"), [("permittivity_range", [1.0, 12.0]), ("permittivity_range", [1.0, 21.0]), ("grid", "32")]
)
def test_a_changed_setting_is_refused(setting, value, folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, setting: value}))
    for load in (load_regressor, Regressor.from_pretrained):
        with pytest.raises(ValueError, match=f"the regressor in {folder} is damaged: settings and weights are not"):
            load(folder)
    (folder / "config.json").write_text(json.dumps(settings))  # other spaces, the same settings
    load_regressor(folder)


def test_a_model_of_another_approximation_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(regression, "REVISION", {"te": 1})
    Regressor("none", plane_waves=1.5, polarization="te").save_pretrained(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="it corrects approximation 1, this version has 3: train anew"):
        load_regressor(tmp_path)


def test_every_byte_of_the_weights_counts(saved, folder):
    whole = (saved / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in (header, (header + len(whole)) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=f"the regressor in {folder} is damaged"):
            load_regressor(folder)


def test_names_dtypes_and_shapes_count():
    one = {"a": torch.arange(6.0)}
    others = ({"b": one["a"]}, {"a": one["a"].view(torch.int32)}, {"a": one["a"].view(2, 3)}, {"a": one["a"][:5]})
    assert len({digest({}, weights) for weights in (one, *others)}) == 5
    assert digest({"x": 1}, one) != digest({}, one)
    # Any layout and any type, down to no dimension at all.
    assert digest({}, {"a": torch.eye(3).T[:, :2]}) == digest({}, {"a": torch.eye(3)[:, :2].contiguous()})
    digest({}, {"a": torch.tensor(1.0, dtype=torch.bfloat16), "b": torch.tensor(True), "c": torch.zeros(0, 3)})


def test_a_model_without_a_digest_is_refused(folder):
    save_model(load_regressor(folder), folder / "model.safetensors")
    for load in (load_regressor, Regressor.from_pretrained):
        with pytest.raises(ValueError, match=f"the regressor in {folder} has no digest"):
            load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_that_are_something_else_are_refused_in_one_line(name, folder):
    for content in (b"", b"\xff" * 100, b"[1, 2]", b"[" * 100_000, (2**62).to_bytes(8, "little") + b"{}"):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"the regressor in {folder} ") as caught:
            load_regressor(folder)
        assert "\n" not in str(caught.value)


def test_missing_files_and_other_kinds_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no saved encoder: there is no config.json"):
        load_folder(Encoder, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no saved image encoder: there is no config.json"):
        load_encoder(tmp_path, "tests.photonic_essl.vision.tiny:network")
    with pytest.raises(ValueError, match="holds no encoder, or one of another version: its settings are appr"):
        load_folder(Encoder, saved)


@pytest.mark.parametrize(
    "claim", [{"head": [2**40]}, {"grid": [2**40, 8]}, {"channels": "one"}, {"head": 3}, {"plane_waves": 1e6}]
)
def test_settings_that_claim_terabytes_take_no_memory(claim, folder):
    """With a digest that is right: who can write one can write what he likes."""
    settings, weights = read_folder(folder)
    settings |= claim
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(weights, folder / "model.safetensors", {DIGEST: digest(settings, weights)})
    with pytest.raises(ValueError, match=f"the regressor in {folder} cannot be loaded"):
        load_regressor(folder)


class Tied(nn.Module):
    """A network with one weight under two names, and one that is not contiguous."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.turned = nn.Parameter(torch.rand(3, 64).T)

    def forward(self, x):
        return self.second(self.first(x.flatten(1))) @ self.turned


def test_networks_of_the_users_own_are_saved_with_all_their_weights(tmp_path):
    encoder = Encoder("own", 1, (8, 8), network=Tied()).eval()
    encoder.save_pretrained(tmp_path)
    cells = torch.rand(2, 1, 8, 8) + 1
    for loaded in (load_folder(Encoder, tmp_path, Tied()), Encoder.from_pretrained(tmp_path, network=Tied())):
        assert torch.equal(loaded(cells), encoder(cells))
    with pytest.raises(ValueError, match="the network of the encoder 'own' is not a preset, and has to be given"):
        Encoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the encoder in .* cannot be loaded"):
        load_folder(Encoder, tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))


def test_a_wider_type_is_saved_as_it_is(tmp_path):
    encoder = Encoder("light", 1, (8, 8)).double()
    encoder.save_pretrained(tmp_path)
    assert all(value.dtype != torch.float32 for value in load_file(tmp_path / "model.safetensors").values())
    torch.testing.assert_close(load_folder(Encoder, tmp_path).state_dict(), encoder.float().state_dict())


def test_images_are_no_exception(tmp_path):
    ImageEncoder("small", mean=(0.25,)).save_pretrained(tmp_path)
    assert load_encoder(tmp_path).mean.item() == 0.25
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace("0.25", "0.35"))
    with pytest.raises(ValueError, match="is damaged"):
        load_encoder(tmp_path)
