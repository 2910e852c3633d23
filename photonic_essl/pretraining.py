"""Self-supervised pre-training of an encoder on unlabelled cells: E-SSL and what it is compared with."""

import functools
import gc
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from photonic_essl.cuda_graphs import captured
from photonic_essl.data import Cells, load_cells
from photonic_essl.distributed import check_shared, gathered, own_part, processes
from photonic_essl.encoders import NETWORKS, Encoder, check_widths, evaluating, make_network, multilayer
from photonic_essl.objectives import ESSL, INVARIANCE_OBJECTIVES, PREDICTION_TASKS, PredictionTask
from photonic_essl.probing import Monitor, Probe
from photonic_essl.recipes import load_recipe, overridden
from photonic_essl.runs import Run
from photonic_essl.saving import load_folder, one_line
from photonic_essl.symmetry import TransformGroup, fitting_group, identity, published_groups
from photonic_essl.training import (
    SeededModule,
    derived_seed,
    fit,
    own_random_numbers,
    resolved_device,
    resolved_precision,
)

ROLES = ("predicted", "invariance", "unused")
LARGEST_ORBIT = 64
"""Groups with more elements than this are not predicted element by element: a step sees the whole orbit."""

_INITIALISATION = 2


def pretrain(
    data: str | Path,
    out: str | Path,
    *,
    recipe: str = "e-simclr",
    encoder: str = "light",
    family: str | None = None,
    invariance: str | None = None,
    equivariance: str | None = None,
    prediction: str | None = None,
    weight: float | None = None,
    temperature: float | None = None,
    off_diagonal_weight: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    projector: list[int] | None = None,
    classifier: list[int] | None = None,
    seed: int = 0,
    probe: str | Path | None = None,
    probe_every: int = 5,
    device: str = "auto",
    devices: int = 1,
    precision: str | None = None,
    compile: bool = False,
    progress: bool = True,
) -> Encoder:
    """Pre-train an encoder on unlabelled cells, and save it as a folder.

    A run that was stopped goes on from its last checkpoint when it is started again with the same settings, and ends
    with the weights that it would have had without the stop; on a GPU, as nearly as two runs agree there.

    Args:
        data: dataset file; labels, if it has any, are not looked at.
        out: folder to write: the encoder, its settings, logs and checkpoint.
        recipe: name of a recipe: simclr, simclr+t, e-simclr, e-simsiam or e-barlow. What each sets for which encoder
            is in `NAME.yaml` in `photonic_essl/recipes`, and in `run.json` of a run; what follows overrides it.
        encoder: light, paper or paper-circular, or your own as `module:factory`.
        family: whose published groups to use: blob or gpm; that of the data where not given.
        invariance: group whose transformations make the views: translations, translations/n (by 1/n of the cell),
            half-turn, quarter-turns, mirrors, square, rhombus, hexagon, rescaling (of ε), identity, or a product such
            as `"mirrors * quarter-turns"`; or `lattice` for all that any cell's density of states is invariant to.
        equivariance: group, of the same names, whose elements are predicted (or added to the views by `simclr+t`).
        prediction: task: absolute, relative or continuous.
        weight: of the prediction loss beside the invariance loss.
        temperature: what SimCLR divides similarities by.
        off_diagonal_weight: of correlations between features, in Barlow Twins.
        epochs: passes over the data, each but for the cells that do not fill a last batch.
        batch_size: cells in a batch, over all devices together.
        optimizer: adam (of the encoder `light`), sgd (of `paper`) or lars.
        learning_rate: at the start; it falls to zero by half a cosine.
        momentum: of sgd and lars.
        weight_decay: added to the gradient.
        projector: widths of the layers behind the representation whose output the views are compared by.
        classifier: widths of the hidden layers that predict the transformation.
        seed: of the initial weights, the shuffling and the transformations.
        probe: labelled validation file; every few epochs a ridge regression of its densities of states from the frozen
            representation says how good that is (fitted to one half of the cells, scored on the other).
        probe_every: epochs between probes.
        device: cpu, gpu, or auto: a GPU if there is one.
        devices: number of devices, each with a process of its own.
        precision: 32-true, 64-true, bf16-mixed or 16-mixed; bf16-mixed on a GPU and 32-true otherwise where not
            given.
        compile: whether to compile the encoder with torch.compile; on a GPU presets are faster without.
        progress: whether to show a progress bar.

    Returns:
        The trained encoder, on the CPU.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a setting is unknown or out of range, a group does not fit the cells, the encoder cannot tell
            apart what it is to predict, or the folder holds another run.
        DivergenceError: if the loss stops being finite.
    """
    cells, probed = load_cells(data), None if probe is None else load_cells(probe, labelled=True)
    settings = overridden(
        load_recipe(recipe, encoder),
        prediction=prediction,
        weight=weight,
        temperature=temperature,
        off_diagonal_weight=off_diagonal_weight,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        projector=projector,
        classifier=classifier,
    )
    if momentum is not None and settings["optimizer"] == "adam":
        raise ValueError(f"the optimizer adam has no use for `momentum`, got {momentum}.")
    if "transformation" not in settings:
        raise ValueError(f"the recipe {recipe!r} has no pre-training; give its labels to finetune.")
    if settings["transformation"] == "unused" and equivariance is not None:
        raise ValueError(f"the recipe {recipe!r} has no use for `equivariance`, got {equivariance!r}.")
    check_predicts(recipe, settings["transformation"], prediction=prediction, weight=weight, classifier=classifier)
    check_shared(settings["batch_size"], devices)
    if probed:
        check_probe(probed, cells)
    groups = named_groups(cells, settings["transformation"], family, invariance, equivariance)
    run = Run(
        out,
        "pretrain",
        {
            "recipe": recipe,
            "encoder": encoder,
            **settings,
            "invariance": groups[0].name,
            "equivariance": groups[1].name,
            "seed": seed,
            "data": cells.fingerprint,
            "probe": probed and probed.fingerprint,
            "probe_every": probe_every,
            "devices": devices,
            "precision": resolved_precision(precision, device),
        },
    )
    device = resolved_device(device, devices)
    if run.finished:
        print(f"{out} holds this run, finished; nothing was changed.")
        return load_folder(Encoder, out, None if encoder in NETWORKS else make_network(encoder, 1, cells.grid))
    module = Pretraining(cells, encoder, settings, groups, seed)
    if compile:
        module.compile_encoder()
    monitor = Probe(probed, probe_every) if probed else None
    with run.sitting(data=str(data)):
        carry_out(module, run, monitor, device=device, devices=devices, precision=precision, progress=progress)
    return module.encoder


