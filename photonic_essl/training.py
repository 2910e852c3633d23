"""What pre-training and fine-tuning share: seeded batches, checkpoints, resuming, logs, and the Lightning trainer.

Every random number of a run follows from its seed and the number of the step (or epoch) it is needed in. Nothing else
has to be remembered for a run to go on after it was killed and end with the same weights. (On a GPU two runs differ in
rounding: which algorithms are the fastest is found by trying.)
"""

import contextlib
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from jaxtyping import Int64
from lightly.utils.lars import LARS
from lightly.utils.scheduler import cosine_warmup_schedule
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from tqdm import tqdm

from photonic_essl.distributed import with_global_batch_norm
from photonic_essl.encoders import DivergenceError
from photonic_essl.runs import Run
from photonic_essl.torch_files import read_torch_file

DEVICES = ("auto", "cpu", "gpu")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
OPTIMIZERS = ("adam", "sgd", "lars")
STEPS_BETWEEN_LOGS = 20
SECONDS_BETWEEN_CHECKPOINTS = 10.0
CHECKPOINTED = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks"}
_SHUFFLE, _STEP = 0, 1


def derived_seed(*parts: int) -> int:
    """Return a seed below 2⁶³ that follows from the parts and is unrelated to that of any other parts.

    Raises:
        ValueError: if a part is negative.
    """
    if min(parts) < 0:
        raise ValueError(f"seeds must be at least 0, got {min(parts)}.")
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


