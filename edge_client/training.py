"""Local training on one device, top to bottom (after nanoGPT's `train.py`): data in, masked SGD, a summary out.

SGD with momentum is written out here: constructing any `torch.optim` class imports torch's compiler, about 70 MiB
and a second that a small board does not have. A task that brings its own `optimiser` pays that price knowingly.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import nn

from edge_client.datasets import Dataset
from edge_client.tasks import default_loss
from edge_client.tasks.model import parameter_table
from edge_client.torch_device import Choice, TorchDevice, choose, first_line, release
from fedpruneshare.errors import TaskError

_log = structlog.get_logger()

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Masks = list[torch.Tensor]
"""One 0/1 float32 tensor per prunable weight, in the table's order and of the weight's shape."""


@dataclass
class Pace:
    """How far a training is, told from one thread to another, which may also end it: set `is_over`."""

    steps: int = 0
    began_s: float | None = None
    is_over: bool = False

    def step_s(self) -> float | None:
        """Seconds of a step so far; None where training has not begun. Before the first has ended: at least so many."""
        return None if self.began_s is None else (time.perf_counter() - self.began_s) / max(self.steps, 1)


@dataclass(frozen=True)
class TrainingSettings:
    """What the round plan says about local training, and what of this device is used for it.

    `optimiser` is the task's own; if None, SGD as written here.
    """

    local_epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    optimiser: Callable[[list[nn.Parameter], float], torch.optim.Optimizer] | None = None
    proximal_mu: float = 0.0
    """FedProx (Li et al., MLSys 2020): weight mu of mu/2·||w − w_received||², which holds local models together."""
    max_steps: int | None = None
    """Stop after so many steps, on a device that has no time for all epochs."""
    torch_device: TorchDevice = "cpu"
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True)
class TrainingResult:
    """One local training. `examples` is the size of the data set (the weight of this device), each seen once an epoch.

    `mean_loss` is the mean over all steps, `seconds` the wall time. `device` is where torch computed, and
    `fallback_reason` why that was the processor if something else was asked for.
    """

    steps: int
    examples: int
    mean_loss: float
    seconds: float
    device: str = "cpu"
    fallback_reason: str = ""


def fit(
    model: nn.Module,
    dataset: Dataset,
    mask: Masks | None,
    settings: TrainingSettings,
    rng: np.random.Generator,
    loss: Loss | None = None,
) -> TrainingResult:
    """Train `model` in place for `local_epochs` epochs, keeping masked weights at exactly zero.

    `loss`: if None, cross entropy for targets that are classes, mean squared error for values. The mask is applied
    before the first step and after *every* step: momentum, weight decay and a task's own optimiser would each revive a
    pruned weight. Batch order and dropout follow from `rng` alone; torch's generator is left as it was.

    On another device than the processor a copy is trained, so that after a failure there (no memory, no kernel) the
    processor begins once more with the weights and the `rng` as they were given. Raises `TaskError` as soon as the
    loss, or at the end a weight, is not finite, or `settings.pace` says that it is over.
    """
    started = settings.pace.began_s = time.perf_counter()
    work = _Work(dataset, _named_masks(model, mask), settings, rng, loss or default_loss(dataset.has_classes))
    losses, choice = _train_where_it_works(model, work)
    if choice.reason:
        report = _log.warning if settings.torch_device == "cuda" else _log.info
        report("training-on-cpu", wanted=settings.torch_device, reason=choice.reason)
    mean_loss, seconds = math.fsum(losses) / len(losses), time.perf_counter() - started
    return TrainingResult(len(losses), len(dataset), mean_loss, seconds, choice.device.type, choice.reason)


@dataclass(frozen=True)
class _Work:
    """What `fit` was asked to do."""

    dataset: Dataset
    masks: dict[str, torch.Tensor]
    settings: TrainingSettings
    rng: np.random.Generator
    loss: Loss


def _train_where_it_works(model: nn.Module, work: _Work) -> tuple[list[float], Choice]:
    """The losses of all steps, and where they were computed: once elsewhere at most, else on the processor."""
    choice, before = choose(work.settings.torch_device), work.rng.bit_generator.state
    if choice.is_other:
        try:
            return _train_copy(model, work, choice.device), choice
        except RuntimeError as error:  # what torch raises for a lack of memory, a missing kernel or a broken device
            reason = f"training on {choice.device.type} failed: {first_line(error)}"
        release(choice.device)
        work.rng.bit_generator.state = before
        choice = Choice(torch.device("cpu"), reason=reason)
    return _train(model, work, choice.device), choice


def _train_copy(model: nn.Module, work: _Work, device: torch.device) -> list[float]:
    """Train a copy on `device`; `model` is only touched once that has gone well."""
    model.zero_grad(set_to_none=True)
    twin = copy.deepcopy(model).to(device)
    losses = _train(twin, work, device)
    model.train().load_state_dict(twin.state_dict())
    return losses


def _train(model: nn.Module, work: _Work, device: torch.device) -> list[float]:
    settings, dataset = work.settings, work.dataset
    parameters = dict(model.named_parameters())
    masked = [(parameters[name], mask.to(device)) for name, mask in work.masks.items()]
    step = _stepper(model, settings)
    losses: list[float] = []
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(work.rng.integers(2**63)))
        _apply(masked)
        pull = _proximal_term(model, settings.proximal_mu)
        for batch in itertools.islice(_batches(len(dataset), settings, work.rng), settings.max_steps):
            if settings.pace.is_over:
                raise TaskError(f"training was ended after {len(losses)} steps")
            inputs, targets = (torch.from_numpy(part[batch]).to(device) for part in (dataset.inputs, dataset.targets))
            model.zero_grad(set_to_none=True)
            value = work.loss(model(inputs), targets)
            losses.append(_finite(value.item(), len(losses), settings))
            value.backward()  # type: ignore[no-untyped-call]
            pull()
            step()
            _apply(masked)
            settings.pace.steps = len(losses)
    _refuse_non_finite(model, settings)
    return losses


def accuracy(model: nn.Module, dataset: Dataset, batch_size: int = 256) -> float:
    """Share of `dataset` the model classifies rightly, 0..1."""
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(dataset), batch_size):
            outputs = model(torch.from_numpy(dataset.inputs[start : start + batch_size]))  # [B, classes]
            right += int((outputs.argmax(1).numpy() == dataset.targets[start : start + batch_size]).sum())
    return right / len(dataset)


def _named_masks(model: nn.Module, mask: Masks | None) -> dict[str, torch.Tensor]:
    if mask is None:
        return {}
    weights = parameter_table(model).weights()
    shapes, wanted = [tuple(m.shape) for m in mask], [w.shape for w in weights]
    if shapes != wanted:
        raise TaskError(f"mask has shapes {shapes}, expected those of the prunable weights {wanted}")
    return {w.name: m for w, m in zip(weights, mask, strict=True)}


def _apply(masked: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
    with torch.no_grad():
        for weight, mask in masked:
            weight.mul_(mask)  # in place and outside the module: nothing leaks into state dict or export


def count_steps(examples: int, batch_size: int) -> int:
    """Steps of one local epoch."""
    return len(_batch_starts(examples, batch_size))


def _batch_starts(count: int, batch_size: int) -> list[int]:
    starts = list(range(0, count, batch_size))
    return starts[:-1] if len(starts) > 1 and count - starts[-1] == 1 else starts


def _batches(count: int, settings: TrainingSettings, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Index batches of every epoch. A last batch of one example joins the one before: norms need two."""
    for _ in range(settings.local_epochs):
        order = rng.permutation(count)
        starts = _batch_starts(count, settings.batch_size)
        for start, end in zip(starts, [*starts[1:], count], strict=True):
            yield order[start:end]


