"""The task door: how a model and its data come in, ours and a user's by the same way.

A task is a Python module with `build_model() -> torch.nn.Module`,
`load_train(device: int, devices: int, rng: numpy.random.Generator) -> Dataset` and `load_test() -> Dataset`.
Optional: `loss(outputs, targets) -> Tensor`, `optimiser(parameters, learning_rate) -> torch.optim.Optimizer`,
`transform(inputs: float32[N, ...]) -> float32[N, ...]` (applied to training and test inputs alike) and `name: str`.
A loader that reads files may also take `data_dir: Path | None`, and the module may then say where its data come from
by `data_source(data_dir) -> "full" | "fixture"`, and what they were read from, if not from what was published, by
`data_form(data_dir) -> str` ("JPEG"), which results then show beside the task's name.
A `load_train` that takes `split: SplitSettings | None` deals its data as that says; None means in its own way.

All devices of a fleet must pass *equal* `rng`s to `load_train`: the split of the data is drawn from it.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_client.datasets import Dataset, DataSource
from edge_client.settings import SplitSettings
from edge_client.tasks.conversion import as_dataset
from edge_client.tasks.model import parameter_table, read_state, write_state
from fedpruneshare.errors import FedPruneShareError, SettingsError, TaskError
from fedpruneshare.metrics import METRICS, MetricName, metric

__all__ = ["BUILT_IN", "Dataset", "Task", "load_task", "parameter_table", "read_state", "write_state"]

BUILT_IN = MappingProxyType(
    {
        "hapt": "edge_client.tasks.hapt",
        "fashion-mnist": "edge_client.tasks.fashion_mnist",
        "mnist": "edge_client.tasks.mnist",
        "cifar10": "edge_client.tasks.cifar10",
    }
)
"""Names of the tasks that ship with the project."""

OWN_SPLIT = SplitSettings()
"""The task deals its data in its own way."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Optimiser = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]

_REQUIRED = {"build_model": (), "load_train": ("device", "devices", "rng"), "load_test": ()}
_OPTIONAL = ("loss", "optimiser", "transform", "data_source", "data_form")


@dataclass(frozen=True)
class Task:
    """A loaded task. Its functions check what the module's own return and raise `TaskError` with the reason."""

    name: str
    data_source: DataSource
    loss: Loss
    optimiser: Optimiser | None
    module: ModuleType
    data_dir: Path | None
    metric: MetricName = "accuracy"
    data_form: str = ""

    @property
    def label(self) -> str:
        """Its name as results show it, with the form of its data where that is not the published one."""
        return f"{self.name} ({self.data_form})" if self.data_form else self.name

    @property
    def is_transforming(self) -> bool:
        """Whether the task brings a `transform()`, through which every input must go."""
        return hasattr(self.module, "transform")

    def build_model(self) -> nn.Module:
        """A fresh model, initialised from torch's generator; refused where it cannot be handled."""
        model = _call(self.module.build_model)
        if not isinstance(model, nn.Module):
            raise TaskError(f"build_model() returned {type(model).__name__}, expected torch.nn.Module")
        parameter_table(model)
        return model

    def seeded_model(self, seed: int) -> nn.Module:
        """The model with initial weights that follow from `seed`, leaving torch's own generator as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build_model()

    def load_train(
        self, device: int, devices: int, rng: np.random.Generator, split: SplitSettings = OWN_SPLIT
    ) -> Dataset:
        """The part of device `device` of 0..`devices`-1. Every device must pass an equal `rng` and `split`."""
        if not 0 <= device < devices:
            raise TaskError(f"device is {device}, expected 0 to {devices - 1} for {devices} devices")
        self.check_split(split)
        chosen = {"split": split} if split.kind else {}
        return self._load("load_train", device, devices, rng, **chosen)

    def check_split(self, split: SplitSettings) -> None:
        """Raise `TaskError` where a split is asked for that the task cannot make."""
        if split.kind and "split" not in inspect.signature(self.module.load_train).parameters:
            fault = f"task.split is {split.kind!r}, but load_train() of task {self.name!r} has no parameter `split`"
            raise TaskError(f"{fault}: it deals its data in its own way alone")

    def load_test(self) -> Dataset:
        """The test set, which no device trains on."""
        return self._load("load_test")

    def _load(self, function: str, *arguments: Any, **options: Any) -> Dataset:
        load = getattr(self.module, function)
        loaded = _call(_with_data_dir(load, self.data_dir), *arguments, **options)
        dataset = as_dataset(loaded, f"{function}()", METRICS[self.metric])
        if not self.is_transforming:
            return dataset
        transformed = (self.transform(dataset.inputs), dataset.targets)
        return as_dataset(transformed, f"transform() of {function}()", METRICS[self.metric])

    def transform(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw inputs float32[N, ...] -> those the model takes. Raises `TaskError` for other than as many examples."""
        if not self.is_transforming:
            return inputs
        outputs = np.asarray(_call(self.module.transform, inputs))
        if outputs.ndim < 2 or len(outputs) != len(inputs) or outputs.dtype.kind not in "fiub":
            found = f"{outputs.dtype}{list(outputs.shape)}"
            raise TaskError(f"transform() returned {found} for {len(inputs)} examples, expected float32[N, ...]")
        return outputs.astype(np.float32, copy=False)