def check_probe(probed: Cells, cells: Cells) -> None:
    """Refuse cells to probe with that are of another kind than those trained on; raises `ValueError`."""
    kinds = [(part.grid, part.lattice.tolist()) for part in (probed, cells)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"cells to probe with have grid and lattice vectors {kinds[0]}, those to train on {kinds[1]}.")


def check_predicts(recipe: str, transformation: str, **asked: Any) -> None:
    """Refuse settings of a prediction where nothing is predicted.

    Raises:
        ValueError: if one of those asked for is not None, and the role of the transformation another.
    """
    for name, value in asked.items():
        if transformation != "predicted" and value is not None:
            raise ValueError(f"the recipe {recipe!r} predicts nothing, and has no use for `{name}`, got {value!r}.")


def carry_out(module: "SelfSupervised", run: Run, monitor: Monitor | None, **options: Any) -> None:
    """Train, or go on with it, and save the encoder in the run's folder; afterwards it is on the CPU.

    Args:
        module: what is trained.
        run: in whose sitting.
        monitor: what says during training how good the representation is.
        options: of `fit`.
    """
    fit(module, run, callbacks=[monitor] if monitor else [], **options)
    trained = module.encoder.cpu().eval()
    if module.global_rank == 0:
        trained.save_pretrained(run.folder)
        task = module.objective.prediction
        chance = {"prediction_accuracy_by_chance": task.chance} if task else {}
        run.finish(steps=module.global_step, **(monitor.last if monitor else {}), **chance)
        print(f"Pre-trained encoder written to {run.folder} ({run.record['seconds']:.0f} s).")


