import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from photonic_essl.vision.backbones import BACKBONES, ImageEncoder, load_encoder
from photonic_essl.vision.interchange import export_encoder, import_encoder

from .conftest import TINY


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("factory", "name"), [(resnet18, "resnet18"), (resnet50, "resnet50")])
def test_torchvision_loads_what_it_saved_through_us(factory, name, tmp_path):
    torch.manual_seed(0)
    theirs = factory()
    theirs.bn1.running_mean.uniform_()
    held = {"backbone": theirs.state_dict(), "projector": {"0.weight": torch.zeros(2)}, "head": {}}
    torch.save(held, tmp_path / "resnet.pth")
    encoder = import_encoder(tmp_path / "resnet.pth", out=tmp_path / "encoder")
    assert encoder.name == name
    export_encoder(tmp_path / "encoder", out=tmp_path / "again.pth")
    again = factory()
    again.fc = nn.Identity()
    again.load_state_dict(torch.load(tmp_path / "again.pth", weights_only=True)["backbone"])
    theirs.fc = nn.Identity()
    assert same(theirs.state_dict(), again.state_dict())
    image = torch.rand(1, 3, 64, 64)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = theirs.eval()((image - mean) / deviation)
    torch.testing.assert_close(load_encoder(tmp_path / "encoder")(image), expected, atol=1e-4, rtol=1e-4)


def test_a_resnet_for_small_images_is_one_of_torchvisions_with_another_stem(tmp_path):
    ImageEncoder("resnet18-cifar", 3, (32, 32)).save_pretrained(tmp_path / "encoder")
    export_encoder(tmp_path / "encoder", out=tmp_path / "weights.pth")
    theirs = resnet18()
    theirs.conv1, theirs.maxpool, theirs.fc = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity(), nn.Identity()
    theirs.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True)["backbone"])
    assert import_encoder(tmp_path / "weights.pth", out=tmp_path / "again").grid == (32, 32)


def test_what_is_no_resnet_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        import_encoder(tmp_path / "nothing.pth", out=tmp_path / "encoder")
    file = tmp_path / "weights.pth"
    for held, message in (
        ({"weight": torch.zeros(1)}, "there is no conv1.weight"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "holds no resnet18 of torchvision's"),
        (resnet18, "is damaged, or holds more than tensors"),
        ({"conv1.weight": torch.zeros(64)}, "there is no conv1.weight"),
    ):
        torch.save(held, file)
        with pytest.raises(ValueError, match=message):
            import_encoder(file, out=tmp_path / "encoder")
    file.write_bytes(b"not a zip archive")
    with pytest.raises(ValueError, match="is damaged"):
        import_encoder(file, out=tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
    ImageEncoder("small").save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="which torchvision does not have"):
        export_encoder(tmp_path / "small", out=file.with_name("out.pth"))


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_see_which_way_up_an_image_is_at_any_size(name):
    torch.manual_seed(0)
    channels, size = (1, 8) if name == "small" else (3, 32)
    encoder = ImageEncoder(name, channels, (size, size), (0.5,) * channels, (0.25,) * channels).eval()
    for side in (size, 2 * size):
        image = torch.rand(2, channels, side, side)
        assert encoder(image).shape == (2, encoder.features)
        assert (encoder(image) - encoder(image.rot90(1, (2, 3)))).abs().max() > 1e-4
    grey = torch.full((1, channels, size, size), 0.5)
    torch.testing.assert_close(encoder(grey), encoder.network(torch.zeros_like(grey)))


def test_what_is_there_is_not_written_over(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(FileExistsError, match="exists; choose another folder"):
        import_encoder(tmp_path / "weights.pth", out=tmp_path)
    with pytest.raises(FileExistsError, match=r"weights\.pth exists; choose another file"):
        export_encoder(tmp_path, out=tmp_path / "weights.pth")


def test_a_folder_without_an_encoder_is_refused_for_a_network_of_ones_own(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no saved image encoder: there is no config\.json"):
        load_encoder(tmp_path, TINY)
