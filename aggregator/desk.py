"""What the parts of an aggregator share: who it is, what it may do, what it keeps, and how it answers."""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.book import ShareBook
from aggregator.disk import Disk
from aggregator.post import Letter, Post
from aggregator.store import ShareStore
from fedpruneshare.party import Party
from fedpruneshare.plan import PlanView


@dataclass(frozen=True)
class Desk:
    """One aggregator at work. The order is the same everywhere: check (book), store, note (book), answer (post)."""

    party: Party
    book: ShareBook
    store: ShareStore
    post: Post
    disk: Disk

    @property
    def view(self) -> PlanView:
        """The plan of the open round. Raises `RuntimeError` where there is none."""
        if self.book.view is None:
            raise RuntimeError("no round is open")
        return self.book.view

    def is_open(self, plan_digest: bytes) -> bool:
        """Whether the round of this plan is open still."""
        return self.book.view is not None and self.book.view.digest == plan_digest

    def is_open_round(self, round_id: int) -> bool:
        """Whether this is the open round."""
        return self.book.view is not None and self.book.view.plan.round_id == round_id

    def publish(self, letter: Letter) -> None:
        """Publish on the control broker until it is taken, or the round is over."""
        plan_digest = self.view.digest
        self.post.publish_while(lambda: self.is_open(plan_digest), plan_digest.hex(), letter)
