"""One aggregator: the keeper of one share per device.

It admits sealed shares from its own broker, stores them before it acknowledges them, and answers one `Freeze` per
round with the sum of exactly the shares that the Freeze names (docs/protocol.md §4). It enforces its own floors (§8),
whatever the coordinator asks.
"""
