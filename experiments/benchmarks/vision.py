"""What a step of each recipe for images costs, and how long the published runs would take on the machine at hand.

    python -m experiments.benchmarks.vision [--gpu-only]

On the CPU: steps of the real training with few images each. On a GPU, where there is one: images per second of CIFAR-10
E-SimCLR at batch 512, beside those of the same network fed by torchvision on 16 worker processes; ResNet-50
E-SimCLR on synthetic images, and what part of the GPU's arithmetic its model does. From these steps, the days of each
published run on either: an extrapolation. Writes experiments/results/vision.json.
"""

import argparse
import functools
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from experiments.benchmarks.pretraining import step_seconds
from photonic_essl.records import environment
from photonic_essl.symmetry import identity, quarter_turns
from photonic_essl.vision.augmentation import PUBLISHED_AUGMENTATIONS, Augmentation
from photonic_essl.vision.datasets import STANDARDISATIONS
from photonic_essl.vision.images import MemoryImages
from photonic_essl.vision.pretraining import ImagePretraining
from photonic_essl.vision.recipes import load_recipe

RESULT = Path("experiments/results/vision.json")
SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "imagenet": (3, 224, 224)}
IMAGES = {"cifar10": 50_000, "imagenet": 1_281_167}
SMALL_BATCHES = {"digits": 256, "cifar10": 32, "imagenet": 4}
LARGE_BATCHES = {"cifar10": 512, "imagenet": 256}
"""Of ImageNet on one GPU; the published batches are spread over many."""

RECIPES = {
    "digits": ("simclr", "e-simclr", "simsiam", "e-simsiam", "barlow", "e-barlow"),
    "cifar10": ("simclr", "e-simclr", "simsiam", "e-simsiam"),
    "imagenet": ("simclr", "e-simclr", "simsiam", "e-simsiam", "barlow", "e-barlow"),
}
WORKERS = 16
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "V100": 125e12}
"""Of dense bfloat16 matrix products (float16 on V100), per second, as NVIDIA states."""


@functools.cache
def made_up_pixels(shape: tuple[int, ...]) -> torch.Tensor:
    """Return images of noise; what they look like does not matter here."""
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def module(recipe: str, preset: str, batch_size: int, steps: int) -> ImagePretraining:
    """Return the pre-training of one epoch of made-up images."""
    settings = load_recipe(recipe, preset) | {"batch_size": batch_size, "epochs": 1, "warmup_epochs": 0}
    pixels = made_up_pixels((batch_size * steps, *SHAPES[preset]))
    predicted = quarter_turns() if settings["transformation"] == "predicted" else identity()
    return ImagePretraining(
        MemoryImages(pixels, torch.zeros(len(pixels), dtype=torch.long)),
        STANDARDISATIONS[preset],
        settings,
        PUBLISHED_AUGMENTATIONS[preset],
        predicted,
    )


def small_steps(steps: int = 3) -> dict[str, dict[str, float]]:
    """Return the seconds of steps on the CPU, by dataset and recipe."""
    return {
        preset: {recipe: step_seconds(module(recipe, preset, batch, steps), "cpu") for recipe in RECIPES[preset]}
        for preset, batch in SMALL_BATCHES.items()
    }


class TorchvisionViews(Dataset):
    """The same views, made image by image by torchvision's transforms."""

    def __init__(self, pixels: torch.Tensor, augmentations: tuple[Augmentation, ...]):
        self.images = [to_pil_image(image) for image in pixels]
        self.transforms = [
            transforms.Compose(
                [
                    transforms.RandomResizedCrop(augmentation.size, augmentation.scale),
                    transforms.RandomHorizontalFlip(augmentation.flip),
                    transforms.RandomApply(
                        [transforms.ColorJitter(*augmentation.jitter)], augmentation.jitter_probability
                    ),
                    transforms.RandomGrayscale(augmentation.greyscale),
                    transforms.ToTensor(),
                ]
            )
            for augmentation in augmentations
        ]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[torch.Tensor]:
        return [transform(self.images[row]) for transform in self.transforms]


def torchvision_seconds(trained: ImagePretraining, batch_size: int, first: int = 8) -> float:
    """Return the time of the same step where worker processes make the views."""
    trained = trained.cuda().train()
    optimizer = trained.configure_optimizers()["optimizer"]
    views = TorchvisionViews(trained.images.pixels, trained.augmentations)
    loader = DataLoader(views, batch_size, num_workers=WORKERS, pin_memory=True, drop_last=True)
    rows, ended = torch.arange(batch_size, device="cuda"), []
    for batch in loader:
        trained.views = iter([[view.cuda(non_blocking=True) for view in batch]])
        with torch.autocast("cuda", torch.bfloat16):
            loss = trained.losses(rows, torch.Generator("cuda"))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        ended.append(time.perf_counter())
    return (ended[-1] - ended[first]) / (len(ended) - 1 - first)


