"""Target networks of the command line: read onto the connectome's voxels, in whatever space they are."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from bids_lacuna.app.command import Exit, Stop, ending
from bids_lacuna.app.transforms import find_chains
from bids_lacuna.bids import read_space
from bids_lacuna.grid import Grid
from bids_lacuna.targets import Target, read_target

logger = logging.getLogger(__name__)


def read_targets(
    arguments: argparse.Namespace, datasets: Mapping[str, Path], grid: Grid, space: str
) -> tuple[Target, ...]:
    """Read the targets of a command line.

    Parameters
    ----------
    grid, space
        Grid of the connectome, and its template space.

    Raises
    ------
    Stop
        A target cannot be used.
    """
    given = [(name, Path(path)) for name, _, path in (text.partition("=") for text in arguments.target)]
    for name, n in Counter(name for name, _ in given).items():
        if n > 1:
            paths = " and ".join(str(path) for each, path in given if each == name)
            raise Stop(Exit.USAGE, f"{n} targets are called {name} ({paths}): give each a name of its own")
    if not given:
        return ()
    finder = find_chains(arguments, datasets, space)
    found = []
    for name, path in given:
        with (
            ending(Exit.BAD_DATA, OSError, ValueError, saying=f"the target {name} cannot be used"),
            ending(Exit.NO_INPUT, FileNotFoundError, saying=f"the target {name} cannot be used"),
        ):
            own_space = read_space(path)
            if own_space is None:
                logger.info("target %s: %s names no space: taken to be in the connectome's, %s", name, path, space)
            transform = finder.of_template(own_space or space)
            found.append(read_target(name, path, grid, own_space or space, transform))
        if transform:
            logger.info("target %s: brought %s", name, transform.words)
    return tuple(found)
