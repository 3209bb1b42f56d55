"""The folders that a command line names: which are read, which are written, and that the two do not mix."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bids_lacuna.app.command import Exit, Stop

logger = logging.getLogger(__name__)


def name_all_datasets(arguments: argparse.Namespace) -> dict[str, Path]:
    """Name the datasets that are searched for masks, `source` first; refuse folders that mix input and output."""
    datasets = {"source": arguments.bids_dir, **name_datasets(arguments.derivatives)}
    check_folders(arguments, datasets)
    return datasets


def check_folders(arguments: argparse.Namespace, datasets: Mapping[str, Path]) -> None:
    """Refuse folders that would mix input and output."""
    for path in datasets.values():
        if not path.is_dir():
            raise Stop(Exit.NO_INPUT, f"there is no folder {path}: a dataset with lesion masks is needed there")
    written = {
        "output": arguments.output_dir,
        "work": arguments.work_dir,
        "database": arguments.bids_database_dir,
    }
    for kind, folder in written.items():
        for source in [*datasets.values(), *filter(None, [arguments.connectome])]:
            if folder and lies_in(folder.resolve(), source.resolve()):
                raise Stop(
                    Exit.USAGE,
                    f"the {kind} folder {folder} lies inside the input {source}, which stays as it is: use "
                    f"{arguments.bids_dir / 'derivatives' / 'bids-lacuna'}, or a folder elsewhere",
                )
    output = arguments.output_dir.resolve()
    if output.parent.name == "derivatives" and "bids-lacuna" not in output.name:
        logger.warning("in a folder called derivatives, BIDS wants the name bids-lacuna in %s", output.name)


def lies_in(folder: Path, source: Path) -> bool:
    """Tell whether a folder is, or is below, an input; a folder of its own in `derivatives` is not."""
    derivatives = source / "derivatives"
    return folder.is_relative_to(source) and not (folder.is_relative_to(derivatives) and folder != derivatives)


def name_datasets(arguments: Sequence[str]) -> dict[str, Path]:
    """Read PATH or NAME=PATH of each further dataset; a path without a name is called after its folder."""
    datasets: dict[str, Path] = {}
    for argument in arguments:
        named = re.match(r"([A-Za-z0-9]+)=", argument)
        path = argument[named.end() :] if named else argument
        name = named[1] if named else re.sub(r"[^A-Za-z0-9]", "", Path(path).resolve().name)
        if not name or name in {"source", *datasets}:
            raise Stop(
                Exit.USAGE,
                f"-d {argument}: the name {name!r} is taken or empty: give each dataset a name of its own, as in "
                "-d NAME=PATH",
            )
        datasets[name] = Path(path)
    return datasets
