"""Fixtures that several modules share. No test changes what has the scope of the session: it makes its own."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import synthetic
from playwright.sync_api import Browser, sync_playwright
from warm_worker import WarmWorker

from bids_lacuna.connectome import workers

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def brain() -> np.ndarray:
    """Return the brain mask of the connectomes."""
    return synthetic.make_mask()


@pytest.fixture(scope="session")
def connectome(tmp_path_factory: pytest.TempPathFactory, brain: np.ndarray) -> Path:
    """Write a connectome of five subjects with unequal numbers of timepoints, in four files."""
    series = synthetic.make_series(int(brain.sum()))
    return synthetic.write_connectome_folder(tmp_path_factory.mktemp("connectome") / "GSP-5", series, brain)


@pytest.fixture(scope="session")
def silent_series(brain: np.ndarray) -> list[np.ndarray]:
    """Make five connectome subjects, one of whom has no signal in some voxels, so that n varies."""
    series = synthetic.make_series(int(brain.sum()))
    series[2][:, 5:17] = 3
    return series


@pytest.fixture(scope="session")
def silent_connectome(
    tmp_path_factory: pytest.TempPathFactory, brain: np.ndarray, silent_series: list[np.ndarray]
) -> Path:
    """Write these subjects to four files."""
    return synthetic.write_connectome_folder(tmp_path_factory.mktemp("silent") / "GSP-5", silent_series, brain)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium or Chrome."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path, "a browser is needed: `make browser` installs Chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def heed_interrupts() -> Iterator[None]:
    """Heed Ctrl-C also where the tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def warm_worker() -> Iterator[WarmWorker]:
    """Keep one worker process for builds."""
    worker = WarmWorker()
    yield worker
    worker.stop()


@pytest.fixture(scope="session", autouse=True)
def builds_share_a_worker(warm_worker: WarmWorker) -> Iterator[None]:
    """Let all builds with one process within the tests' process share their worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "processes", warm_worker.processes)
        yield
