"""`MqttLink` where only a real broker can show it: refusals, crashes, many clients (docs/protocol.md §3.1)."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from fedpruneshare.errors import DisconnectedError, LinkError, PayloadTooLargeError, RefusedError
from fedpruneshare.link import BrokerAddress, Delivery, LinkLimits
from fedpruneshare.link.mqtt import MqttLink
from fedpruneshare.topics import AccessRule
from firmware_configs.brokers.mosquitto import render_access_list

QUICK = LinkLimits(connect_timeout_s=60, publish_timeout_s=60, reconnect_min_s=0.05, reconnect_max_s=0.2)
#: For what is tried until the time is up.
SHORT = replace(QUICK, connect_timeout_s=1.5)
CRASHING_HANDLER = """
import asyncio, os, random, sys
from fedpruneshare.link import BrokerAddress, LinkLimits
from fedpruneshare.link.mqtt import MqttLink
from fedpruneshare.link.tls import TlsSettings

tls = TlsSettings(*sys.argv[2:]) if sys.argv[2:] else None

async def crash(delivery):
    print(delivery.payload.decode(), flush=True)
    os._exit(9)

async def main():
    address = BrokerAddress("127.0.0.1", int(sys.argv[1]), tls is not None)
    link = MqttLink(address, "crashing", LinkLimits(), random.Random(1), session_expiry_s=600, tls=tls)
    await link.subscribe("crash/up", crash)
    await link.connect()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def link_to(port: int, client_id: str = "a", limits: LinkLimits = QUICK) -> MqttLink:
    return MqttLink(BrokerAddress("127.0.0.1", port), client_id, limits, random.Random(client_id))


async def fails(port: int) -> None:
    """Try to connect until the time is up. A crowded machine, which has not got an answer by then, is given more."""
    for limit_s in (SHORT.connect_timeout_s, 10.0, 60.0):
        try:
            await link_to(port, limits=replace(SHORT, connect_timeout_s=limit_s)).connect()
        except LinkError as error:
            if "no answer" not in str(error) or limit_s == 60.0:
                raise


@pytest.fixture
async def listening() -> AsyncIterator[Callable[[Any], Any]]:
    """Start a TCP server that speaks as the test says, and give its port."""
    servers: list[asyncio.Server] = []

    async def start(speak: Any) -> int:
        servers.append(await asyncio.start_server(speak, "127.0.0.1", 0))
        port: int = servers[-1].sockets[0].getsockname()[1]
        return port

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nobody listens, nor will."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


# --------------------------------------------------------------------------- connecting


async def test_nobody_listens(closed_port: int) -> None:
    link = link_to(closed_port, limits=SHORT)
    with pytest.raises(LinkError, match="expected a broker"):
        await link.connect()
    with pytest.raises(DisconnectedError):
        await link.publish("x", b"")


async def test_broker_that_says_nothing(listening: Any) -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    started_s = time.monotonic()
    with pytest.raises(LinkError, match="no answer"):
        await link_to(await listening(silent), limits=SHORT).connect()
    assert 1.4 < time.monotonic() - started_s < 30


async def test_broker_that_closes_without_an_answer(listening: Any) -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.close()

    port = await listening(closing)
    with pytest.raises(LinkError, match="without an answer"):
        await fails(port)


async def test_broker_that_talks_nonsense(listening: Any) -> None:
    async def mad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"\x20\x03\x00\x00\xff" + b"\x30\x02\xff\xff" + b"\xff" * 50)
        await reader.read()

    with pytest.raises(LinkError):
        await link_to(await listening(mad), limits=SHORT).connect()


async def test_connect_that_waits_for_a_broker_started_later(tmp_path: Any, start_broker: Any) -> None:
    broker = start_broker("iotcore")
    broker.kill()
    link = link_to(broker.address.port, limits=SHORT)
    waiting = asyncio.create_task(link.connect(wait=True))
    await asyncio.sleep(1.7)  # longer than connect_timeout_s: it must not have given up
    assert not waiting.done()
    broker.start()
    await asyncio.wait_for(waiting, 60)
    await link.publish("x", b"")
    await link.close()


