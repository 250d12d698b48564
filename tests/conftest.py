"""What every test shares: one thread per library, a steady hypothesis, and the rule for tests that need Mosquitto."""

from __future__ import annotations

import gc
import os
import shutil

# Before numpy or torch are imported: two test workers on two cores leave one thread to each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("default")


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look through all of it again and again, an eighth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A command run in this process sets up logging to a stream that pytest closes with the test."""
    yield
    structlog.reset_defaults()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `mosquitto` are skipped without the program, but fail where it is required."""
    if item.get_closest_marker("mosquitto") is None or find_mosquitto():
        return
    if os.environ.get("FPS_REQUIRE_MOSQUITTO") == "1" or os.environ.get("CI") == "true":
        pytest.fail("mosquitto is not installed, and FPS_REQUIRE_MOSQUITTO=1 or CI=true requires it", pytrace=False)
    pytest.skip("mosquitto is not installed")


def find_mosquitto() -> str | None:
    """The program's path; distributions put it where only root's PATH leads."""
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