def named_groups(
    cells: Cells,
    transformation: str,
    family: str | None = None,
    invariance: str | None = None,
    equivariance: str | None = None,
) -> tuple[TransformGroup, TransformGroup]:
    """Return the group that makes the views, and the group whose elements are predicted.

    Args:
        cells: what the groups must fit, and whose family has the published groups.
        transformation: the role of the equivariance group: `"predicted"`, `"invariance"` (added to the views) or
            `"unused"`.
        family: whose published groups to use in place of the data's.
        invariance: group in place of the published one.
        equivariance: the same.

    Returns:
        The two groups; the second is the identity where nothing is predicted.

    Raises:
        ValueError: if nothing was published for the family and groups are not named, or a group does not fit.

    Warns:
        UserWarning: if the views are transformed by all that is to be predicted.
    """
    if transformation not in ROLES:
        raise ValueError(f"`transformation` must be one of {', '.join(ROLES)}, got {transformation!r}.")
    if transformation == "unused":
        equivariance = equivariance or "identity"
    if invariance is None or equivariance is None:
        published = published_groups(family or cells.attributes.get("family", "unknown"))
        invariance = published[0].name if invariance is None else invariance
        equivariance = published[1].name if equivariance is None else equivariance
    views, asked = (fitting_group(name, cells.grid, cells.lattice) for name in (invariance, equivariance))
    if transformation == "predicted" and asked.permittivity_range:
        raise ValueError(f"`{asked.name}` rescales ε by any factor, which no task here predicts.")
    if transformation == "predicted" and asked.order(cells.grid) == 1:
        raise ValueError(f"`equivariance` must have elements to tell apart, `{asked.name}` has one.")
    if transformation == "predicted" and views.contains(asked):
        warnings.warn(
            f"`{views.name}` holds all of `{asked.name}`: the representation is asked to be invariant to what is to be "
            "predicted from it.",
            stacklevel=3,
        )
    if transformation == "invariance":
        views = views * asked
    return views, asked if transformation == "predicted" else identity()