async def test_close_ends_a_waiting_connect(closed_port: int) -> None:
    link = link_to(closed_port)
    waiting = asyncio.create_task(link.connect(wait=True))
    await asyncio.sleep(0.1)
    await link.close()
    with pytest.raises(DisconnectedError, match="closed"):
        await asyncio.wait_for(waiting, 60)


async def test_cancelled_connect_leaves_nothing(listening: Any) -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    port = await listening(silent)
    before = asyncio.all_tasks()
    waiting = asyncio.create_task(link_to(port).connect())
    await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert [task for task in asyncio.all_tasks() - before if "MqttLink" in repr(task)] == []


@pytest.mark.mosquitto
async def test_refused_login_at_once(start_broker: Any) -> None:
    broker = start_broker("mosquitto", allow_anonymous=False)
    started_s = time.monotonic()
    with pytest.raises(RefusedError, match="Not authorized") as refused:
        await link_to(broker.address.port, limits=LinkLimits()).connect(wait=True)
    assert refused.value.reason == "Not authorized"
    assert time.monotonic() - started_s < 30  # and not for ever


# --------------------------------------------------------------------------- refusals


@pytest.mark.mosquitto
async def test_forbidden_publish_is_refused_and_forbidden_reading_brings_nothing(start_broker: Any, seen: Any) -> None:
    rules = [AccessRule("nobody", "write", "secret/up")]
    broker = start_broker("mosquitto", access_list="topic readwrite open/#\n\n" + render_access_list(rules))
    link, got, spied = link_to(broker.address.port), seen(), seen()
    await link.subscribe("open/+", got)
    await link.subscribe("secret/#", spied)  # granted all the same: access is proved by a message only
    await link.connect()
    with pytest.raises(RefusedError, match=r"publish to secret/up.*0x87") as refused:
        await link.publish("secret/up", b"x")
    assert refused.value.reason == "Not authorized"
    await link.publish("open/a", b"y")
    await got.until(1)
    assert spied.payloads == []
    await link.close()


@pytest.mark.mosquitto
async def test_broker_limit_is_read_from_its_answer(start_broker: Any) -> None:
    broker = start_broker("mosquitto")
    link = link_to(broker.address.port, limits=LinkLimits(payload_bytes=4 * 1024 * 1024))
    await link.connect()
    with pytest.raises(PayloadTooLargeError, match="the broker takes 1048576"):
        await link.publish("x", bytes(1024 * 1024))
    assert link.traffic.sent_bytes == 0
    topic = "t/x"
    await link.publish(topic, bytes(1024 * 1024 - len(topic) - 15))
    await link.publish(topic, b"small")
    await link.close()


async def test_no_subscriber_is_no_error(own_world: Any) -> None:
    link = await own_world.connected("a")
    await link.publish("nobody/listens", b"x")


# --------------------------------------------------------------------------- losing the broker


async def test_killed_in_mid_publish_then_back(own_world: Any, seen: Any) -> None:
    limits = LinkLimits(outgoing_messages=4, reconnect_min_s=0.05, reconnect_max_s=0.3)
    link, got, calls = own_world.link("a", limits), seen(), asyncio.Queue()

    async def connected(is_first: bool) -> None:
        # Subscriptions are back by now: our own message returns.
        await link.publish("self", b"back" if not is_first else b"first")
        calls.put_nowait(is_first)

    link.on_connect(connected)
    await link.subscribe("self", got)
    await link.connect()
    assert await asyncio.wait_for(calls.get(), 60) is True
    publishing = [asyncio.create_task(link.publish("up", bytes(200_000))) for _ in range(200)]
    await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)
    own_world.broker.kill()
    results = await asyncio.wait_for(asyncio.gather(*publishing, return_exceptions=True), 60)
    assert {type(result) for result in results} == {type(None), DisconnectedError}
    with pytest.raises(DisconnectedError):
        await link.publish("up", b"x")
    sent = link.traffic.sent_messages
    own_world.broker.start()
    assert await asyncio.wait_for(calls.get(), 60) is False
    await got.until(2)
    assert got.payloads == [b"first", b"back"]
    assert link.traffic.sent_messages == sent + 1  # nothing was sent again behind our back


