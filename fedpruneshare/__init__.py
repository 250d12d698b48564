"""The language the roles of FedPruneShare speak: messages, topics, sharing, sparsity, sealing, link.

This package imports no role (`edge_client`, `aggregator`, `coordinator`) and no torch.
"""

import os

# Official builds of onnxruntime from 1.29 on report models and sessions to their maker, unless the environment says no
# before they are loaded. What a federation trains is nobody else's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

#: Version of the wire protocol (docs/protocol.md §1). Peers of another version are refused by name.
PROTOCOL_VERSION = 1
