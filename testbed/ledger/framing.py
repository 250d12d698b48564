"""What MQTT, TCP, IP and Ethernet add to payload bytes at a device's interface, as an upper bound (docs/measuring.md).

Counted for one device and both directions, from what its links counted:

- a PUBLISH adds to its payload a fixed header of at most 5 bytes, the topic and its length, a packet identifier and the
  message expiry with the length of the properties (MQTT 5.0, §2.1.4, §3.3.1 to §3.3.2); every one is answered by a
  PUBACK of at most 6 bytes (§3.4) in the other direction;
- to fetch a model segment a device subscribes and unsubscribes; no more often than messages arrive;
- a connection begins with CONNECT and SUBSCRIBE and ends with DISCONNECT, and pings when it is idle (§3.12);
- TCP carries at most 1448 bytes a segment at an MTU of 1500 with timestamps (RFC 7323), every write ends a segment
  (TCP_NODELAY), and every segment may be acknowledged by one of its own in the other direction (RFC 5681 asks for every
  second; both ends here acknowledge at once);
- the last segment of a message may be sent twice where its acknowledgement is late, although nothing was lost: a tail
  loss probe (RFC 8985, §7);
- each segment has 66 bytes of headers: Ethernet 14, IPv4 20, TCP 20, timestamps 12.

Losses cost more than this: what is sent again is then measured, and not explained.
"""

from __future__ import annotations

import math
from typing import Final

from testbed.ledger.rounds import InterfaceBytes, LinkCounts

#: Payload of a full TCP segment, and what is wrapped around any segment.
SEGMENT_BYTES: Final = 1448
HEADER_BYTES: Final = 66
#: Fixed header 5, topic length 2, packet identifier 2, properties 1 + 5.
PUBLISH_BYTES: Final = 15
PUBACK_BYTES: Final = 6
#: SUBSCRIBE or UNSUBSCRIBE beside its filter: fixed header 5, identifier 2, properties 1, filter length 2, options 1.
SUBSCRIBE_BYTES: Final = 11
#: CONNECT with its properties and client id, and DISCONNECT, at most.
CONNECT_BYTES: Final = 256
#: Segments in which a connection is opened and closed, one direction: SYN or FIN, and what acknowledges the other's.
_HANDSHAKE_SEGMENTS: Final = 6
#: Subscriptions made with each connection, at most.
_SUBSCRIPTIONS: Final = 4
#: Address resolution, neighbour discovery, multicast reports: what an interface says by itself, and by the second.
_INTERFACE_BYTES: Final = 4096
_INTERFACE_BYTES_S: Final = 4
#: The shortest keepalive of a device (`LinkSettings`); slow links have longer ones.
_KEEPALIVE_S: Final = 60.0


def framing_bound(counts: LinkCounts, topic_bytes: int, seconds: float) -> InterfaceBytes:
    """The most that may pass a device's interface each way, where nothing is lost.

    `topic_bytes`: length of its longest topic; `seconds`: how long its connections stood.
    """
    ups, downs = counts.sent_messages, counts.received_messages
    fetches = 2 * downs  # a SUBSCRIBE and an UNSUBSCRIBE for each message that arrived, at most
    greetings = counts.connects * (_SUBSCRIPTIONS + 2)
    pings = counts.connects * (math.ceil(seconds / _KEEPALIVE_S) + 1)
    asked = fetches * (SUBSCRIBE_BYTES + topic_bytes)
    opened = counts.connects * (CONNECT_BYTES + _SUBSCRIPTIONS * (SUBSCRIBE_BYTES + topic_bytes))
    stream_up = counts.sent_bytes + ups * (PUBLISH_BYTES + topic_bytes) + downs * PUBACK_BYTES + asked + opened
    stream_down = counts.received_bytes + downs * (PUBLISH_BYTES + topic_bytes) + ups * PUBACK_BYTES
    stream_down += fetches * PUBACK_BYTES + opened
    packets = ups + downs + fetches + greetings + pings  # in either direction: each is asked or answered
    segments_up = packets + stream_up // SEGMENT_BYTES
    segments_down = packets + stream_down // SEGMENT_BYTES
    both = segments_up + segments_down + counts.connects * _HANDSHAKE_SEGMENTS
    still = _INTERFACE_BYTES + int(_INTERFACE_BYTES_S * seconds)
    return InterfaceBytes(
        stream_up + HEADER_BYTES * both + _probes(counts.sent_bytes, ups) + still,
        stream_down + HEADER_BYTES * both + _probes(counts.received_bytes, downs) + still,
    )


def _probes(payload_bytes: int, messages: int) -> int:
    """Last segments of all messages, sent once more."""
    tail = min(SEGMENT_BYTES, payload_bytes / messages if messages else 0)
    return int(messages * (tail + HEADER_BYTES))
