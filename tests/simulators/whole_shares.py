"""Whole shares of an upload, for tests that look into them: a device itself never holds one."""

from __future__ import annotations

from edge_client.outbox import Upload
from edge_client.share_chunks import open_shares
from fedpruneshare.plan import PlanView


def split_upload(view: PlanView, device_id: str, upload: Upload) -> dict[int, bytes]:
    """What each point is sent, its chunks joined."""
    shares = open_shares(view, device_id, upload)
    return {x: b"".join(share.chunk(index) for index in range(share.count)) for x, share in shares.items()}