class SelfSupervised(SeededModule):
    """One step of E-SSL: two views of each sample, transformed copies of it, and the losses of both.

    Subclasses give `seen(rows, part, generator)`.

    Args:
        samples: number of samples to learn from.
        few: some of them, shape `(batch, channel, x, y)`, to see whether the encoder can do what it is asked to.
        new_encoder: builds the encoder, with weights that follow from torch's own generator.
        settings: a recipe's.
        predicted: group whose elements are predicted (the identity: nothing is).
        grid: number of points of what is transformed by it.
        seed: of everything that is random.

    Raises:
        ValueError: if the encoder cannot tell apart what it is to predict, or a setting is out of range.
    """

    projector: nn.Module
    predictor: nn.Module | None
    classifier: nn.Module | None
    may_capture = False
    """Whether the networks are known never to ask a GPU for numbers, so that it may repeat a step on its own."""

    def __init__(
        self,
        samples: int,
        few: Tensor,
        new_encoder: Callable[[], Encoder],
        settings: Mapping[str, Any],
        predicted: TransformGroup,
        grid: tuple[int, int],
        seed: int = 0,
    ):
        super().__init__(
            samples=samples,
            seed=seed,
            warmup_epochs=settings.get("warmup_epochs", 0),
            **{
                name: settings[name]
                for name in ("batch_size", "epochs", "optimizer", "learning_rate", "weight_decay", "momentum")
            },
        )
        if settings["batch_size"] < 2:
            raise ValueError(
                f"`batch_size` must be at least 2 (a sample is compared with others), got {settings['batch_size']}."
            )
        for name in {"projector", "classifier"} & set(settings):
            check_widths(name, settings[name])
        task = prediction_task(settings["prediction"], predicted, grid) if predicted.order(grid) > 1 else None
        self.objective = ESSL(_invariance(settings), task, settings["weight"] if task else 0.0)
        self._captured: Callable[..., dict[str, Tensor]] | None = None
        with own_random_numbers(derived_seed(seed, _INITIALISATION)):
            self.encoder = new_encoder()
            self.make_heads(settings)
        if task:
            check_can_tell_apart(self.encoder, predicted, few)
            warn_of_equal_copies(predicted, few)

    def seen(self, rows: Tensor, part: slice, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return two views of each sample of this process, and what its transformed copies are made from.

        Args:
            rows: numbers of the samples of the batch, all processes' together.
            part: which of them are this process's.
            generator: source of random numbers, on the module's device.
        """
        raise NotImplementedError

    def make_heads(self, settings: Mapping[str, Any]) -> None:
        """Make `projector`, and `predictor` and `classifier` where the objective needs them, else None."""
        features, objective = self.encoder.features, self.objective
        self.projector = multilayer([features, *settings["projector"]], normalise=True)
        self.predictor = self.classifier = None
        if objective.invariance.needs_predictor:
            width = settings["projector"][-1]
            self.predictor = multilayer([width, width // 4, width], normalise=True)
        if objective.prediction:
            widths = [objective.prediction.seen * features, *settings["classifier"], objective.prediction.outputs]
            self.classifier = multilayer(widths, normalise=True)

    def on_fit_start(self) -> None:
        """Forget what was captured of networks that lay elsewhere in memory."""
        self._captured = None

    def on_fit_end(self) -> None:
        """Give back the memory of what was captured, which refers to itself."""
        self._captured = None
        gc.collect()

    def compile_encoder(self) -> None:
        """Compile the encoder for the two sizes of batch that training has: code for any size is slower."""
        self.encoder.compile(dynamic=False)
        self.may_capture = False

    def losses(self, rows: Int64[Tensor, " batch"], generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """Return the loss of the batch, and its parts."""
        part = own_part(len(rows))
        first, second, copied = self.seen(rows, part, generator)
        task = self.objective.prediction
        question = task.ask(copied, generator, part.start, len(rows)) if task else ()
        if self.may_capture and self._captured is None and first.is_cuda and processes() == 1:
            self._capture(first, second, *question)
        return (self._captured or self.losses_of)(first, second, *question)

    def _capture(self, *tensors: Tensor) -> None:
        try:
            self._captured = captured(self, self.losses_of, tensors)
        except RuntimeError as error:  # a driver without graphs, or too little memory
            self.may_capture = False
            warnings.warn(f"training takes longer, as steps cannot be captured here: {one_line(error)}", stacklevel=2)

    def losses_of(self, first: Tensor, second: Tensor, *question: Tensor) -> dict[str, Float[Tensor, ""]]:
        """Return the losses of two views of a batch and of what is asked about its transformed copies, if anything."""
        invariance = self._invariance_loss(first, second)
        task, classifier = self.objective.prediction, self.classifier
        if task is None or classifier is None:
            return {"loss": self.objective(invariance, None)}
        copies, rows, target = question
        outputs = classifier(self.encoder(copies)[rows].flatten(1))
        with torch.autocast(copies.device.type, enabled=False):
            answer = task(outputs.to(self.dtype), target)
        return {
            "loss": self.objective(invariance, answer.loss),
            "invariance_loss": invariance.detach(),
            "prediction_loss": answer.loss.detach(),
            "prediction_accuracy": answer.accuracy,
        }

    def through(self, network: nn.Module, first: Tensor, second: Tensor) -> Sequence[Tensor]:
        """Return what a network makes of both views, which batch normalisation sees together."""
        return network(torch.cat((first, second))).chunk(2)

    def _invariance_loss(
        self, first: Float[Tensor, "batch channel x y"], second: Float[Tensor, "batch channel x y"]
    ) -> Float[Tensor, ""]:
        seen = [self.through(self.projector, *self.through(self.encoder, first, second))]
        if self.predictor:
            seen.append(self.through(self.predictor, *seen[0]))
        with torch.autocast(first.device.type, enabled=False):
            return self.objective.invariance(*([gathered(view.to(self.dtype)) for view in both] for both in seen))


class Pretraining(SelfSupervised):
    """Pre-training on unit cells: elements of a group make the views, the copies are made from the cells themselves.

    Args:
        cells: the unlabelled cells.
        encoder: name of the encoder, as for `pretrain`.
        settings: a recipe's.
        groups: what makes the views, and what is predicted (the identity: nothing is).
        seed: of everything that is random.

    Raises:
        ValueError: as `SelfSupervised`.
    """

    def __init__(
        self,
        cells: Cells,
        encoder: str,
        settings: Mapping[str, Any],
        groups: tuple[TransformGroup, TransformGroup],
        seed: int = 0,
    ):
        views, predicted = groups
        new_encoder = functools.partial(Encoder.of, encoder, cells.epsilon.shape[1], cells.grid)
        if encoder == "none":
            raise ValueError("the encoder `none` has no weights to pre-train.")
        super().__init__(len(cells), cells.epsilon[:8], new_encoder, settings, predicted, cells.grid, seed)
        self.cells, self.views = cells.epsilon, views
        self.may_capture = encoder in NETWORKS

    def on_fit_start(self) -> None:
        """Move all cells to the device, where they stay."""
        super().on_fit_start()
        self.cells = self.cells.to(self.device).to(self.dtype)

    def seen(self, rows: Tensor, part: slice, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return two transformed copies of each cell of this process, and the cells."""
        cells = self.cells[rows[part]]
        grid = cells.shape[2], cells.shape[3]
        first, second = (
            self.views.apply(cells, self.views.draw(len(rows), grid, generator, cells.device)[part]) for _ in range(2)
        )
        return first, second, cells


def prediction_task(name: str, predicted: TransformGroup, grid: tuple[int, int]) -> PredictionTask:
    """Return the task of predicting the elements of a group.

    Raises:
        ValueError: if there is no such task, or it is not for this group.
    """
    if name not in PREDICTION_TASKS:
        raise ValueError(f"`prediction` must be one of {', '.join(PREDICTION_TASKS)}, got {name!r}.")
    if name != "continuous" and predicted.order(grid) > LARGEST_ORBIT:
        raise ValueError(
            f"the {predicted.order(grid)} elements are too many to tell apart one by one (`{predicted.name}`; "
            f"{LARGEST_ORBIT} at most); predict translations as continuous."
        )
    return PREDICTION_TASKS[name](predicted, grid)


def _invariance(settings: Mapping[str, Any]) -> nn.Module:
    options = {name: settings[name] for name in ("temperature", "off_diagonal_weight") if name in settings}
    return INVARIANCE_OBJECTIVES[settings["objective"]](**options)


def check_can_tell_apart(encoder: Encoder, asked: TransformGroup, cells: Tensor, tolerance: float = 1e-4) -> None:
    """Refuse an encoder that gives all transformed copies of a cell one representation.

    Args:
        encoder: with the weights it starts from.
        asked: the group whose elements are to be predicted.
        cells: a few cells, shape `(batch, channel, x, y)`, different from each other.
        tolerance: by how much of the spread between cells the copies of one must differ.

    Raises:
        ValueError: naming the encoder and the group; or the group, if it does not change the cells at all.
    """
    generator = torch.Generator().manual_seed(0)
    copies = [asked.sample(cells, generator) for _ in range(4)]
    if all(torch.equal(copy, cells) for copy in copies):
        raise ValueError(f"`{asked.name}` leaves these cells as they are: which element was applied cannot be told.")
    with evaluating(encoder):
        plain = encoder(cells)
        moved = [encoder(copy) for copy in copies]
    spread = (plain - plain.mean(0)).abs().max()
    if max((copy - plain).abs().max() for copy in moved) <= tolerance * spread:
        raise ValueError(
            f"the encoder `{encoder.name}` is invariant by construction to `{asked.name}`: it can only guess which "
            "element was applied. Predict another group, or take an encoder that keeps the layout of the cell."
        )


def warn_of_equal_copies(asked: TransformGroup, cells: Tensor) -> None:
    """Warn where cells are symmetric under what is asked for, so that not every answer can be right.

    Args:
        asked: the group whose elements are to be predicted.
        cells: a few cells, shape `(batch, channel, x, y)`.
    """
    if asked.order((cells.shape[2], cells.shape[3])) > LARGEST_ORBIT:
        return
    copies = asked.orbit(cells)[0].unflatten(0, (-1, len(cells))).flatten(2)
    different = sum(len(torch.unique(copies[:, cell], dim=0)) for cell in range(len(cells)))
    right = different / (copies.shape[0] * copies.shape[1])
    if right < 1:
        warnings.warn(
            f"cells look the same under several elements of `{asked.name}`: of the first {len(cells)}, at most "
            f"{100 * right:.0f} % of the answers can be right.",
            stacklevel=2,
        )