async def test_nothing_outstanding_is_sent_again_after_a_reconnect(own_world: Any, seen: Any) -> None:
    limits = LinkLimits(outgoing_messages=4, reconnect_min_s=0.05, reconnect_max_s=0.3)
    sender = await own_world.connected("a", limits)
    publishing = [asyncio.create_task(sender.publish("up", b"%d" % n + bytes(100_000))) for n in range(100)]
    await asyncio.sleep(0)
    own_world.broker.kill()
    await asyncio.gather(*publishing, return_exceptions=True)
    own_world.broker.start()
    receiver, got, end = await own_world.connected("b"), seen(), seen()
    await receiver.subscribe("up", got)
    await receiver.subscribe("end", end)
    async with asyncio.timeout(60):
        while not end.payloads:
            try:
                await sender.publish("end", b"")
                await end.until(1)
            except DisconnectedError:
                await asyncio.sleep(0.05)
    assert got.payloads == []


async def test_process_that_dies_in_its_handler_gets_the_message_again(own_world: Any, seen: Any) -> None:
    address, tls = own_world.broker.address, own_world.certificate("crashing")
    files = [tls.ca_file, tls.certificate, tls.key_file] if tls else []
    arguments = [sys.executable, "-c", CRASHING_HANDLER, str(address.port), *files]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=os.getcwd(), text=True)
    try:
        assert child.stdout is not None
        assert await asyncio.to_thread(child.stdout.readline) == "ready\n"
        sender = await own_world.connected("a")
        await sender.publish("crash/up", b"share")
        assert await asyncio.to_thread(child.wait, 60) == 9
        assert child.stdout.read() == "share\n"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    again, got = MqttLink(address, "crashing", QUICK, random.Random(1), session_expiry_s=600, tls=tls), seen()
    await again.subscribe("crash/up", got)
    await again.connect()
    await got.until(1)
    assert got.payloads == [b"share"]
    await again.close()


async def test_refused_subscription_fails_the_connect(listening: Any) -> None:
    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"\x20\x03\x00\x00\x00")
        subscribe = await reader.read(1000)
        writer.write(b"\x90\x04" + subscribe[2:4] + b"\x00\x87")
        await reader.read()

    link = link_to(await listening(refusing))

    async def ignore(_delivery: Delivery) -> None: ...

    await link.subscribe("secret", ignore)
    with pytest.raises(RefusedError, match=r"subscribe to secret.*0x87"):
        await link.connect()


