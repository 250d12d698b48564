"""The faulty proxy does what it says to the bytes of a TCP connection, and to MQTT packets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fedpruneshare.link import BrokerAddress
from testbed.faults.proxy import Proxy, split_packets

LIMIT_S = 60.0


@pytest.fixture
def echo() -> Iterator[BrokerAddress]:
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        try:
            while data := connection.recv(65_536):
                connection.sendall(data)
        except OSError:
            pass
        connection.close()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield BrokerAddress(*listener.getsockname())
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection((proxy.address.host, proxy.address.port), timeout=LIMIT_S)


def hear(connection: socket.socket, count: int) -> bytes:
    """So many bytes, fewer if the connection ends before them."""
    found = b""
    while len(found) < count:
        try:
            data = connection.recv(count - len(found))
        except ConnectionError:
            break
        if not data:
            break
        found += data
    return found


def is_silent(connection: socket.socket) -> bool:
    """Whether nothing comes, and no end either, for a tenth of a second."""
    connection.settimeout(0.1)
    try:
        return connection.recv(1) is None
    except TimeoutError:
        return True
    except ConnectionError:
        return False
    finally:
        connection.settimeout(LIMIT_S)


def is_refused(proxy: Proxy) -> bool:
    """Whether a new connection ends at once, at the latest with its first byte."""
    try:
        with dial(proxy) as connection:
            return hear(connection, 1) == b""
    except ConnectionError:
        return True


def test_bytes_pass_unchanged_both_ways(echo: BrokerAddress) -> None:
    data = bytes(range(256)) * 2000
    with Proxy(echo, is_mqtt=False) as proxy, dial(proxy) as connection:
        threading.Thread(target=connection.sendall, args=(data,)).start()
        assert hear(connection, len(data)) == data
        assert proxy.forwarded == {"up": len(data), "down": len(data)}
        assert proxy.connections == 1


@pytest.mark.parametrize("count", [0, 1, 7, 4999])
def test_a_connection_is_cut_after_so_many_bytes(echo: BrokerAddress, count: int) -> None:
    with Proxy(echo, is_mqtt=False) as proxy, dial(proxy) as connection:
        proxy.cut_after(count, "down")
        connection.sendall(bytes(5000))
        assert len(hear(connection, 5000)) <= count  # what lies before a reset may be lost with it
        assert proxy.forwarded["down"] <= count
        with dial(proxy) as second:
            second.sendall(b"again")
            assert hear(second, 5) == b"again"


def test_what_is_held_arrives_after_healing(echo: BrokerAddress) -> None:
    with Proxy(echo, is_mqtt=False) as proxy, dial(proxy) as connection:
        proxy.hold()
        connection.sendall(b"later")
        assert is_silent(connection)
        proxy.heal()
        assert hear(connection, 5) == b"later"


def test_a_partition_ends_all_connections_and_refuses_new_ones(echo: BrokerAddress) -> None:
    with Proxy(echo, is_mqtt=False) as proxy, dial(proxy) as connection:
        connection.sendall(b"x")
        assert hear(connection, 1) == b"x"
        proxy.partition()
        assert hear(connection, 1) == b""
        assert is_refused(proxy)
        proxy.heal()
        with dial(proxy) as second:
            second.sendall(b"y")
            assert hear(second, 1) == b"y"


def test_a_half_open_connection_says_nothing_and_does_not_end(echo: BrokerAddress) -> None:
    with Proxy(echo, is_mqtt=False) as proxy, dial(proxy) as connection:
        connection.sendall(b"x")
        assert hear(connection, 1) == b"x"
        proxy.half_open()
        connection.sendall(b"is anybody there?")
        assert is_silent(connection)
        proxy.heal()
        assert hear(connection, 1) == b""


def test_delay_and_rate_take_their_time(echo: BrokerAddress) -> None:
    with Proxy(echo, is_mqtt=False) as proxy, dial(proxy) as connection:
        proxy.delay_s = 0.1
        started = time.monotonic()
        connection.sendall(b"x")
        assert hear(connection, 1) == b"x"
        assert time.monotonic() - started >= 0.2  # there and back
        proxy.heal()
        proxy.rate = 100_000
        started = time.monotonic()
        connection.sendall(bytes(20_000))
        hear(connection, 20_000)
        assert time.monotonic() - started >= 0.2


# --------------------------------------------------------------------------- MQTT packets


def publish(text: bytes) -> bytes:
    """A QoS 0 PUBLISH to topic `t` (MQTT 5.0 §3.3)."""
    body = b"\x00\x01t\x00" + text
    assert len(body) < 128
    return bytes([0x30, len(body)]) + body


PING = b"\xc0\x00"


def test_packets_are_found_however_the_bytes_come() -> None:
    large = bytes([0x30, 0xC8, 0x01]) + bytes(200)  # remaining length 200 in two bytes
    stream = publish(b"one") + PING + large + publish(b"two")
    for size in (1, 2, 3, 50, len(stream)):
        found, rest = [], b""
        for start in range(0, len(stream), size):
            packets, rest = split_packets(rest + stream[start : start + size])
            found += packets
        assert found == [publish(b"one"), PING, large, publish(b"two")]
        assert rest == b""


def test_packets_are_doubled(echo: BrokerAddress) -> None:
    with Proxy(echo, seed=1) as proxy, dial(proxy) as connection:
        proxy.duplicate = 1.0
        connection.sendall(publish(b"one"))
        expected = publish(b"one") * 4  # twice on each way
        assert hear(connection, len(expected)) == expected


def test_packets_change_places_and_none_is_lost(echo: BrokerAddress) -> None:
    sent = [publish(b"%02d" % number) for number in range(40)]
    with Proxy(echo, seed=3) as proxy, dial(proxy) as connection:
        proxy.swap = 0.4
        connection.sendall(b"".join(sent))
        data = b"".join(sent)
        packets, rest = split_packets(hear(connection, len(data)))
        assert not rest
        assert sorted(packets) == sorted(sent)
        assert packets != sent