@contextlib.contextmanager
def own_random_numbers(seed: int | None = None) -> Iterator[None]:
    """Put torch's own generators back afterwards, those of all GPUs included; begin with a seed where one is given."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def seed_torch(seed: int, device: torch.device) -> None:
    """Let torch's own generators of the CPU and of a device begin with a seed.

    `torch.manual_seed` does so for every kind of device that torch knows, and of those that are not there it notes each
    time where it was called: one to two milliseconds, a tenth of a step on a GPU.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class SeededModule(lightning.LightningModule):
    """A Lightning module whose data are known by number and whose randomness follows from a seed and the step.

    Subclasses give `losses(rows, generator)`. An epoch is `passes` passes over the samples, each shuffled anew.

    Args:
        samples: number of samples to draw batches from.
        batch_size: samples in a batch, over all processes together.
        seed: of shuffling and transformations.
        passes: over the samples in an epoch.
        whole_batches: leave out the remainder that does not fill a batch; otherwise batches are made equally large,
            and at most `batch_size`.
        optimizer: `"adam"`, `"sgd"` or `"lars"`.
        learning_rate: at the start; it falls to 0 by half a cosine over `epochs`, or stays where `cosine` is False.
        weight_decay: of the optimizer (added to the gradient, not decoupled).
        momentum: of SGD and LARS.
        epochs: number of epochs of the whole run.
        cosine: whether the learning rate falls.
        warmup_epochs: over which it rises linearly from 0, before it falls.

    Raises:
        ValueError: if a number is out of its range, or the samples do not fill a batch.
    """

    noun = "cells"
    """What a sample is called in messages."""

    def __init__(
        self,
        *,
        samples: int,
        batch_size: int,
        seed: int,
        epochs: int,
        optimizer: str,
        learning_rate: float,
        weight_decay: float,
        momentum: float = 0.9,
        passes: int = 1,
        whole_batches: bool = True,
        cosine: bool = True,
        warmup_epochs: int = 0,
    ):
        super().__init__()
        for name, value in (("batch_size", batch_size), ("epochs", epochs)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"`optimizer` must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}.")
        if not learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive, got {learning_rate}.")
        if not weight_decay >= 0:
            raise ValueError(f"`weight_decay` must not be negative, got {weight_decay}.")
        if optimizer == "lars" and not weight_decay:
            raise ValueError("`weight_decay` must be positive with lars, which adapts the rate of what decays, got 0.")
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be from 0 to less than 1, got {momentum}.")
        if not 0 <= warmup_epochs <= epochs:
            raise ValueError(f"`warmup_epochs` must be from 0 to the {epochs} epochs of the run, got {warmup_epochs}.")
        if whole_batches and samples < batch_size:
            raise ValueError(f"`batch_size` {batch_size} is larger than the {samples} {self.noun} there are.")
        self.samples, self.seed, self.epochs, self.passes = samples, seed, epochs, passes
        self.batches_per_pass = samples // batch_size if whole_batches else -(-samples // batch_size)
        self.batch_size = batch_size if whole_batches else 0
        self.optimizer_settings = (optimizer, learning_rate, weight_decay, momentum)
        self.cosine, self.warmup_epochs = cosine, warmup_epochs
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        self._generator: torch.Generator | None = None
        self._first_bad_step: Tensor | None = None
        self.reported: dict[str, float] = {}

    def losses(self, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the `loss` of a batch and what else is to be reported, scalars by name.

        Args:
            rows: numbers of the samples of the batch, all processes' together.
            generator: source of random numbers, on the module's device.
        """
        raise NotImplementedError

    def report(self, **values: float) -> None:
        """Show values beside the progress bar, and write them to the logs."""
        self.reported |= values
        for logger in self.loggers:
            logger.log_metrics(values, step=self.global_step)

    def train_dataloader(self) -> Sequence[int]:
        """Return the numbers of an epoch's batches."""
        return range(self.batches_per_pass * self.passes)

    def training_step(self, batch: int, batch_index: int) -> Tensor:
        """Return the loss of a batch, given its number within the epoch."""
        if self._generator is None:
            self._generator = torch.Generator(self.device)
        # Dropout and the like, in a network of the user's, draw from torch's own generator.
        seed = derived_seed(self.seed, _STEP, self.global_step)
        seed_torch(seed, self.device)
        self._generator.manual_seed(seed)
        losses = self.losses(self.rows(batch), self._generator)
        self._watch(losses["loss"].detach())
        if self.global_step % STEPS_BETWEEN_LOGS == 0:
            self.check_finite()
            self.report(**{name: value.item() for name, value in losses.items()})
        return losses["loss"]

    def rows(self, batch: int) -> Int64[Tensor, " batch"]:
        """Return the numbers of the samples in a batch of the current epoch."""
        number, part = divmod(batch, self.batches_per_pass)
        number += self.current_epoch * self.passes
        if self._order[0] != number:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, _SHUFFLE, number))
            self._order = (number, torch.randperm(self.samples, generator=generator).to(self.device))
        order = self._order[1]
        if self.batch_size:
            return order[part * self.batch_size : (part + 1) * self.batch_size]
        return torch.tensor_split(order, self.batches_per_pass)[part]

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimizer and its schedule."""
        name, learning_rate, weight_decay, momentum = self.optimizer_settings
        groups = self.parameter_groups()
        fused = self._may_fuse(groups)
        optimizer: torch.optim.Optimizer
        if name == "adam":
            optimizer = torch.optim.Adam(groups, learning_rate, weight_decay=weight_decay, fused=fused)
        elif name == "sgd":
            optimizer = torch.optim.SGD(groups, learning_rate, momentum, weight_decay=weight_decay, fused=fused)
        else:
            optimizer = LARS(groups, learning_rate, momentum, weight_decay=weight_decay)
        # Functions, not methods: of anything else the schedule would want to save the attributes.
        factors = [
            (lambda step: 1.0) if group.get("constant") else (lambda step: self._factor(step))
            for group in optimizer.param_groups
        ]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _may_fuse(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether one kernel may move all weights, which reads and writes each once."""
        # In half precision a first step may overflow, and leaves torch's fused SGD with momentum that nobody has set.
        return (
            self.device.type == "cuda"
            and self.trainer.precision != "16-mixed"
            and all(parameter.is_floating_point() for group in groups for parameter in group["params"])
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters to train, in groups with settings of their own.

        A group may have `lr`, `weight_decay` or `momentum` in place of the run's, and `constant`: whether its learning
        rate stays where it is.
        """
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def _factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by at a step."""
        if not self.cosine:
            return 1.0
        batches = len(self.train_dataloader())
        # One more than there are steps, for the zero at the end of the cosine to come after the last of them.
        steps, warmup = self.epochs * batches + 1, self.warmup_epochs * batches
        return cosine_warmup_schedule(step, steps, 1.0, 0.0, warmup, 0.0)

    def check_finite(self) -> None:
        """Stop the run if the loss of a step has not been finite.

        Raises:
            DivergenceError: naming the step.
        """
        step = -1 if self._first_bad_step is None else int(self._first_bad_step)
        if step >= 0:
            epoch = step // len(self.train_dataloader()) + 1
            raise DivergenceError(f"the loss is not finite at step {step} (epoch {epoch})")

    def _watch(self, loss: Tensor) -> None:
        # Kept on the device, as asking whether the loss is finite at every step would make a GPU wait for it.
        if self._first_bad_step is None:
            self._first_bad_step = torch.tensor(-1, device=loss.device)
        bad = ~torch.isfinite(loss) & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(bad, self.global_step, self._first_bad_step)


class ProgressBar(lightning.Callback):
    """One bar over all steps of the run, with what was reported last."""

    def on_train_start(self, trainer: lightning.Trainer, module: SeededModule) -> None:
        """Show the bar where the run begins or goes on."""
        steps = module.epochs * len(module.train_dataloader())
        # Into a file, a line every half minute is plenty.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(
            total=steps,
            initial=trainer.global_step,
            unit="step",
            mininterval=interval,
            dynamic_ncols=True,
            disable=not trainer.is_global_zero,
        )

    def on_train_batch_end(self, trainer: lightning.Trainer, module: SeededModule, *batch: Any) -> None:
        """Advance by a step."""
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in module.reported.items()}, refresh=False)
        self.bar.update()

    def teardown(self, trainer: lightning.Trainer, module: SeededModule, stage: str) -> None:
        """Leave the bar as it is."""
        if hasattr(self, "bar"):
            self.bar.close()

    def on_exception(self, trainer: lightning.Trainer, module: SeededModule, exception: BaseException) -> None:
        """Leave the bar as it is, before what went wrong is said."""
        self.teardown(trainer, module, "fit")


