"""The report of a real run, on Mosquitto, as a headless browser paints it: text and plots are there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from e2e.fleets import SMALL
from numpy.typing import NDArray

pytestmark = [pytest.mark.e2e, pytest.mark.mosquitto, pytest.mark.timeout(170)]

WIDTH, HEIGHT = 1100, 2600
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture
def browser() -> str:
    """A browser's path. Without one the test is skipped, or fails where everything must be there."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("no chromium is installed, and CI=true requires it", pytrace=False)
    if found is None:
        pytest.skip("no chromium is installed")
    return found


def test_the_plots_are_painted(tmp_path: Path, browser: str) -> None:
    out, picture = tmp_path / "run", tmp_path / "report.png"
    sets = (*SMALL, "rounds.count=3", "pruning.dense_rounds=0", "pruning.final_round=2", 'brokers.kind="mosquitto"')
    command = ["testbed", "run", "demo", "--out", str(out), *(part for text in sets for part in ("--set", text))]
    subprocess.run([sys.executable, "-m", "fedpruneshare.cli", *command], check=True, timeout=120, capture_output=True)
    page = paint(browser, out / "report.html", picture)
    pixels = matplotlib.image.imread(picture)[..., :3]
    plots = boxes(page)
    assert len(plots) >= 2
    for left, top, width, height in plots:
        assert width > 300
        assert height > 150
        check_painted(pixels[top : top + height, left : left + width])


def check_painted(plot: NDArray[np.float32]) -> None:
    """Lines on a ground: most pixels have the ground's colour, and enough in every third of the picture do not."""
    colours, counts = np.unique((plot.reshape(-1, 3) * 255).astype(int), axis=0, return_counts=True)
    ground = colours[counts.argmax()]
    ink = np.abs((plot * 255).astype(int) - ground).sum(axis=2) > 60
    assert 0.005 < ink.mean() < 0.5
    assert all(third.mean() > 0.001 for axis in (0, 1) for third in np.array_split(ink, 3, axis=axis))
    drawn = plot[ink]
    assert (drawn.max(axis=1) - drawn.min(axis=1) > 0.2).sum() > 100, "no coloured line, only axes and text"


#: What the page says of its pictures once they are loaded, for the test to read out of the page's title.
PROBE = """<script>
addEventListener("load", () => {
  const pictures = [...document.images].filter((i) => i.complete && i.naturalWidth > 0 && i.checkVisibility());
  document.title = "boxes " + JSON.stringify(pictures.map((i) => {
    const box = i.getBoundingClientRect();
    return [box.left, box.top, box.width, box.height].map(Math.round);
  }));
});
</script>"""


def paint(browser: str, report: Path, picture: Path) -> str:
    """Take a picture of the report; returns the document as the browser has it, with the boxes in its title."""
    probed = picture.with_name("probed.html")
    probed.write_text(report.read_text("utf-8").replace("</body>", PROBE + "</body>"), "utf-8")
    options = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--force-device-scale-factor=1", f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=5000",
        f"--user-data-dir={picture.parent / 'profile'}",
    ]  # fmt: skip
    shot = [*options, f"--screenshot={picture}", report.as_uri()]
    subprocess.run(shot, check=True, timeout=60, capture_output=True)
    dump = [*options, "--dump-dom", probed.as_uri()]
    return subprocess.run(dump, check=True, timeout=60, capture_output=True, text=True).stdout


def boxes(page: str) -> list[list[int]]:
    """Left, top, width and height of every picture that the browser has loaded and shows."""
    title = re.search(r"<title>boxes (.*?)</title>", page)
    assert title is not None, page[:500]
    numbers = [int(number) for number in re.findall(r"-?\d+", title[1])]
    return [numbers[start : start + 4] for start in range(0, len(numbers), 4)]
