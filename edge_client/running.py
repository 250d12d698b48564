"""Starting a device: what is loaded before the first round, here or once for a whole emulated fleet."""

from __future__ import annotations

import linecache
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from edge_client.local_round import Workplace
from edge_client.service import Device
from edge_client.settings import DeviceSettings, DeviceTask, SplitKind, SplitSettings
from edge_client.tasks import Task, load_task, parameter_table
from edge_client.training import TrainingSettings, fit
from fedpruneshare import logs
from fedpruneshare.at_work import at_work
from fedpruneshare.link import Link
from fedpruneshare.moving import Brokers, brokers_of, follow
from fedpruneshare.party import Party
from fedpruneshare.process import OpenLink, open_link, serve
from fedpruneshare.rng import stream
from fedpruneshare.topics import Role


@lru_cache(maxsize=2)
def _task(name: str, data_dir: str) -> Task:
    return load_task(name, Path(data_dir))


def warm_up(task_name: str, data_dir: str, split: SplitKind = "") -> Task:
    """Import torch, load the task, deal its data so (`split`) and take one training step, in one thread.

    A process that forks devices calls this first: they then share the pages. No thread is left behind.
    """
    torch.set_num_threads(1)
    task = _task(task_name, data_dir)
    devices = 1 if task_name.endswith(".py") else _WARM_DEVICES
    dataset = task.load_train(0, devices, stream(0, "warm-up"), SplitSettings(split))
    dataset = dataset.take(np.arange(min(len(dataset), _WARM_EXAMPLES)))
    one_step = TrainingSettings(local_epochs=1, batch_size=_WARM_EXAMPLES, learning_rate=1e-4)
    fit(task.build_model(), dataset, None, one_step, np.random.default_rng(0), task.loss)
    return task


#: Into how many parts the data is cut for the warm-up step; any number that every task accepts.
_WARM_DEVICES = 2
#: Of them, how many the step is taken on: a step on half of a large data set would need gigabytes.
_WARM_EXAMPLES = 32


def workplace(settings: DeviceSettings) -> Workplace:
    """The task, its model and this device's part of the data. Raises `TaskError` or `DataError`."""
    work = workplace_of(settings.task, settings.limits.torch_threads)
    return replace(work, torch_device=settings.limits.torch_device, gate=settings.gate)


def workplace_of(where: DeviceTask, torch_threads: int) -> Workplace:
    """As `workplace`, of a task alone."""
    torch.set_num_threads(torch_threads)
    linecache.clearcache()  # what importing torch leaves there, 1.7 MiB, is never read again
    task = _task(where.name, where.data_dir)
    model = task.seeded_model(where.seed)
    dataset = task.load_train(where.index, where.devices, stream(where.seed, "split"), where.dealing)
    return Workplace(task, model, parameter_table(model), dataset)


def main(settings: DeviceSettings, open_link: OpenLink = open_link) -> int:
    """Run one device until SIGTERM; returns its exit code. `open_link`: what makes its links to the brokers.

    Raises `SettingsError` where another process is at work on its store.
    """
    with at_work(Path(settings.store)):
        return _run(settings, open_link)


def _run(settings: DeviceSettings, open_link: OpenLink) -> int:
    party = Party.load(settings.party, Role.DEVICE)
    logs.rename("device", party.ident)
    work = workplace(settings)

    def at(brokers: Brokers) -> Device:
        uplinks: dict[str, Link] = {who: open_link(place, party.ident, settings.link) for who, place in brokers.items()}
        return Device(party, settings, work, (uplinks.pop(party.directory.coordinator_id), uplinks))

    return serve(lambda: follow(party, brokers_of, at), party, settings.link.tls)