class LastCheckpoint(lightning.Callback):
    """Keeps the state after the latest epoch, and what it cost, written at most every few seconds, each in one go."""

    def __init__(self, run: Run):
        self.run = run
        self._written = -float("inf")

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: SeededModule) -> None:
        """Write the checkpoint if the last one is old enough, or the run is at its end."""
        module.check_finite()
        last = trainer.current_epoch + 1 >= module.epochs
        due = last or time.monotonic() - self._written >= SECONDS_BETWEEN_CHECKPOINTS
        if trainer.strategy.broadcast(due):
            part = self.run.checkpoint.with_suffix(".part")
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                os.replace(part, self.run.checkpoint)
                self.run.write()
            self._written = time.monotonic()


def fit(
    module: SeededModule,
    run: Run,
    *,
    callbacks: Sequence[lightning.Callback] = (),
    device: str = "auto",
    devices: int = 1,
    precision: str | None = None,
    progress: bool = True,
) -> None:
    """Train a module to the end of its epochs, from the run's checkpoint where there is one.

    Args:
        module: what to train.
        run: the run's folder.
        callbacks: called before the checkpoint of an epoch is written.
        device: `"cpu"`, `"gpu"`, or `"auto"`: a GPU if there is one.
        devices: number of processes, one a device.
        precision: as for `resolved_precision`.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if there is no such device, or the checkpoint is damaged or of other networks.
        DivergenceError: if the loss stops being finite.
        KeyboardInterrupt: if the user stops the run.
    """
    device, precision = resolved_device(device), resolved_precision(precision, device)
    if devices > 1 and device == "cpu":
        with_global_batch_norm(module)
    if precision == "64-true":  # before a checkpoint is loaded, which would be rounded to what the weights are in
        module.double()
    checkpoint = _checkpoint(run, module)
    with _quiet(), _trying_algorithms(), own_random_numbers():
        trainer = _trainer(module, run, callbacks, device, devices, precision, progress)
        with _interruptible(trainer), _telling_what_is_kept(run):
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
            module.check_finite()


