"""The images of BIDS datasets, listed by pybids and filtered by the entities in their names.

pybids' own queries are not used: its patterns match whole paths, so that below a folder `/data/label-lesion` every
file of a dataset has that label.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sqlite3
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bids.layout import BIDSLayout, BIDSLayoutIndexer, Config
from sqlalchemy.exc import SQLAlchemyError  # pybids keeps its index with it

from bids_lacuna.bids.links import FoldersReachedElsewhere
from bids_lacuna.files import is_searchable, read_json_object
from bids_lacuna.text import suggest_labels

logger = logging.getLogger(__name__)

CONFIGS = ["bids", "derivatives", str(Path(__file__).with_name("bids_config.json"))]
"""Entities of pybids, including those of derivatives for raw datasets, and entities that pybids lacks."""

NOT_SEARCHED = (
    re.compile(r"^/(code|derivatives|models|sourcedata|stimuli)(/|$)"),
    # With a .json and a .tsv beside each of 10,000 images, pybids took 10.7 s with them and 3.3 s without.
    re.compile(r"\.(bval|bvec|gii|h5|html|json|svg|tsv|txt)$"),
)
"""Paths that are not indexed; pybids skips hidden files and folders itself."""

IMAGE_SUFFIXES = (".nii", ".nii.gz")
"""Ends of the names of NIfTI files."""

INDEX_FILE = "layout_index.sqlite"
"""Name that pybids gives an index."""

NO_CHECKSUM = 0
"""Checksum in the indices of earlier versions."""

NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""Byte of a file name that is not UTF-8, as Python represents it."""


