"""fMRIPrep's transforms of anatomical images, and the T1w images that a mask may lie on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bids_lacuna.bids.index import list_images, list_paths, of_others, parse_name
from bids_lacuna.files import reached_once, read_json_object
from bids_lacuna.transforms import TransformFile

OTHER_FILES = (
    re.compile(r"^/(code|derivatives|logs|models|sourcedata|stimuli)(/|$)"),
    re.compile(r"^(?!.*_xfm\.(h5|txt)$).*\.(bval|bvec|gii|h5|html|json|mat|nii|nii\.gz|png|svg|tsv|tsv\.gz|txt)$"),
)
"""Paths that hold no transform: to index thousands of other files would take seconds."""

OF_THE_FILE = ("from", "to", "mode", "suffix", "extension", "datatype")
"""Parts of a transform's name that do not say of whom it is."""


@dataclass(frozen=True)
class AnatomicalTransform:
    """A transform of a participant's anatomical image."""

    file: TransformFile
    entities: Mapping[str, str]
    """Labels of whom it is: `sub`, and `ses`, `acq` or `run` if the name has them."""


def find_transforms(datasets: Mapping[str, Path], participants: Sequence[str] = ()) -> list[AnatomicalTransform]:
    """Find fMRIPrep's transforms of images: sub-*_from-*_to-*_mode-image_xfm.h5 or .txt.

    Parameters
    ----------
    datasets
        Roots of datasets by name.
    participants
        Labels; empty for all.
    """
    found = []
    ignored = [*OTHER_FILES, *of_others([label.removeprefix("sub-") for label in participants])]
    for root in datasets.values():
        software = read_software(root)
        for path in list_paths(root.absolute(), ignored, ends=("_xfm.h5", "_xfm.txt")):
            name = parse_name(path)
            if {"sub", "from", "to"} <= name.keys() and name.get("mode", "image") == "image":
                entities = {key: label for key, label in name.items() if key not in OF_THE_FILE}
                file = TransformFile(path, name["from"], name["to"], software)
                found.append(AnatomicalTransform(file, entities))
    return sorted(
        reached_once(found, lambda transform: transform.file.path), key=lambda transform: transform.file.path
    )


def read_software(root: Path) -> str:
    """Return the program and version that a dataset's description names first, as in "fMRIPrep 23.2.0"."""
    with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        program = read_json_object(root / "dataset_description.json")["GeneratedBy"][0]
        return " ".join(str(program[key]) for key in ("Name", "Version") if program.get(key))
    return ""


def is_raw(root: Path) -> bool:
    """Return whether a dataset is a raw one by its description; without a type it is."""
    with suppress(OSError, ValueError):
        return read_json_object(root / "dataset_description.json").get("DatasetType", "raw") == "raw"
    return True


def find_t1w_images(
    dataset: str, root: Path, participants: Sequence[str] = ()
) -> dict[tuple[str, str | None], list[Path]]:
    """Find the T1w images of a dataset, beside which masks may lie, by the labels of participant and session.

    Parameters
    ----------
    dataset, root
        Name and root of the dataset.
    participants
        Labels; empty for all.
    """
    found = defaultdict(list)
    labels = [label.removeprefix("sub-") for label in participants]
    for image in list_images(dataset, root, labels, None):
        if image.name["suffix"] == "T1w" and "sub" in image.name and "space" not in image.name:
            found[image.name["sub"], image.name.get("ses")].append(image.path)
    return {key: sorted(paths) for key, paths in found.items()}
