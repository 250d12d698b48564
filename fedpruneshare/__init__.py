"""The language the roles of FedPruneShare speak: messages, topics, sharing, sparsity, sealing, link.

This package imports no role (`edge_client`, `aggregator`, `coordinator`) and no torch.
"""

__version__ = "0.1.0"

#: Version of the wire protocol (docs/protocol.md §1). Peers of another version are refused by name.
PROTOCOL_VERSION = 1
