"""Reports as a headless browser paints them: a real run on Mosquitto, comparisons as wide as desk and phone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from e2e.browsers import running
from e2e.fleets import SMALL
from numpy.typing import NDArray
from report_folders import Made, made_folder

from testbed.report.page import write_comparison, write_report

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

WIDTH = 1100
#: Left, top, width and height of every picture that the browser has loaded and shows.
BOXES = """[...document.images].filter((i) => i.complete && i.naturalWidth > 0 && i.checkVisibility()).map((i) => {
  const box = i.getBoundingClientRect();
  return [box.left, box.top + scrollY, box.width, box.height].map(Math.round);
})"""
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


@pytest.mark.mosquitto
def test_the_plots_are_painted(tmp_path: Path, browser: str) -> None:
    out, picture = tmp_path / "run", tmp_path / "report.png"
    sets = (*SMALL, "rounds.count=3", "pruning.dense_rounds=0", "pruning.final_round=2", 'brokers.kind="mosquitto"')
    command = ["testbed", "run", "demo", "--out", str(out), *(part for text in sets for part in ("--set", text))]
    subprocess.run([sys.executable, "-m", "fedpruneshare.cli", *command], check=True, timeout=250, capture_output=True)
    with running(browser, tmp_path) as tab:
        tab.open(out / "report.html", WIDTH, 900)
        plots = tab.value(BOXES)
        pixels = matplotlib.image.imread(tab.picture(picture))[..., :3]
        assert tab.complaints == []
    assert len(plots) >= 8
    for left, top, width, height in plots:
        assert width > 300
        assert height > 150
        check_painted(pixels[top : top + height, left : left + width])


def check_painted(plot: NDArray[np.float32]) -> None:
    """Lines on a ground: most pixels have the ground's colour, and enough in every third of the picture do not."""
    colours, counts = np.unique((plot.reshape(-1, 3) * 255).astype(int), axis=0, return_counts=True)
    ground = colours[counts.argmax()]
    ink = np.abs((plot * 255).astype(int) - ground).sum(axis=2) > 60
    assert 0.005 < ink.mean() < 0.8  # stacked bars fill most of a plot
    assert all(third.mean() > 0.001 for axis in (0, 1) for third in np.array_split(ink, 3, axis=axis))
    drawn = plot[ink]
    assert (drawn.max(axis=1) - drawn.min(axis=1) > 0.2).sum() > 100, "no coloured line, only axes and text"


# --------------------------------------------------------------------------- desk and phone, light and dark

#: Pictures that did not load, whether the page is wider than the window, and text smaller than can be read.
_STATE = """(() => ({
  broken: [...document.images].filter((i) => !i.complete || i.naturalWidth === 0).map((i) => i.alt),
  pictures: document.images.length,
  narrow: [...document.images].filter((i) => i.getBoundingClientRect().width < 260).map((i) => i.alt),
  page: document.documentElement.scrollWidth,
  window: innerWidth,
  outside: [...document.querySelectorAll("main *")].filter((e) =>
    e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".wide, pre")).map((e) => e.tagName + e.textContent),
  ground: getComputedStyle(document.body).backgroundColor,
}))()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The report of four arms, of one run, and of two folders with names and reasons that are hard to fit."""
    root = tmp_path_factory.mktemp("reports")
    arms = write_report(made_folder(root / "arms", Made(rounds=20, devices=12, cohort=6)))
    long = root / ("a-folder-with-a-name-that-is-far-longer-than-any-phone-is-wide" * 2)
    run = made_folder(long, Made(("fedpruneshare",), (1,), rounds=8, devices=50, cohort=20))
    return [arms, write_report(run), write_comparison([root / "arms", run], root / "both")]


@pytest.mark.parametrize(("width", "is_dark"), [(1280, False), (1280, True), (390, False), (320, True)])
def test_every_plot_is_there_and_nothing_sticks_out(
    tmp_path: Path, browser: str, pages: list[Path], width: int, is_dark: bool
) -> None:
    with running(browser, tmp_path) as tab:
        for page in pages:
            tab.open(page, width, 900, is_dark)
            tab.value("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
            state = tab.value(_STATE)
            assert state["pictures"] >= 11
            assert (state["broken"], state["narrow"], state["outside"]) == ([], [], []), page
            assert state["page"] == state["window"] == width
            assert (state["ground"] == "rgb(13, 17, 23)") is is_dark
            assert tab.complaints == []


def test_a_plot_on_a_dark_ground_has_light_text(tmp_path: Path, browser: str, pages: list[Path]) -> None:
    with running(browser, tmp_path) as tab:
        for is_dark in (False, True):
            tab.open(pages[0], 1280, 900, is_dark)
            left, top, width, height = tab.value(BOXES)[0]
            pixels = matplotlib.image.imread(tab.picture(tmp_path / "page.png"))[..., :3]
            plot = pixels[top : top + height, left : left + width]
            check_painted(plot)
            # The labels of the axis below: the strip at the foot has no colours, ink stands off the ground.
            foot = plot[-height // 12 :].mean(axis=2)
            assert (foot.max() > 0.7 and foot.min() < 0.2) if is_dark else (foot.min() < 0.35 and foot.max() > 0.9)
