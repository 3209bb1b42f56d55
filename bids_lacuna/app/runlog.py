"""The folder of logs that each run has for itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from bids_lacuna.app.config import write_config
from bids_lacuna.app.options import build_parser
from bids_lacuna.runtime import logs


def name_log_dir(output_dir: Path) -> Path:
    """Choose a folder for the logs of a new run."""
    return output_dir / "logs" / f"{datetime.now():%Y%m%d-%H%M%S}_{uuid4().hex[:8]}"


@contextmanager
def keeping_log(arguments: argparse.Namespace, log_dir: Path) -> Iterator[None]:
    """Keep the log of a run, and the options that repeat it."""
    with logs.kept_in(log_dir):
        write_config(log_dir / "config.toml", build_parser(), arguments)
        yield
