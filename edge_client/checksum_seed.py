"""The seed of a round's hidden checksum: taken from the coordinator, used, forgotten (docs/protocol.md §5.11)."""

from __future__ import annotations

import asyncio
import hmac
from typing import Final

import structlog

from fedpruneshare.errors import PeerError, ProtocolError
from fedpruneshare.link import Delivery, Handler, Link
from fedpruneshare.messages import ChecksumSeed
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView
from fedpruneshare.sealing import checksum_seed_context
from fedpruneshare.sharing.checksum import commitment, fill_checksum
from fedpruneshare.sharing.field import Words

_log = structlog.get_logger()
#: After so long without a seed, and the time that the coordinator may need to seal those of the whole cohort, the
#: device subscribes anew; then after twice as long, and so on.
_FIRST_WAIT_S: Final = 1.0
_SEALED_IN_A_SECOND: Final = 250


async def receive_seed(party: Party, link: Link, view: PlanView, patience_s: float) -> bytes:
    """The seed that this device was sent for a plan, the one the plan commits to; b"" where the plan has no checksum.

    Raises `ProtocolError` where none comes in `patience_s`, or one that the plan does not commit to: under a seed of
    its own a device would show combinations of its words. `SealError` for one that does not open.
    """
    if not view.plan.checksum:
        return b""
    arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def on_seed(delivery: Delivery) -> None:
        opened = party.take("seed", delivery)
        if opened is None or not isinstance(opened.message, ChecksumSeed) or arrived.done():
            return
        if opened.message.plan != view.digest:
            return  # of another round
        try:
            arrived.set_result(_unsealed(party, view, opened.message))
        except PeerError as error:
            arrived.set_exception(error)

    topic = party.topics.name("seed", party.ident)
    first_wait_s = _FIRST_WAIT_S + len(view.plan.cohort) / _SEALED_IN_A_SECOND
    try:
        async with asyncio.timeout(patience_s):
            return await _ask_until(arrived, link, (topic, on_seed), first_wait_s)
    except TimeoutError:
        raise ProtocolError(f"no checksum seed came in {patience_s:.1f} s, expected one on {topic}") from None


async def _ask_until(
    arrived: asyncio.Future[bytes], link: Link, subscription: tuple[str, Handler], wait_s: float
) -> bytes:
    """Subscribe, again and again, until the seed has arrived.

    The seed is published at about the time of the subscription. A broker may then hand over neither what it retains nor
    what has just come (the embedded one does under load); with every new subscription it hands it over again.
    """
    topic, on_seed = subscription
    while True:
        await link.subscribe(topic, on_seed)
        try:
            await asyncio.wait([arrived], timeout=wait_s)
        finally:
            await link.unsubscribe(topic)
        if arrived.done():
            return arrived.result()
        wait_s *= 2


def _unsealed(party: Party, view: PlanView, message: ChecksumSeed) -> bytes:
    directory = party.directory
    if message.suite not in view.plan.suites:
        raise ProtocolError(f"checksum seed sealed with {message.suite}, expected {' or '.join(view.plan.suites)}")
    context = checksum_seed_context(directory.federation, view.digest, (directory.coordinator_id, party.ident))
    seed = party.identity.unseal(message.sealed, context, message.suite, message.key)
    if not hmac.compare_digest(commitment(seed), view.plan.checksum):
        raise ProtocolError("the checksum seed is not the one that the plan commits to")
    return seed


def fill_checksums(view: PlanView, words: Words, seed: bytes) -> None:
    """Write the checksum of each segment of an upload's words into its last words, in place; without a seed nothing."""
    if not seed:
        return
    rows, start = view.plan.coding.tail_words, 0
    for segment, count in enumerate(view.segment_words):
        if start < words.size:
            fill_checksum(words[start : start + count], seed, segment, rows, view.field)
        start += count
