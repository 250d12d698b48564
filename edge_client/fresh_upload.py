"""A new upload: words, the id and the sharing secrets drawn for them (docs/protocol.md §4.2, §5.4)."""

from __future__ import annotations

import os

import numpy as np

from edge_client.outbox import Upload
from fedpruneshare.messages import Suite
from fedpruneshare.plan import PlanView
from fedpruneshare.sharing.dispersal import KEY_BYTES
from fedpruneshare.sharing.field import Words
from fedpruneshare.sharing.prg import LEAN_BACKEND, Prg, Seed, fill_elements


def new_upload(view: PlanView, rung: int, weight: int, words: Words, prg: Prg, *, suite: Suite | None = None) -> Upload:
    """Give words an upload id and sharing secrets, from the operating system's generator only.

    `suite`: of the plan's, by default the first.
    """
    is_each = view.is_each_revealed
    return Upload(
        plan=view.digest,
        round_id=view.plan.round_id,
        upload_id=os.urandom(16),
        rung=rung,
        weight=weight,
        prg=prg,
        seeds={} if is_each else {x: Seed.fresh().reveal() for x in range(1, view.scheme.t + 1)},
        masks=_masks(view, prg),
        key=os.urandom(KEY_BYTES) if is_each and not view.is_plain else b"",
        words=words,
        suite=suite or view.plan.suites[0],
    )


def _masks(view: PlanView, prg: Prg) -> Words:
    """Uniform words of the mask elements, as many as those carry (docs/protocol.md §5.7)."""
    masks = np.empty(0 if view.is_plain else view.checks * view.scheme.secrets, dtype=view.field.word_type)
    return fill_elements(prg, Seed.fresh(), b"dealer masks", masks, view.field, LEAN_BACKEND)
