"""What sharing one update adds to the memory of a device: `python -m testbed.benchmarks.sharing_memory N K VALUES`.

As a device does it: the words go to the outbox, then couriers bring chunks to every aggregator, here over links that
take whatever they are given. The figure is the peak of the resident memory less what was resident before, words
included.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import edge_client.running  # all that a device process imports
from edge_client.calibrating.footprint import forget_peak, resident_mib
from edge_client.outbox import Outbox, Upload
from edge_client.share_chunks import open_shares
from edge_client.uploading import Courier, Parcel
from fedpruneshare.directory import DeviceEntry, Directory, PartyKeys, Service, party_keys
from fedpruneshare.link.retry import Backoff
from fedpruneshare.messages import Coding, Receipt, RoundPlan, Segment, Sharing, Training, Verdict, digest, encode
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView
from fedpruneshare.sealing import Identity
from fedpruneshare.sharing.prg import Prg, Seed
from fedpruneshare.topics import Role
from fedpruneshare.words import WordLayout

assert edge_client.running

DEVICE = "device-00"


@lru_cache
def _identity(name: str) -> Identity:
    return Identity.generate(name)


def _keys(name: str) -> tuple[PartyKeys, ...]:
    return tuple(party_keys(public) for public in _identity(name).public())


def _party(aggregators: list[str]) -> Party:
    directory = Directory(
        federation="bench",
        version=1,
        coordinator_id="coordinator",
        coordinator=Service(_keys("coordinator"), host="127.0.0.1", port=1883),
        aggregators={name: Service(_keys(name), host="127.0.0.1", port=1883) for name in aggregators},
        devices={DEVICE: DeviceEntry(_keys(DEVICE))},
        min_devices=3,
        min_devices_segment=3,
    )
    return Party(_identity(DEVICE), directory, Role.DEVICE)


def _plan(n: int, k: int, values: int) -> PlanView:
    """A plan for ten devices, whose values of 16 bits take a word each."""
    coding = Coding(16, 16, (0.1,), (), 512, 10)
    words = WordLayout(coding).words(0, values)
    plan = RoundPlan(
        round_id=1,
        directory_version=1,
        task="bench",
        bundle=bytes(32),
        table=bytes(32),
        sharing=Sharing(n, k, k - 1),
        points={f"aggregator-{x}": x for x in range(1, n + 1)},
        coding=coding,
        segments=(Segment(values, 0, words, 1.0, bytes(32), 1, bytes(32)),),
        rungs=(0,),
        training=Training(1, 32, 0.1),
        cohort=(DEVICE,),
        min_devices=3,
        min_devices_segment=3,
        deadline_s=60.0,
    )
    return PlanView(plan, digest(encode(plan)))


def _upload(view: PlanView) -> Upload:
    words = np.random.default_rng(0).integers(0, view.field.p, view.upload_words(0), dtype=view.field.word_type)
    seeds = {x: Seed.fresh().reveal() for x in range(1, view.scheme.t + 1)}
    return Upload(view.digest, 1, bytes(16), 0, 1, Prg.AES_256_CTR, seeds, words[:0], b"", words)


class _Sink:
    """A link to nowhere: it lets go of every payload, and answers when the last chunk has come."""

    def __init__(self, chunks: int) -> None:
        self.left, self.bytes = chunks, 0
        self.courier: Courier | None = None

    async def publish(self, _topic: str, payload: bytes, **_: Any) -> None:
        self.left, self.bytes = self.left - 1, self.bytes + len(payload)
        await asyncio.sleep(0)
        if not self.left and self.courier is not None:
            self.courier.answer(Receipt(1, bytes(16), Verdict.ACCEPTED))


async def _share(view: PlanView, party: Party, upload: Upload, folder: Path) -> int:
    """Outbox and couriers; the bytes that were sent."""
    Outbox(folder).put(upload)
    sinks = []
    ends_at = asyncio.get_running_loop().time() + 60
    for x, share in open_shares(view, DEVICE, upload).items():
        sink = _Sink(share.count)
        parcel = Parcel(view, upload, f"aggregator-{x}", x, share, ends_at)
        sink.courier = Courier(party, sink, parcel, Backoff(random.Random(0)), 4)  # type: ignore[arg-type]
        sinks.append(sink)
    await asyncio.gather(*(sink.courier.deliver(lambda _size, _first: None) for sink in sinks if sink.courier))
    return sum(sink.bytes for sink in sinks)


def main(arguments: list[str]) -> str:
    """MiB that sharing so many values added, as text."""
    n, k, values = map(int, arguments)
    party = _party([f"aggregator-{x}" for x in range(1, n + 1)])
    with tempfile.TemporaryDirectory() as folder:
        small = _plan(n, k, 100)  # libraries that load on first use are no part of the sharing
        asyncio.run(_share(small, party, _upload(small), Path(folder)))
        view = _plan(n, k, values)
        forget_peak()
        before_mib = resident_mib("VmRSS")
        sent = asyncio.run(_share(view, party, _upload(view), Path(folder)))
        assert sent > view.share_bytes(0, n) * (n - k + 1)
        return f"{max(0.0, resident_mib('VmHWM') - before_mib):.3f}"


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]))