def step_flops(trained: ImagePretraining, batch_size: int) -> int:
    """Return the floating-point operations of forward and backward, by counting those of one step."""
    trained = trained.cuda().train()
    trained.on_train_epoch_start()
    with FlopCounterMode(display=False) as counter, torch.autocast("cuda", torch.bfloat16):
        trained.losses(torch.arange(batch_size, device="cuda"), torch.Generator("cuda"))["loss"].backward()
    return counter.get_total_flops()


def gpu() -> Iterator[dict]:
    """Give what is measured on the GPU at hand, one thing after the other, and the days of published runs on it."""
    steps: dict[str, dict[str, float]] = {preset: {} for preset in LARGE_BATCHES}
    for preset, batch in LARGE_BATCHES.items():
        for recipe in RECIPES[preset]:
            steps[preset][recipe] = step_seconds(module(recipe, preset, batch, 30), "gpu", first=10)
            gc.collect()  # a trainer and its module hold each other, and the images
            yield {"step_seconds": steps, "published_run_days": published_days(steps, LARGE_BATCHES)}
    batch = LARGE_BATCHES["imagenet"]
    rate = step_flops(module("e-simclr", "imagenet", batch, 1), batch) / steps["imagenet"]["e-simclr"]
    peak = next((peak for name, peak in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()), None)
    yield {"resnet50_flops_per_second": rate, "resnet50_model_flop_utilisation": peak and rate / peak}
    torch.backends.cudnn.benchmark = True  # as training has it
    batch, batched = LARGE_BATCHES["cifar10"], steps["cifar10"]["e-simclr"]
    by_workers = torchvision_seconds(module("e-simclr", "cifar10", batch, 40), batch)
    yield {
        "cifar10_images_per_second": batch / batched,
        "cifar10_images_per_second_torchvision": batch / by_workers,
        "cifar10_speed_over_torchvision": by_workers / batched,
    }


def published_days(steps: dict[str, dict[str, float]], batches: dict[str, int]) -> dict[str, float]:
    """Return the days of each published run on one such device, without the decoding of files, from measured steps."""
    return {
        f"{preset}, {recipe}": seconds
        * (IMAGES[preset] // batches[preset])
        * load_recipe(recipe, preset)["epochs"]
        / 86_400
        for preset, by_recipe in steps.items()
        if preset in IMAGES
        for recipe, seconds in by_recipe.items()
    }


def table(results: dict) -> str:
    """Return what was found as text."""
    lines = [f"{'seconds a step on the CPU':40s}" + f"{results['threads']} threads".rjust(12)]
    for preset, by_recipe in results["cpu_step_seconds"].items():
        size = f"{preset}, batch {SMALL_BATCHES[preset]}"
        lines += [f"{f'{size}, {recipe}':40s}{seconds:12.3f}" for recipe, seconds in by_recipe.items()]
    lines += [
        f"{f'days on this CPU, {run}':40s}{days:12.0f}" for run, days in results["cpu_published_run_days"].items()
    ]
    found = results.get("gpu", {})
    used = found.get("resnet50_model_flop_utilisation")
    measured = [
        ("CIFAR-10 E-SimCLR, images per second", found.get("cifar10_images_per_second"), "12.0f"),
        ("over torchvision, 16 workers (aim ≥ 5)", found.get("cifar10_speed_over_torchvision"), "12.1f"),
        ("ResNet-50 E-SimCLR, FLOP/s", found.get("resnet50_flops_per_second"), "12.3g"),
        ("% of what the GPU can (aim ≥ 40)", used and 100 * used, "12.0f"),
        *((f"days, {run}", days, "12.1f") for run, days in found.get("published_run_days", {}).items()),
    ]
    lines += [f"{name:40s}{value:{form}}" for name, value, form in measured if value is not None]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu-only", action="store_true", help="leave out what is measured on the CPU")
    arguments = parser.parse_args()
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    here = environment()  # before the file changes, as the commit is no longer what runs then
    if not arguments.gpu_only:
        steps = small_steps()
        results |= {
            "cpu_step_seconds": steps,
            "cpu_published_run_days": published_days(steps, SMALL_BATCHES),
            "threads": torch.get_num_threads(),
            "environment": here,
        }
        write(results)
    if torch.cuda.is_available():
        results |= {"gpu": {}, "gpu_environment": here}
        for found in gpu():
            results["gpu"] |= found
            write(results)  # at once: the time on a GPU may run out
    else:
        print("no CUDA device here: what needs one is left as it was")
    print(table(results))


def write(results: dict) -> None:
    RESULT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