def _stepper(model: nn.Module, settings: TrainingSettings) -> Callable[[], object]:
    """One optimiser step as a function. SGD: v <- momentum v + g + decay w; w <- w - lr v."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.optimiser is not None:
        return settings.optimiser(parameters, settings.learning_rate).step
    velocities = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step() -> None:
        for parameter, velocity in zip(parameters, velocities, strict=True):
            if parameter.grad is None:  # not part of this forward pass
                continue
            velocity.mul_(settings.momentum).add_(parameter.grad)
            if settings.weight_decay:
                velocity.add_(parameter, alpha=settings.weight_decay)
            parameter.sub_(velocity, alpha=settings.learning_rate)

    return step


def _proximal_term(model: nn.Module, mu: float) -> Callable[[], None]:
    """Adds the gradient of FedProx's term, mu·(w − w at this moment), to that of the loss; nothing for mu = 0."""
    received = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad] if mu else []

    @torch.no_grad()
    def pull() -> None:
        for parameter, start in received:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=mu)

    return pull


def _finite(value: float, step: int, settings: TrainingSettings) -> float:
    if not math.isfinite(value):
        raise TaskError(
            f"training diverged: loss is {value} at step {step}, expected a finite number"
            f" (learning_rate is {settings.learning_rate}; try a smaller one)"
        )
    return value


def _refuse_non_finite(model: nn.Module, settings: TrainingSettings) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise TaskError(
                f"training diverged: {name!r} holds a value that is not finite"
                f" (learning_rate is {settings.learning_rate}; try a smaller one)"
            )