def load_task(name_or_path: str | Path, data_dir: Path | None = None) -> Task:
    """Load a built-in task by name, a dotted module, or a `.py` file. Runs the module's code.

    `data_dir` is where full data sets lie; if None, $FEDPRUNESHARE_DATA or `data/`. Raises `TaskError` where there is
    no such module, it does not import, or a function is missing or takes other arguments than expected.
    """
    text = str(name_or_path)
    module = _import_file(Path(text)) if text.endswith(".py") else _import_name(text)
    faults = [fault for name, wanted in _REQUIRED.items() if (fault := _function_fault(module, name, wanted))]
    for name in _OPTIONAL:
        if not callable(getattr(module, name, len)):
            faults.append(f"{name} is {type(getattr(module, name)).__name__}, expected a function")
    if faults:
        raise TaskError(f"task {text!r} cannot be used: " + "; ".join(faults))
    name = _metric(module, text)
    return Task(
        name=str(getattr(module, "name", Path(text).stem if text.endswith(".py") else text)),
        data_source=_data_source(module, data_dir),
        loss=getattr(module, "loss", default_loss(METRICS[name].targets == "classes")),
        optimiser=getattr(module, "optimiser", None),
        module=module,
        data_dir=data_dir,
        metric=name,
        data_form=str(_call(module.data_form, data_dir)) if hasattr(module, "data_form") else "",
    )


def default_loss(has_classes: bool) -> Loss:
    """Cross entropy for classes, mean squared error for values."""
    return nn.functional.cross_entropy if has_classes else mean_squared_error


def mean_squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Over float32[B] or [B, m]; outputs [B, 1] fit targets [B], where torch's own would pair all with all."""
    return nn.functional.mse_loss(outputs.reshape(targets.shape), targets)


def _metric(module: ModuleType, text: str) -> MetricName:
    try:
        return metric(getattr(module, "metric", "accuracy")).name
    except SettingsError as error:
        raise TaskError(f"task {text!r}: {error}") from None


def _import_name(name: str) -> ModuleType:
    if name not in BUILT_IN and "." not in name:
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TaskError(f"no task {name!r}, expected one of {list(BUILT_IN)}, a dotted module or a .py file{hint}")
    _import_also_from(Path.cwd())
    try:
        return importlib.import_module(BUILT_IN.get(name, name))
    except Exception as error:  # a user's module may raise anything while it is imported
        raise TaskError(f"task module {name!r} does not import: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"task file {path} is not there, expected a Python file")
    _import_also_from(path.resolve().parent)
    unique = f"fedpruneshare_task_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"task file {path} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses and pickling look the module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # as above: whatever the user's code raises
        del sys.modules[unique]
        raise TaskError(f"task file {path} does not import: {type(error).__name__}: {error}") from error
    return module


def _import_also_from(folder: Path) -> None:
    """As `python my_task.py` would, but last, so that nothing installed is shadowed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _function_fault(module: ModuleType, name: str, wanted: tuple[str, ...]) -> str:
    function = getattr(module, name, None)
    if function is None:
        return f"function {name}({', '.join(wanted)}) is missing"
    if not callable(function):
        return f"{name} is {type(function).__name__}, expected a function"
    try:
        inspect.signature(_with_data_dir(function, None)).bind(*wanted)
    except (TypeError, ValueError):
        return f"{name}{inspect.signature(function)} does not take ({', '.join(wanted)})"
    return ""


def _with_data_dir(function: Callable[..., Any], data_dir: Path | None) -> Callable[..., Any]:
    """Bind `data_dir` where the function takes it: only tasks that read files do."""
    if "data_dir" not in inspect.signature(function).parameters:
        return function
    return functools.partial(function, data_dir=data_dir)


def _data_source(module: ModuleType, data_dir: Path | None) -> DataSource:
    found = _call(module.data_source, data_dir) if hasattr(module, "data_source") else "full"
    sources: dict[str, DataSource] = {"full": "full", "fixture": "fixture"}
    if found not in sources:
        raise TaskError(f"data_source() returned {found!r}, expected one of {list(sources)}")
    return sources[found]


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except FedPruneShareError:
        raise
    except Exception as error:  # the user's code: name the function, keep the cause for the log
        plain = function.func if isinstance(function, functools.partial) else function
        where = getattr(plain, "__name__", "task function")
        raise TaskError(f"{where}() of the task failed: {type(error).__name__}: {error}") from error
