"""Lesion masks, BOLD runs and lesions' maps: pybids lists a dataset's files; names and sidecars tell what they are.

pybids' own queries are not used: its patterns match whole paths, so that below a folder `/data/label-lesion` every
file of a dataset has that label.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bids.layout import BIDSLayout, BIDSLayoutIndexer, Config

from bids_lacuna.files import read_json_object
from bids_lacuna.text import suggest

logger = logging.getLogger(__name__)

CONFIGS = ["bids", "derivatives", str(Path(__file__).with_name("bids_config.json"))]
"""pybids' entities, those of derivatives also for raw datasets; then those that pybids lacks."""

NOT_SEARCHED = (
    re.compile(r"^/(code|derivatives|models|sourcedata|stimuli)(/|$)"),
    # With a .json and a .tsv beside each of 10,000 images, pybids took 10.7 s with them and 3.3 s without.
    re.compile(r"\.(bval|bvec|gii|h5|html|json|svg|tsv|txt)$"),
)
"""What is left out of a dataset; pybids leaves hidden files and folders out by itself."""

NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""A byte of a file's name that is none in UTF-8, as Python has it."""


class DamagedDataset(ValueError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """A dataset_description.json cannot be used."""


class UnknownParticipant(LookupError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """No dataset has this participant, or this session; the message lists those there are."""


class Image(NamedTuple):
    """A NIfTI file; its name's entities in their order, then suffix, extension and datatype."""

    dataset: str
    root: Path
    path: Path
    name: dict[str, str]

    @property
    def entities(self) -> dict[str, str]:
        """Keep what `LesionMask.entities` holds."""
        return {name: label for name, label in self.name.items() if name not in ("suffix", "extension", "datatype")}


def check_dataset(root: Path) -> None:
    """Raise unless this is a dataset that pybids can open."""
    path = root / "dataset_description.json"
    need = (
        "the root of a BIDS dataset has sub-* folders and a dataset_description.json with at least "
        '{"Name": "my data", "BIDSVersion": "1.10.0"}'
    )
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {root}: {need}")
    if not path.exists():
        raise FileNotFoundError(f"{root} has no {path.name}: {need}")
    try:
        description = read_json_object(path)
    except ValueError as error:
        raise DamagedDataset(str(error)) from error
    generated_by = description.get("GeneratedBy", [])
    if not isinstance(description.get("PipelineDescription", {}), dict):
        raise DamagedDataset(f"PipelineDescription in {path} is no object: leave it out")
    if not (isinstance(generated_by, list) and all(isinstance(program, dict) for program in generated_by)):
        raise DamagedDataset(
            f'GeneratedBy in {path} is no list of objects: write [{{"Name": "manual"}}], or leave it out'
        )


def check_labels(kind: str, labels: Sequence[str], roots: Collection[Path], pattern: str) -> None:
    """Raise unless some dataset has a folder for each label."""
    if not labels:
        return
    present = {path.name.partition("-")[2] for root in roots for path in root.glob(pattern) if path.is_dir()}
    unknown = [label for label in labels if label not in present]
    if unknown:
        instead = f"there are {listing(sorted(present))}" if present else f"there are no {pattern} folders"
        near = suggest(unknown[0], present)
        raise UnknownParticipant(f"{listing(roots)} has no {kind} {listing(unknown)}: {instead}{near}")


def list_images(dataset: str, root: Path, participants: Sequence[str], database_dir: Path | None) -> list[Image]:
    """List a dataset's NIfTI files, of all participants where the index is kept."""
    if database_dir is not None:
        paths = _list_indexed(root, database_dir / f"{dataset}-{zlib.crc32(bytes(root)):08x}")
    elif participants:
        others = re.compile(rf"^/sub-(?!({'|'.join(map(re.escape, participants))})(?![a-zA-Z0-9+]))")
        paths = _list_paths(root, [*NOT_SEARCHED, others])
    else:
        paths = _list_paths(root, NOT_SEARCHED)
    return [Image(dataset, root, path, parse_name(path)) for path in paths]


def _list_indexed(root: Path, database: Path) -> list[Path]:
    """List a dataset's NIfTI files from the index on disk; make that first if need be."""
    if database.exists():
        logger.info("using the index %s: delete it if %s has changed", database, root)
    else:
        database.parent.mkdir(parents=True, exist_ok=True)
        # An index that was cut off, or that another job is writing, is to pybids a whole one without files.
        with TemporaryDirectory(dir=database.parent) as folder:
            _list_paths(root, NOT_SEARCHED, Path(folder, "index"))
            with suppress(OSError):
                Path(folder, "index").rename(database)
    return _list_paths(root, NOT_SEARCHED, database)


def _list_paths(root: Path, ignore: Sequence[re.Pattern[str]], database: Path | None = None) -> list[Path]:
    """List the NIfTI files that pybids finds in a dataset."""
    # Without metadata: one link to a JSON file that is not there, as in DataLad clones, would stop pybids.
    indexer = BIDSLayoutIndexer(validate=False, ignore=ignore, index_metadata=False)
    with warnings.catch_warnings():
        # Derivatives of before BIDS 1.4 have it, and it tells nothing about images.
        warnings.filterwarnings("ignore", "The PipelineDescription field was superseded")
        try:
            layout = BIDSLayout(root, validate=False, config=CONFIGS, database_path=database, indexer=indexer)
        except UnicodeEncodeError as error:
            if NOT_UTF8 in ignore:
                raise
            logger.warning(
                "left out, since their names are not in UTF-8: files such as %a; rename them", error.object
            )
            if database is not None:
                shutil.rmtree(database)
            return _list_paths(root, [*ignore, NOT_UTF8], database)
    paths = [Path(path) for path in layout.get_files() if path.endswith((".nii", ".nii.gz"))]
    # pybids leaves its database open, and from Python 3.13 on that is a ResourceWarning.
    layout.session.close()
    layout.connection_manager.engine.dispose()
    return paths


def parse_name(path: Path) -> dict[str, str]:
    """Split a file name as `Image.name` has it."""
    stem, dot, extension = path.name.partition(".nii")
    *pairs, suffix = stem.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return entities | {"suffix": suffix, "extension": dot + extension, "datatype": path.parent.name}


def read_sidecar(image: Image) -> dict[str, Any]:
    """Read the JSON file beside an image; {} where none can be read."""
    path = image.path.with_name(image.path.name.removesuffix(image.name["extension"]) + ".json")
    # A link to nowhere is no news: a DataLad clone has thousands until they are fetched.
    if not path.exists():
        return {}
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        logger.warning("a sidecar is left out: %s", error)
        return {}


def find_space(image: Image) -> str | None:
    """Name the space of an image."""
    space = image.name.get("space") or read_sidecar(image).get("SpatialReference")
    return space if space and isinstance(space, str) else None


def read_filter_file(path: Path, kind: str = "lesion") -> dict[str, Any]:
    """Read what a BIDS filter file says about one kind of file.

    Parameters
    ----------
    path
        JSON file with filters for each kind of file, as in `{"lesion": {"space": "MNI152NLin6Asym"}}`.
    kind
        "lesion", or "bold" for the runs of a connectome.

    Returns
    -------
    dict
        The filters of this kind, {} without any; the other kinds are other programs' business.

    Raises
    ------
    ValueError
        The file is no JSON, holds anything but objects there, or names an unknown entity.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no filter file {path}: check the path")
    content = read_json_object(path)
    if kind not in content:
        logger.warning('%s has no filters under "%s" (it has %s): none is applied', path, kind, listing(content))
    filters = content.get(kind) or {}
    if not isinstance(filters, dict):
        raise ValueError(  # noqa: TRY004  a wrong value in a file
            f'"{kind}" is {json.dumps(filters)} in {path}: an object is needed, as in {{"{kind}": {{"ses": "1"}}}}'
        )
    read_filters(filters)
    return filters


def read_filters(filters: Mapping[str, Any]) -> dict[str, list[str | None]]:
    """Turn filters into short names and lists of labels."""
    query = {}
    for entity, labels in filters.items():
        if entity not in _entity_names():
            (nearest,) = get_close_matches(entity, _entity_names(), n=1, cutoff=0)
            raise ValueError(f"a filter asks for {entity!r}, which is no entity of BIDS: is {nearest!r} meant?")
        name = _entity_names()[entity]
        query[name] = [
            label if label is None else _normalize(name, str(label))
            for label in (labels if isinstance(labels, list | tuple) else [labels])
        ]
    return query


@cache
def _entity_names() -> dict[str, str]:
    """Map all that a filter may call an entity to what stands for it in file names."""
    names = {"suffix": "suffix", "extension": "extension", "datatype": "datatype"}
    for config in CONFIGS:
        for name, entity in Config.load(config).entities.items():
            if short := re.search(r"([a-z]+)-\(", entity.pattern):
                names |= {name: short[1], short[1]: short[1]}
    return names


def _normalize(name: str, label: str) -> str:
    """Drop what makes no difference: `sub-` before a participant, zeros before a run, an extension's dot."""
    if name == "extension":
        return label.lstrip(".")
    label = label.removeprefix(f"{name}-")
    return label.lstrip("0") if name == "run" else label


def fits(image: Image, query: Mapping[str, Collection[str | None]]) -> bool:
    """Tell whether an image's name has one of the labels that are asked for, of every entity."""
    return all(_has_label(image, name, labels) for name, labels in query.items())


def _has_label(image: Image, name: str, labels: Collection[str | None]) -> bool:
    """Tell whether an image's name has one of the labels."""
    label = image.name.get(name)
    return None in labels if label is None else "*" in labels or _normalize(name, label) in labels


def explain_nothing(
    what: str,
    roots: Iterable[Path],
    asked: Mapping[str, Any],
    rule: str,
    names: Iterable[str],
    images: Sequence[Image],
    near: Sequence[Image],
) -> list[str]:
    """Say in lines what was asked for and where, which labels the files have instead, and what came nearest."""
    lines = [f"no {what} in {listing(roots)}"]
    lines += [f"{name}: {json.dumps(value)}" for name, value in asked.items() if value]
    lines += [f"the rule, where no filter says otherwise: {rule}", f"NIfTI files there: {len(images)}"]
    for name in dict.fromkeys(names):
        counts = Counter(image.name[name] for image in images if name in image.name)
        lines.append(f"  {name}: {listing(f'{label} ({n})' for label, n in sorted(counts.items())) or 'none'}")
    return lines + [f"near miss: {image.path}" for image in near[:5]]


def listing(values: Iterable[object], limit: int = 20) -> str:
    """Join the first values with commas, and count the rest."""
    words = [str(value) for value in values]
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
