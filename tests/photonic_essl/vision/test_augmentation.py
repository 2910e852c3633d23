"""Batched augmentation against torchvision's, image by image."""

import pytest
import torch
from torchvision.transforms.v2 import functional

from photonic_essl.vision.augmentation import PUBLISHED_AUGMENTATIONS, Augmentation, blurred, hue_shifted, luminance


def images(count=6, channels=3, height=32, width=32):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def between(quantiles, lowest, highest):
    return (lowest + quantiles * (highest - lowest)).tolist()


@pytest.mark.parametrize("box", [(0, 0, 32, 32), (4, 8, 16, 16), (3, 5, 29, 9), (10, 12, 5, 6)])
def test_a_crop_is_torchvisions_larger_or_smaller(box):
    plain = Augmentation(16, flip=0.0)
    plain_boxes = torch.tensor([box] * 6, dtype=torch.float32)
    expected = functional.resized_crop(images(), *box, [16, 16], antialias=True)
    torch.testing.assert_close(plain._cropped(images(), plain_boxes), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 60), (10, 400)])
def test_boxes_lie_within_the_image_and_have_the_areas_and_shapes_asked_for(height, width):
    augmentation = Augmentation(16, (0.2, 1.0))
    boxes = augmentation.boxes(augmentation.draw(2000, generator()), (height, width))
    top, left, tall, wide = boxes.T
    assert (boxes >= 0).all()
    assert (top + tall <= height + 1e-3).all()
    assert (left + wide <= width + 1e-3).all()
    assert ((wide / tall > 0.7499) & (wide / tall < 1.3334)).all()
    part = tall * wide / (height * width)
    assert part.max() <= 1.0001
    assert part.min() >= (0.1999 if width < 400 else 0.03)
    if height == width:
        assert 0.5 < part.mean() < 0.6  # uniform from 0.2 to 1, the largest more often outside


def test_the_jitter_is_torchvisions_part_by_part():
    augmentation = Augmentation(32, flip=0.0, jitter=(0.4, 0.3, 0.2, 0.1), jitter_probability=1.0)
    draws = augmentation.draw(6, generator())
    brightness, contrast, saturation, hue = draws[:, 42:46].T
    expected = []
    for image, *factors in zip(
        images(),
        between(brightness, 0.6, 1.4),
        between(contrast, 0.7, 1.3),
        between(saturation, 0.8, 1.2),
        between(hue, -0.1, 0.1),
    ):
        image = functional.adjust_brightness(image, factors[0])
        image = functional.adjust_contrast(image, factors[1])
        image = functional.adjust_saturation(image, factors[2])
        expected.append(functional.adjust_hue(image, factors[3]))
    torch.testing.assert_close(augmentation.recoloured(images(), draws), torch.stack(expected), atol=1e-5, rtol=0)


def test_hue_and_blur_are_torchvisions_each_with_its_own_parameter():
    shifts = torch.linspace(-0.5, 0.5, 6)
    shifted = hue_shifted(images(), shifts[:, None, None, None])
    widths = torch.tensor([0.0, 0.1, 0.5, 1.0, 1.5, 2.0])
    softened = blurred(images(), widths)
    assert torch.equal(softened[0], images()[0])
    for i, image in enumerate(images()):
        torch.testing.assert_close(shifted[i], functional.adjust_hue(image, shifts[i].item()), atol=1e-5, rtol=0)
        if i:
            expected = functional.gaussian_blur(image, [13, 13], [widths[i].item()] * 2)
            torch.testing.assert_close(softened[i], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"flip": 0.5}, lambda image: image.flip(3)),
        ({"greyscale": 0.5}, lambda image: luminance(image).expand_as(image)),
        ({"solarise": 0.5}, lambda image: torch.where(image >= 0.5, 1 - image, image)),
    ],
)
def test_what_happens_by_chance_happens_to_so_many_images(settings, changed):
    augmentation = Augmentation(8, **{"flip": 0.0, **settings})
    same = images(1, height=8, width=8).expand(1000, -1, -1, -1)
    views = augmentation.recoloured(same, augmentation.draw(1000, generator()))
    happened = torch.isclose(views, changed(same), atol=1e-6).flatten(1).all(1)
    untouched = (views == same).flatten(1).all(1)
    assert (happened ^ untouched).all()
    assert 440 < happened.sum() < 560


@pytest.mark.parametrize("preset", ["digits", "cifar10", "imagenet"])
def test_views_follow_from_the_draws_alone_and_differ_from_image_to_image(preset):
    channels, size = (1, 8) if preset == "digits" else (3, 32)
    for augmentation in PUBLISHED_AUGMENTATIONS[preset]:
        same = images(1, channels, size, size).expand(4, -1, -1, -1)
        draws = augmentation.draw(4, generator())
        views = augmentation.apply(same, draws)
        assert views.shape == (4, channels, augmentation.size, augmentation.size)
        assert 0 <= views.min() <= views.max() <= 1 + 1e-5
        assert len({view.sum().item() for view in views}) == 4
        torch.testing.assert_close(augmentation.apply(same[1:3], draws[1:3]), views[1:3])
        with torch.autocast("cpu", torch.bfloat16):  # as where networks are trained in half precision
            assert torch.equal(augmentation.apply(same, draws), views)