class DamagedDataset(ValueError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """The dataset_description.json of a dataset cannot be used."""


class UnknownParticipant(LookupError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """No dataset has a requested participant or session; the message lists the existing ones."""


class Image(NamedTuple):
    """A NIfTI file; `name` holds its entities in order, then suffix, extension and datatype."""

    dataset: str
    root: Path
    path: Path
    name: dict[str, str]

    @property
    def entities(self) -> dict[str, str]:
        """Entities only, without suffix, extension and datatype."""
        return {name: label for name, label in self.name.items() if name not in ("suffix", "extension", "datatype")}


def check_dataset(root: Path) -> None:
    """Raise an error unless pybids can open this dataset."""
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
        raise DamagedDataset(f"PipelineDescription in {path} is not an object: remove it")
    if not (isinstance(generated_by, list) and all(isinstance(program, dict) for program in generated_by)):
        raise DamagedDataset(
            f'GeneratedBy in {path} is not a list of objects: write [{{"Name": "manual"}}], or remove it'
        )


def check_labels(kind: str, labels: Sequence[str], roots: Collection[Path], pattern: str) -> None:
    """Raise an error unless each label has a folder in some dataset."""
    if not labels:
        return
    present = {path.name.partition("-")[2] for root in roots for path in root.glob(pattern) if path.is_dir()}
    unknown = [label for label in labels if label not in present]
    if unknown:
        instead = f"there are {listing(sorted(present))}" if present else f"there are no {pattern} folders"
        near = suggest_labels(unknown, present)
        raise UnknownParticipant(f"{listing(roots)} has no {kind} {listing(unknown)}: {instead}{near}")


def list_searchable_images(
    dataset: str, root: Path, participants: Sequence[str], database_dir: Path | None
) -> list[Image]:
    """List the NIfTI files of a dataset as `list_images`, but leave out folders that may not be searched."""
    try:
        return list_images(dataset, root, participants, database_dir)
    except PermissionError:
        if not (unsearchable := _find_unsearchable(root)):
            raise
    logger.warning(
        "folders were left out that may not be searched: %s: check their permissions",
        listing(f"{root}{path}" for path in unsearchable),
    )
    pattern = re.compile(f"^({'|'.join(map(re.escape, unsearchable))})(/|$)")
    # An index on disk would lack these folders also when their permissions are correct.
    return list_images(dataset, root, participants, None, ignore=(*NOT_SEARCHED, pattern))


def list_images(
    dataset: str,
    root: Path,
    participants: Sequence[str],
    database_dir: Path | None,
    ignore: Sequence[re.Pattern[str]] = NOT_SEARCHED,
) -> list[Image]:
    """List the NIfTI files of a dataset: of some participants, or of all if the index is kept on disk."""
    if database_dir is not None:
        paths = _list_indexed(root, database_dir / f"{dataset}-{zlib.crc32(bytes(root)):08x}")
    else:
        paths = list_paths(root, [*ignore, *of_others(participants)])
    return [Image(dataset, root, path, parse_name(path)) for path in paths]


def of_others(participants: Sequence[str]) -> list[re.Pattern[str]]:
    """Return a pattern of the folders of participants without these labels; none if all are wanted."""
    if not participants:
        return []
    return [re.compile(rf"^/sub-(?!({'|'.join(map(re.escape, participants))})(?![a-zA-Z0-9+]))")]


def _list_indexed(root: Path, database: Path) -> list[Path]:
    """List the NIfTI files of a dataset from the index on disk, which is created unless there is a usable one."""
    damage = None
    try:
        paths = _read_index(database)
    except FileNotFoundError:
        pass
    except (OSError, sqlite3.DatabaseError) as error:
        damage = error
    else:
        logger.info("using the index %s: delete it if %s has changed", database, root)
        return paths
    try:
        paths = _write_index(root, database)
    except (OSError, sqlite3.DatabaseError, SQLAlchemyError) as error:
        if isinstance(error, PermissionError) and Path(error.filename or "").is_relative_to(root):
            raise
        reason = damage or getattr(error, "orig", None) or error
        logger.warning("no index is used in %s (%s): choose another folder", database.parent, reason)
        return list_paths(root, NOT_SEARCHED)
    if damage:
        logger.warning("the index %s was replaced, since it cannot be read (%s)", database, damage)
    return paths


def _write_index(root: Path, database: Path) -> list[Path]:
    """List the NIfTI files of a dataset, and write the index on disk."""
    database.parent.mkdir(parents=True, exist_ok=True)
    # pybids takes an index that was interrupted, or that another job is writing, for one without files.
    with TemporaryDirectory(dir=database.parent, ignore_cleanup_errors=True) as folder:
        index = Path(folder, "index")
        paths = list_paths(root, NOT_SEARCHED, index)
        with closing(sqlite3.connect(index / INDEX_FILE)) as connection:
            connection.execute(f"PRAGMA user_version = {_checksum(paths)}")
        with suppress(OSError):
            # A folder that is not empty cannot be replaced.
            database.rename(Path(folder, "replaced"))
        # Another job may have been faster.
        with suppress(OSError):
            index.rename(database)
    return paths


def _read_index(database: Path) -> list[Path]:
    """Read the NIfTI files in an index, which may be on a read-only disk or one without locks.

    Raises
    ------
    OSError, sqlite3.DatabaseError
        If there is no index, or it cannot be read or is damaged.
    """
    # SQLite would not say why it cannot open the file.
    (database / INDEX_FILE).open("rb").close()
    address = f"{(database / INDEX_FILE).absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(address, uri=True)) as connection:
        ((verdict,), *_) = connection.execute("PRAGMA quick_check")
        ((checksum,),) = connection.execute("PRAGMA user_version")
        found = [path for (path,) in connection.execute("SELECT path FROM files")]
    paths = [Path(path) for path in found if path.endswith(IMAGE_SUFFIXES)]
    if verdict != "ok" or checksum not in (_checksum(paths), NO_CHECKSUM):
        raise sqlite3.DatabaseError(verdict if verdict != "ok" else "it is damaged")
    return paths


def _checksum(paths: Iterable[Path]) -> int:
    """Return a checksum of the paths in an index: a damaged path would hide its mask."""
    return zlib.crc32(b"\n".join(sorted(map(bytes, paths)))) % 2**31


def list_paths(
    root: Path,
    ignore: Sequence[re.Pattern[str]],
    database: Path | None = None,
    ends: tuple[str, ...] = IMAGE_SUFFIXES,
) -> list[Path]:
    """List the files that pybids finds in a dataset whose names end so: by default, NIfTI files."""
    # Without metadata: pybids fails on a broken link to a JSON file, as DataLad clones have.
    ignored = [*ignore, FoldersReachedElsewhere(root, ignore)]
    indexer = BIDSLayoutIndexer(validate=False, ignore=ignored, index_metadata=False)
    with warnings.catch_warnings():
        # Derivatives from before BIDS 1.4 have this field, which has no bearing on images.
        warnings.filterwarnings("ignore", "The PipelineDescription field was superseded")
        try:
            # With all `CONFIGS`, pybids would match each name with 40 patterns, whose results are not used.
            layout = BIDSLayout(root, validate=False, config=CONFIGS[-1:], database_path=database, indexer=indexer)
        except UnicodeEncodeError as error:
            if NOT_UTF8 in ignore:
                raise
            logger.warning("files were left out whose names are not UTF-8, such as %a: rename them", error.object)
            if database is not None:
                shutil.rmtree(database)
            return list_paths(root, [*ignore, NOT_UTF8], database, ends)
    paths = [Path(path) for path in layout.get_files() if path.endswith(ends)]
    # pybids leaves its database open, which is a ResourceWarning from Python 3.13 on.
    layout.session.close()
    layout.connection_manager.engine.dispose()
    return paths


def _find_unsearchable(root: Path) -> list[str]:
    """List the folders below a dataset's root that may not be searched, by their paths after the root."""
    unsearchable = []
    for place, folders, _ in os.walk(root):
        for name in sorted(folders):
            folder = Path(place, name)
            path = f"/{folder.relative_to(root).as_posix()}"
            if name.startswith(".") or any(pattern.search(path) for pattern in NOT_SEARCHED):
                folders.remove(name)
            elif not is_searchable(folder):
                unsearchable.append(path)
                folders.remove(name)
    return sorted(unsearchable)


def parse_name(path: Path) -> dict[str, str]:
    """Parse a file name into the entries of `Image.name`."""
    stem, dot, extension = path.name.partition(".nii")
    *pairs, suffix = stem.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return entities | {"suffix": suffix, "extension": dot + extension, "datatype": path.parent.name}


def read_filter_file(path: Path, kind: str = "lesion") -> dict[str, Any]:
    """Read the filters for one kind of file from a BIDS filter file.

    Parameters
    ----------
    path
        JSON file with filters for each kind of file, as in `{"lesion": {"space": "MNI152NLin6Asym"}}`.
    kind
        "lesion", or "bold" for the BOLD runs of a connectome.

    Returns
    -------
    dict
        Filters of this kind; {} if there are none. Other kinds are ignored: other programs read the same file.

    Raises
    ------
    ValueError
        The file is not JSON, its filters are not objects, or an entity is unknown.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no filter file {path}: check the path")
    content = read_json_object(path)
    if kind not in content:
        logger.warning('%s has no filters under "%s" (it has %s): no filter is applied', path, kind, listing(content))
    filters = content.get(kind) or {}
    if not isinstance(filters, dict):
        raise ValueError(  # noqa: TRY004  a wrong value in a file
            f'"{kind}" is {json.dumps(filters)} in {path}: an object is needed, as in {{"{kind}": {{"ses": "1"}}}}'
        )
    read_filters(filters)
    return filters


def read_filters(filters: Mapping[str, Any]) -> dict[str, list[str | None]]:
    """Convert filters to short entity names and lists of normalized labels."""
    query = {}
    for entity, labels in filters.items():
        if entity not in _entity_names():
            (nearest,) = get_close_matches(entity, _entity_names(), n=1, cutoff=0)
            raise ValueError(f"a filter contains {entity!r}, which is not a BIDS entity: is {nearest!r} meant?")
        name = _entity_names()[entity]
        query[name] = [
            label if label is None else _normalize(name, str(label))
            for label in (labels if isinstance(labels, list | tuple) else [labels])
        ]
    return query


@cache
def _entity_names() -> dict[str, str]:
    """Map the long and short names of entities to the short ones, as in file names."""
    names = {"suffix": "suffix", "extension": "extension", "datatype": "datatype"}
    for config in CONFIGS:
        for name, entity in Config.load(config).entities.items():
            if short := re.search(r"([a-z]+)-\(", entity.pattern):
                names |= {name: short[1], short[1]: short[1]}
    return names


def _normalize(name: str, label: str) -> str:
    """Remove insignificant parts of a label: `sub-`, leading zeros of a run, the dot of an extension."""
    if name == "extension":
        return label.lstrip(".")
    label = label.removeprefix(f"{name}-")
    return label.lstrip("0") if name == "run" else label


def fits(image: Image, query: Mapping[str, Collection[str | None]]) -> bool:
    """Return whether an image's name has a requested label for every entity of a query."""
    return all(_has_label(image, name, labels) for name, labels in query.items())


def _has_label(image: Image, name: str, labels: Collection[str | None]) -> bool:
    """Return whether an image's name has one of these labels."""
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
    """List the request, the datasets, the labels that exist there instead, and near misses."""
    lines = [f"no {what} in {listing(roots)}"]
    lines += [f"{name}: {json.dumps(value)}" for name, value in asked.items() if value]
    lines += [f"the rule, unless filters replace it: {rule}", f"NIfTI files there: {len(images)}"]
    for name in dict.fromkeys(names):
        counts = Counter(image.name[name] for image in images if name in image.name)
        lines.append(f"  {name}: {listing(f'{label} ({n})' for label, n in sorted(counts.items())) or 'none'}")
    return lines + [f"near miss: {image.path}" for image in near[:5]]


def listing(values: Iterable[object], limit: int = 20) -> str:
    """Join the first values with commas and count the rest."""
    words = [str(value) for value in values]
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
