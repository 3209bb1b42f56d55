"""Input and output folders of a command line, which must not overlap."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bids_lacuna.app.command import Exit, Stop

logger = logging.getLogger(__name__)


def name_all_datasets(arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the datasets to search for masks by name, `source` first; stop if input and output would mix."""
    datasets = {"source": arguments.bids_dir, **name_datasets(arguments.derivatives)}
    check_folders(arguments, datasets)
    return datasets


def check_folders(arguments: argparse.Namespace, datasets: Mapping[str, Path]) -> None:
    """Stop the program if a dataset is missing, or if an output folder lies inside an input."""
    for path in datasets.values():
        if not path.is_dir():
            raise Stop(Exit.NO_INPUT, f"there is no folder {path}: name the folder of a dataset with lesion masks")
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
                    f"the {kind} folder {folder} lies inside the input {source}, which must not be changed: use "
                    f"{arguments.bids_dir / 'derivatives' / 'bids-lacuna'} or a folder elsewhere",
                )
    output = arguments.output_dir.resolve()
    if output.parent.name == "derivatives" and "bids-lacuna" not in output.name:
        logger.warning("BIDS requires bids-lacuna in the name of %s, a folder in derivatives: rename it", output.name)


def lies_in(folder: Path, source: Path) -> bool:
    """Return whether a folder is an input or lies inside one; its subfolders of `derivatives` do not count."""
    derivatives = source / "derivatives"
    return folder.is_relative_to(source) and not (folder.is_relative_to(derivatives) and folder != derivatives)


def name_datasets(arguments: Sequence[str]) -> dict[str, Path]:
    """Parse PATH or NAME=PATH of each additional dataset; without a name, the folder's name is used."""
    datasets: dict[str, Path] = {}
    for argument in arguments:
        named = re.match(r"([A-Za-z0-9]+)=", argument)
        path = argument[named.end() :] if named else argument
        name = named[1] if named else re.sub(r"[^A-Za-z0-9]", "", Path(path).resolve().name)
        if not name or name in {"source", *datasets}:
            raise Stop(
                Exit.USAGE,
                f"-d {argument}: the name {name!r} is empty or already used: give each dataset a unique name with "
                "-d NAME=PATH",
            )
        datasets[name] = Path(path)
    return datasets
