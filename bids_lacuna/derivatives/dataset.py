"""The output folder: a BIDS derivative dataset that several runs share."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bids_lacuna._version import __version__
from bids_lacuna.derivatives.names import is_of_lesion
from bids_lacuna.derivatives.parcels import is_beside
from bids_lacuna.files import read_json_object, remove_unfinished, renamed_when_whole, write_json
from bids_lacuna.provenance import PROGRAM
from bids_lacuna.runtime.locks import Claim

DESCRIPTION = "dataset_description.json"

OWN_DATASET = "bids-lacuna"
"""Name of the output itself among datasets with masks; others have letters and digits only."""

DATASET_FILES = (DESCRIPTION, ".bidsignore")
"""Files that all runs write, one after another."""

BIDS_VERSION = "1.10.0"

CODE_URL = "https://github.com/bids-lacuna/bids_lacuna"

BIDSIGNORE = ("*.html", "figures", "logs", "sub-*/log", "group_*", "*_stat-*", "*_timeseries.tsv", "*_relmat.tsv")
"""Patterns of files unknown to the validator, which matches neither a trailing slash nor `*_stat-*_mask.*`."""


def read_description(output_dir: Path) -> dict[str, Any]:
    """Read the dataset description of the output folder; a minimal one if there is none yet.

    Raises
    ------
    FileExistsError
        The folder contains another program's dataset, or is a file.
    ValueError
        The description is damaged.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise FileExistsError(f"{output_dir} is a file, but a folder for the maps is needed: choose another path")
    path = output_dir / DESCRIPTION
    there = read_json_object(path) if path.exists() else {"GeneratedBy": [{"Name": PROGRAM}]}
    match there:
        case {"GeneratedBy": [{"Name": name}, *_]} if name == PROGRAM:
            return there
    raise FileExistsError(
        f"{output_dir} contains another dataset ({there.get('Name')}, by {there.get('GeneratedBy')}): "
        "choose a separate folder for the maps"
    )


def prepare_dataset(output_dir: Path, datasets: Mapping[str, Path]) -> dict[str, str]:
    """Make the output folder a BIDS derivative dataset, or add links to the existing one.

    Both files are written atomically. Jobs of an array write them one after another (`Claims.exclusive`), so that
    links of other jobs are kept.

    Parameters
    ----------
    output_dir
        Root of the derivative dataset; created if missing.
    datasets
        Name and root of each dataset with masks.

    Returns
    -------
    dict
        Name of each dataset in BIDS URIs: its own, with a number if an earlier run gave that name to another folder;
        empty for the output itself.

    Raises
    ------
    FileExistsError
        The folder contains another program's dataset, or is a file.
    OSError
        The folder cannot be written to.
    """
    links = read_description(output_dir).get("DatasetLinks")
    links = links if isinstance(links, dict) else {}
    names = {OWN_DATASET: ""}
    for name, root in datasets.items():
        link = Path(os.path.relpath(root.resolve(), output_dir.resolve())).as_posix()
        candidates = (f"{name}{number}" for number in ("", *range(2, 1000)))
        names[name] = next(candidate for candidate in candidates if links.get(candidate, link) == link)
        links[names[name]] = link
    description = {
        "Name": "bids_lacuna: lesion network maps",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": PROGRAM, "Version": __version__, "CodeURL": CODE_URL, **_container(os.environ)}],
        "SourceDatasets": [{"URL": link} for link in links.values()],
        "DatasetLinks": links,
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / DESCRIPTION, description)
    with renamed_when_whole(output_dir / ".bidsignore") as temporary:
        temporary.write_text("\n".join(BIDSIGNORE) + "\n", encoding="utf-8")
    return names


def _container(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the container of the program, by the environment variables of its image and of Apptainer."""
    keys = ("Type", "Tag", "URI")
    container = {key: environ[name] for key in keys if environ.get(name := f"BIDS_LACUNA_CONTAINER_{key.upper()}")}
    if image := environ.get("APPTAINER_CONTAINER") or environ.get("SINGULARITY_CONTAINER"):
        container |= {"Type": "singularity", "URI": image}
    return {"Container": container} if container else {}


def clean_after(output_dir: Path, claim: Claim) -> None:
    """Remove the temporary files of a run that was killed."""
    remove_unfinished(output_dir / "logs" / claim.run)
    by_folder: dict[Path, list[str]] = defaultdict(list)
    for lesion in claim.lesions:
        r_map = output_dir / lesion
        # Anybody may have written the claim's file.
        if "_stat-r_" in r_map.name and ".." not in r_map.parts and r_map.is_relative_to(output_dir):
            by_folder[r_map.parent].append(r_map.name)
    for folder, r_maps in by_folder.items():
        remove_unfinished(folder, of=partial(_is_of_any, r_maps))


def _is_of_any(r_maps: Sequence[str], name: str) -> bool:
    return any(is_of_lesion(name, r_map) or is_beside(name, r_map) for r_map in r_maps)