def _checkpoint(run: Run, module: SeededModule) -> Path | None:
    """Return the run's checkpoint, if it has one; raises `ValueError` if it is damaged or of other networks."""
    if not run.checkpoint.exists():
        return None
    held = read_torch_file(run.checkpoint)
    if not isinstance(held, Mapping) or not set(held) >= CHECKPOINTED or not isinstance(held["state_dict"], Mapping):
        raise ValueError(f"{run.checkpoint} is no checkpoint of a run; without it, the run begins anew.")
    there, here = (
        {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
        for state in (held["state_dict"], module.state_dict())
    )
    if other := next((name for name in here | there if here.get(name) != there.get(name)), None):
        raise ValueError(
            f"{run.checkpoint} is of another architecture: the shape of `{other}` is {there.get(other, 'none')} there, "
            f"{here.get(other, 'none')} here; without it, the run begins anew."
        )
    return run.checkpoint


def _trainer(
    module: SeededModule,
    run: Run,
    callbacks: Sequence[lightning.Callback],
    device: str,
    devices: int,
    precision: str,
    progress: bool,
) -> lightning.Trainer:
    number = str(len(run.metrics))
    return lightning.Trainer(
        accelerator=device,
        devices=devices,
        # The processes' buffers agree already, and the running statistics need not be sent around at every step.
        strategy=DDPStrategy(broadcast_buffers=False) if devices > 1 else "auto",
        sync_batchnorm=devices > 1 and device == "gpu",
        precision=precision,  # type: ignore[arg-type]
        max_epochs=module.epochs,
        logger=[
            CSVLogger(run.folder, "logs", number, flush_logs_every_n_steps=1),
            TensorBoardLogger(run.folder, "tensorboard", number),
        ],
        callbacks=[*callbacks, *([ProgressBar()] if progress else []), LastCheckpoint(run)],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run.folder,
    )


def resolved_device(device: str, devices: int = 1) -> str:
    """Return `"cpu"` or `"gpu"` for one of `DEVICES`.

    Raises:
        ValueError: if it is not one of these, a GPU is asked for that is not there, or the number of devices is not
            positive.
    """
    if devices < 1:
        raise ValueError(f"`devices` must be at least 1, got {devices}.")
    if device not in DEVICES:
        raise ValueError(f"`device` must be one of {', '.join(DEVICES)}, got {device!r}.")
    if device == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if device == "gpu" and not torch.cuda.is_available():
        raise ValueError("`device` is gpu, but torch finds no CUDA device here.")
    return device


def resolved_precision(precision: str | None, device: str) -> str:
    """Return one of `PRECISIONS`: the one asked for, or bfloat16 on a GPU and float32 otherwise.

    Raises:
        ValueError: as `resolved_device`, or if there is no such precision, on a GPU or at all.
    """
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    on_gpu = resolved_device(device) == "gpu"
    if precision == "16-mixed" and not on_gpu:
        raise ValueError("`precision` 16-mixed needs a GPU; bf16-mixed does not.")
    return precision or ("bf16-mixed" if on_gpu else "32-true")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what Lightning prints about the machine and itself."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            # Steps that a GPU repeats were captured on a stream of their own, whose gradients torch waits for.
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _telling_what_is_kept(run: Run) -> Iterator[None]:
    """Say of a divergence whether there is a checkpoint of before, and what may help."""
    try:
        yield
    except DivergenceError as error:
        kept = "; the last good checkpoint is kept" if run.checkpoint.exists() else ""
        raise DivergenceError(f"{error}{kept}. Try a lower learning rate.") from None


@contextlib.contextmanager
def _trying_algorithms() -> Iterator[None]:
    """Let cuDNN try which algorithm is the fastest for batches that are all equally large.

    What it guesses can be eight times slower than what it finds, as it is for gradients of 7 × 7 convolutions.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def _interruptible(trainer: lightning.Trainer) -> Iterator[None]:
    """Let Ctrl-C arrive as KeyboardInterrupt; Lightning makes it an exit and leaves the signal ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