class Deaf:
    """A broker that logs clients in, acknowledges nothing, and keeps what it was sent."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.gone = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"\x20\x03\x00\x00\x00")
        while data := await reader.read(65536):
            self.heard += data
        writer.close()
        self.gone.set()


async def test_broker_that_never_acknowledges(listening: Any) -> None:
    limits = LinkLimits(publish_timeout_s=0.3, outgoing_messages=2)
    link = link_to(await listening(Deaf()), limits=limits)
    await link.connect()
    outcomes = await asyncio.gather(*(link.publish("x", b"y") for _ in range(5)), return_exceptions=True)
    assert all(type(outcome) is LinkError for outcome in outcomes)
    # The window of two is what paho still holds; the other three never left.
    assert link.traffic.sent_messages == 2
    await link.close()


async def test_close_says_goodbye_and_fails_what_is_outstanding(listening: Any) -> None:
    broker = Deaf()
    link = link_to(await listening(broker))
    await link.connect()
    publishing = asyncio.create_task(link.publish("x", b"y"))
    async with asyncio.timeout(60):
        while not broker.heard:
            await asyncio.sleep(0.01)
    await link.close()
    with pytest.raises(DisconnectedError):
        await asyncio.wait_for(publishing, 60)
    await asyncio.wait_for(broker.gone.wait(), 60)
    assert broker.heard.endswith(b"\xe0\x00")


async def test_keepalive_survives_a_handler_that_stops_the_reading(own_world: Any, seen: Any) -> None:
    for turn in range(5):  # a machine that stands still for a second loses one of them, such a link every one
        if await stays_connected(own_world, seen(), turn):
            return
    pytest.fail("the connection fell every time")


async def stays_connected(own_world: Any, got: Any, turn: int) -> bool:
    """Whether the first connection lives on while a handler keeps the reader from reading."""
    limits = LinkLimits(incoming_messages=2, keepalive_s=2)
    sender, receiver = await own_world.connected(f"a{turn}"), own_world.link(f"b{turn}", limits)
    connections: list[bool] = []

    async def count(is_first: bool) -> None:
        connections.append(is_first)

    async def slow(delivery: Delivery) -> None:
        if not got.payloads:
            await asyncio.sleep(4)  # longer than one and a half of that, which is a broker's patience
        await got(delivery)

    receiver.on_connect(count)
    await receiver.connect()
    await receiver.subscribe(f"up{turn}", slow)
    for place in range(40):
        await sender.publish(f"up{turn}", b"%d" % place)
    async with asyncio.timeout(60):
        while len(got.payloads) < 40 and connections == [True]:
            await asyncio.sleep(0.05)
    await receiver.close()
    if connections != [True]:
        return False
    assert sorted(map(int, got.payloads)) == list(range(40))
    return True


async def test_small_round_trips_do_not_wait_for_tcp(own_world: Any) -> None:
    # 44 ms each with Nagle on one side and delayed acknowledgement on the other, below 1 ms without.
    asking, answering, answers = await own_world.connected("a"), await own_world.connected("b"), asyncio.Queue()

    async def answer(delivery: Delivery) -> None:
        await answering.publish("pong", delivery.payload)

    async def note(delivery: Delivery) -> None:
        answers.put_nowait(delivery.payload)

    await answering.subscribe("ping", answer)
    await asking.subscribe("pong", note)

    async def usual_s() -> float:
        took_s = []
        for _ in range(20):
            started_s = time.monotonic()
            await asking.publish("ping", bytes(1000))
            await asyncio.wait_for(answers.get(), 60)
            took_s.append(time.monotonic() - started_s)
        return sorted(took_s)[10]

    for _ in range(10):  # a crowded machine is slow now and then, such a link always
        if await usual_s() < 0.03:
            return
    pytest.fail("every twenty round trips took 30 ms or more")


# --------------------------------------------------------------------------- many, and none left


@pytest.mark.timeout(300)
async def test_a_thousand_clients_in_one_process(own_world: Any, seen: Any) -> None:
    receiver, got = await own_world.connected("sink", LinkLimits(incoming_messages=2000)), seen()
    await receiver.subscribe("up/+", got)
    threads, started_s = threading.active_count(), time.process_time()
    patient = LinkLimits(connect_timeout_s=250, publish_timeout_s=250, reconnect_min_s=0.05, reconnect_max_s=0.5)
    links = [own_world.link(str(number), patient) for number in range(1000)]
    for start in range(0, 1000, 100):  # a handshake of TLS costs several milliseconds, and each has a time limit
        await asyncio.gather(*(link.connect() for link in links[start : start + 100]))
    await asyncio.gather(*(link.publish(f"up/{number}", bytes(1000)) for number, link in enumerate(links)))
    await got.until(1000)
    assert len({delivery.topic for delivery in got.deliveries}) == 1000
    assert time.process_time() - started_s < 60
    # Only the loop's few look-up threads, none per client.
    assert threading.active_count() - threads < 40
    await asyncio.gather(*(link.close() for link in links))


async def test_close_leaves_no_socket(own_world: Any) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for number in range(5):
        link = await own_world.connected(f"c{number}")
        await link.publish("x", b"y")
        await link.close()
    assert set(os.listdir("/proc/self/fd")) <= before


async def test_handler_may_close_its_own_link(own_world: Any) -> None:
    link, closed = await own_world.connected("a"), asyncio.Event()

    async def close(_delivery: Delivery) -> None:
        await link.close()
        closed.set()

    await link.subscribe("end", close)
    publishing = asyncio.create_task(link.publish("end", b""))
    await asyncio.wait_for(closed.wait(), 60)
    await asyncio.wait_for(asyncio.gather(publishing, return_exceptions=True), 60)
    async with asyncio.timeout(60):
        while any("inbox" in task.get_name() or "keeper" in task.get_name() for task in asyncio.all_tasks()):
            await asyncio.sleep(0.01)
