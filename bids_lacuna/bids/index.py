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
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bids.layout import BIDSLayout, BIDSLayoutIndexer, Config

from bids_lacuna.files import read_json_object
from bids_lacuna.text import meant

logger = logging.getLogger(__name__)

CONFIGS = ["bids", "derivatives", str(Path(__file__).with_name("bids_config.json"))]
"""pybids' entities, those of derivatives also for raw datasets; then those that pybids lacks."""

MASK_SUFFIXES = ("mask", "roi")
"""BIDS has `mask`; `roi` is what fMRIPrep still reads."""

LESION_WORDS = ("lesion", "infarct", "stroke")
"""A label or desc with one of them in it names a lesion, as in label-acuteinfarct or desc-T1lesion."""

LESION_RULE = (
    "suffix mask or roi; and label L, or lesion, infarct or stroke in the label or desc, "
    'or "Type": "Lesion" in the JSON file beside it'
)
"""In words, what a lesion mask is when no filter says otherwise."""

BOLD_RULE = (
    "suffix bold, datatype func, task rest and the space asked for, without echo; desc denoised, or preproc where no "
    "run is denoised"
)
"""In words, what a run of a connectome is when no filter says otherwise."""

NOT_SEARCHED = (
    re.compile(r"^/(code|derivatives|models|sourcedata|stimuli)(/|$)"),
    # With a .json and a .tsv beside each of 10,000 images, pybids took 10.7 s with them and 3.3 s without.
    re.compile(r"\.(bval|bvec|gii|h5|html|json|svg|tsv|txt)$"),
)
"""What is left out of a dataset; pybids leaves hidden files and folders out by itself."""


NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""A byte of a file's name that is none in UTF-8, as Python has it."""


class NoLesionMasks(LookupError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """No file matches; the message holds the query, near misses and what there is instead."""


class NoBoldRuns(LookupError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """As `NoLesionMasks`."""


class DamagedDataset(ValueError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """A dataset_description.json cannot be used."""


class UnknownParticipant(LookupError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """No dataset has this participant, or this session; the message lists those there are."""


@dataclass(frozen=True)
class LesionMask:
    """One lesion mask on disk."""

    path: Path
    """Absolute; a symbolic link stays one, since DataLad's point to names that are not BIDS."""
    entities: dict[str, str]
    """Short names to labels in the file name's order, without suffix and extension."""
    space: str | None
    """The space in the name, else the SpatialReference in the JSON file beside the mask, else None."""
    dataset: str
    """`source` for the BIDS dataset itself, else the name that the further dataset was given."""
    dataset_path: Path
    """Absolute path of that dataset's root."""

    @property
    def name(self) -> str:
        """Name the lesion, not the file: entities without space and resolution."""
        return "_".join(f"{name}-{label}" for name, label in self.entities.items() if name not in ("space", "res"))


@dataclass(frozen=True)
class BoldRun:
    """One BOLD series on disk."""

    path: Path
    """As `LesionMask.path`."""
    entities: dict[str, str]
    """As `LesionMask.entities`."""
    brain_mask: Path | None
    """The file of the same name but for `desc-brain_mask`: fMRIPrep writes one for each run, XCP-D none."""


@dataclass(frozen=True)
class StatMap:
    """One map of a lesion on disk, or the mask of one above a threshold."""

    path: PurePosixPath
    """Relative to the dataset's root."""
    entities: dict[str, str]
    """As `LesionMask.entities`; `stat` is one of them."""
    suffix: str
    """`statmap`; `mask` where a threshold was applied."""


class _Image(NamedTuple):
    """A NIfTI file; its name's entities in their order, then suffix, extension and datatype."""

    dataset: str
    root: Path
    path: Path
    name: dict[str, str]


def find_lesion_masks(
    bids_dir: Path,
    derivatives: Mapping[str, Path] = {},
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
    filters: Mapping[str, Any] | None = None,
    database_dir: Path | None = None,
) -> list[LesionMask]:
    """Find the lesion masks of a BIDS dataset and of further datasets.

    Without filters, a lesion mask has the suffix mask or roi and either the label L, or "lesion", "infarct" or
    "stroke" in its label or desc, or `"Type": "Lesion"` in its sidecar. A filter on label, desc or suffix takes the
    place of the rule about label, desc and sidecar, one on suffix also that of mask or roi. What has a `stat` in its
    name is a map of a lesion, not its mask, unless a filter asks for `stat`.

    Parameters
    ----------
    bids_dir
        Root of a dataset, raw or derivative. Datasets below it are not looked in.
    derivatives
        Names to roots of the datasets to look in as well.
    participant_labels, session_labels
        With or without `sub-` and `ses-`; all of them where empty.
    filters
        Entities, by their short names or pybids' long ones, to a label, a list of labels, "*" (there is one) or None
        (there is none).
    database_dir
        Keeps an index of each dataset from call to call. It does not notice when a dataset changes.

    Returns
    -------
    list of LesionMask
        Sorted by path. Links are listed even where what they point to is not there.

    Raises
    ------
    NoLesionMasks
        Nothing matches.
    UnknownParticipant
        No dataset has a folder for one of the participants or sessions.
    NotADirectoryError, FileNotFoundError
        A root is no folder, or has no dataset_description.json.
    DamagedDataset
        A dataset_description.json cannot be used.
    ValueError
        An entity is unknown, or a further dataset called `source`.
    """
    if "source" in derivatives:
        raise ValueError("a further dataset is called source, the BIDS dataset's own name: give it another one")
    datasets = {name: path.absolute() for name, path in {"source": bids_dir, **derivatives}.items()}
    for root in datasets.values():
        _check_dataset(root)
    query = _read_filters(filters or {})
    participants = [label.removeprefix("sub-") for label in participant_labels]
    sessions = [label.removeprefix("ses-") for label in session_labels]
    _check_labels("participant", participants, datasets.values(), "sub-*")
    _check_labels("session", sessions, datasets.values(), "sub-*/ses-*")

    listed = [
        image
        for dataset, root in datasets.items()
        for image in _list_images(dataset, root, participants, database_dir)
    ]
    _warn_of_nameless(listed)
    images = [
        image for image in listed if "sub" in image.name and (not participants or image.name["sub"] in participants)
    ]
    masks = [
        LesionMask(image.path, _entities(image), _space(image), image.dataset, image.root)
        for image in images
        if (not sessions or image.name.get("ses") in sessions) and _fits(image, query) and _is_lesion(image, query)
    ]
    if not masks:
        asked = {"participants": participants, "sessions": sessions, "filters": filters}
        raise NoLesionMasks(_explain_no_masks(asked, query, datasets, images, database_dir))
    logger.info("lesion masks in %s: %d", _listing(datasets.values()), len(masks))
    return sorted(masks, key=lambda mask: mask.path)


def find_bold_runs(derivatives_dir: Path, space: str, filters: Mapping[str, Any] | None = None) -> list[BoldRun]:
    """Find the runs of a connectome in the derivatives of fMRIPrep or XCP-D.

    Without filters, a run has the suffix bold, the datatype func, the task rest, the space and no echo. If any such
    run has the desc denoised, those are taken, else those with the desc preproc, with a warning. A filter takes the
    place of the rule about its entity. What XCP-D joined from several runs is left out, with a warning, where those
    runs are taken.

    Parameters
    ----------
    derivatives_dir
        Root of the dataset. Datasets below it are not looked in.
    space
        The template, as it stands in the files' names.
    filters
        As in `find_lesion_masks`.

    Returns
    -------
    list of BoldRun
        Sorted by path. Links are listed even where what they point to is not there.

    Raises
    ------
    NoBoldRuns
        Nothing matches.
    NotADirectoryError, FileNotFoundError, DamagedDataset, ValueError
        As in `find_lesion_masks`.
    """
    root = derivatives_dir.absolute()
    _check_dataset(root)
    rule = {"suffix": "bold", "datatype": "func", "task": "rest", "space": space, "echo": None}
    query = _read_filters(rule) | _read_filters(filters or {})
    images = [image for image in _list_images("source", root, (), None) if "sub" in image.name]
    chosen = [image for image in images if _fits(image, query)]
    if "desc" not in query:
        chosen = _prefer_denoised(chosen)
    if not chosen:
        near = sorted((image for image in images if image.name["suffix"] == "bold"), key=lambda image: image.path)
        asked = {"space": space, "filters": filters}
        names = ("suffix", "task", "space", "desc", "ses", *query)
        raise NoBoldRuns("\n".join(_explain_nothing("BOLD run", [root], asked, BOLD_RULE, names, images, near)))
    runs = _leave_out_joined(chosen)
    n_bold = sum(image.name["suffix"] == "bold" for image in images)
    logger.info("BOLD runs taken in %s: %d of %d; the rule: %s", root, len(runs), n_bold, BOLD_RULE)
    masks = {
        _likeness(image, "desc", "suffix"): image.path
        for image in images
        if image.name["suffix"] == "mask" and image.name.get("desc") == "brain"
    }
    return sorted(
        (BoldRun(run.path, _entities(run), masks.get(_likeness(run, "desc", "suffix"))) for run in runs),
        key=lambda run: run.path,
    )


def find_stat_maps(
    derivatives_dir: Path, participant_labels: Sequence[str] = (), session_labels: Sequence[str] = ()
) -> list[StatMap]:
    """Find the maps of participants' lesions: what has a `stat` in its name, and the suffix statmap or mask.

    Parameters
    ----------
    derivatives_dir
        Root of the dataset that the participant level wrote.
    participant_labels, session_labels
        As in `find_lesion_masks`.

    Returns
    -------
    list of StatMap
        Sorted by path; empty where there are none.

    Raises
    ------
    NotADirectoryError, FileNotFoundError, DamagedDataset
        As in `find_lesion_masks`.
    """
    root = derivatives_dir.absolute()
    _check_dataset(root)
    participants = [label.removeprefix("sub-") for label in participant_labels]
    sessions = [label.removeprefix("ses-") for label in session_labels]
    images = _list_images("source", root, participants, None)
    maps = [
        StatMap(PurePosixPath(image.path.relative_to(root)), _entities(image), image.name["suffix"])
        for image in images
        if {"sub", "stat"} <= image.name.keys()
        and image.name["suffix"] in ("statmap", "mask")
        and (not participants or image.name["sub"] in participants)
        and (not sessions or image.name.get("ses") in sessions)
    ]
    return sorted(maps, key=lambda stat_map: stat_map.path)


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
        logger.warning('%s has no filters under "%s" (it has %s): none is applied', path, kind, _listing(content))
    filters = content.get(kind) or {}
    if not isinstance(filters, dict):
        raise ValueError(  # noqa: TRY004  a wrong value in a file
            f'"{kind}" is {json.dumps(filters)} in {path}: an object is needed, as in {{"{kind}": {{"ses": "1"}}}}'
        )
    _read_filters(filters)
    return filters


def _check_dataset(root: Path) -> None:
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


def _check_labels(kind: str, labels: Sequence[str], roots: Collection[Path], pattern: str) -> None:
    """Raise unless some dataset has a folder for each label."""
    if not labels:
        return
    present = {path.name.partition("-")[2] for root in roots for path in root.glob(pattern) if path.is_dir()}
    unknown = [label for label in labels if label not in present]
    if unknown:
        instead = f"there are {_listing(sorted(present))}" if present else f"there are no {pattern} folders"
        near = meant(unknown[0], present)
        raise UnknownParticipant(f"{_listing(roots)} has no {kind} {_listing(unknown)}: {instead}{near}")


@cache
def _entity_names() -> dict[str, str]:
    """Map all that a filter may call an entity to what stands for it in file names."""
    names = {"suffix": "suffix", "extension": "extension", "datatype": "datatype"}
    for config in CONFIGS:
        for name, entity in Config.load(config).entities.items():
            if short := re.search(r"([a-z]+)-\(", entity.pattern):
                names |= {name: short[1], short[1]: short[1]}
    return names


def _read_filters(filters: Mapping[str, Any]) -> dict[str, list[str | None]]:
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


def _normalize(name: str, label: str) -> str:
    """Drop what makes no difference: `sub-` before a participant, zeros before a run, an extension's dot."""
    if name == "extension":
        return label.lstrip(".")
    label = label.removeprefix(f"{name}-")
    return label.lstrip("0") if name == "run" else label


def _has_label(image: _Image, name: str, labels: Collection[str | None]) -> bool:
    """Tell whether an image's name has one of the labels."""
    label = image.name.get(name)
    return None in labels if label is None else "*" in labels or _normalize(name, label) in labels


def _fits(image: _Image, query: Mapping[str, Collection[str | None]]) -> bool:
    """Tell whether an image's name has one of the labels that are asked for, of every entity."""
    return all(_has_label(image, name, labels) for name, labels in query.items())


def _is_lesion(image: _Image, filtered: Collection[str] = ()) -> bool:
    """Apply the rule of what a lesion mask is, but for what filters decide."""
    if "suffix" not in filtered and image.name["suffix"] not in MASK_SUFFIXES:
        return False
    if "stat" not in filtered and "stat" in image.name:
        return False
    if not {"label", "desc", "suffix"}.isdisjoint(filtered) or image.name.get("label") == "L":
        return True
    names = f"{image.name.get('label')} {image.name.get('desc')}".lower()
    return any(word in names for word in LESION_WORDS) or _sidecar(image).get("Type") == "Lesion"


def _warn_of_nameless(images: Sequence[_Image]) -> None:
    """Tell of what participants have that may be lesion masks by its words, but by its name is nobody's."""
    nameless = [
        image.path
        for image in images
        if "sub" not in image.name
        and "sub-" in str(image.path.parent.relative_to(image.root))
        and any(word in image.path.name.lower() for word in (*LESION_WORDS, *MASK_SUFFIXES))
    ]
    if nameless:
        logger.warning(
            "left out, since their names have no sub-<label>: %d images, such as %s; name a mask as in "
            "sub-01_space-MNI152NLin6Asym_label-lesion_mask.nii.gz",
            len(nameless),
            min(nameless),
        )


def _prefer_denoised(images: Sequence[_Image]) -> list[_Image]:
    """Take the denoised runs, or if there are none the preprocessed ones."""
    denoised, preprocessed = (
        [image for image in images if image.name.get("desc") == desc] for desc in ("denoised", "preproc")
    )
    if preprocessed and not denoised:
        logger.warning(
            "%d runs, such as %s, are preprocessed but not denoised: nuisance signals and motion are still in "
            "them, and will be in the maps; denoise them first, for example with XCP-D",
            len(preprocessed),
            preprocessed[0].path,
        )
    lost = {image.name["sub"] for image in preprocessed} - {image.name["sub"] for image in denoised}
    if denoised and lost:
        logger.warning(
            "participants left out: %d, such as sub-%s; they have preprocessed runs but no denoised ones, which "
            "the others have",
            len(lost),
            min(lost),
        )
    return denoised or preprocessed


def _leave_out_joined(images: Sequence[_Image]) -> list[_Image]:
    """Leave out what XCP-D joined from several runs, where these are taken: they would count twice."""
    # XCP-D's --combine-runs writes it under the runs' name without `run`, in newer versions also without `dir`.
    parts = {
        _likeness(image, *dropped)
        for image in images
        for dropped in (("run",), ("run", "dir"))
        if not image.name.keys().isdisjoint(dropped)
    }
    joined = {
        image.path
        for image in images
        if image.name.get("desc", "").startswith("denoised") and _likeness(image) in parts
    }
    if joined:
        logger.warning(
            "%d series, such as %s, are left out: XCP-D joined them from runs that are taken; the filter "
            '{"bold": {"run": null}} chooses those without a run in their name instead',
            len(joined),
            min(joined),
        )
    return [image for image in images if image.path not in joined]


def _likeness(image: _Image, *dropped: str) -> tuple[Path, frozenset[tuple[str, str]]]:
    """Reduce an image to its folder and name, without the extension and what is dropped: what equal ones share."""
    left_out = ("extension", *dropped)
    return image.path.parent, frozenset((name, label) for name, label in image.name.items() if name not in left_out)


def _sidecar(image: _Image) -> dict[str, Any]:
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


def _space(image: _Image) -> str | None:
    """Name the space of an image."""
    space = image.name.get("space") or _sidecar(image).get("SpatialReference")
    return space if space and isinstance(space, str) else None


def _entities(image: _Image) -> dict[str, str]:
    """Keep what `LesionMask.entities` holds."""
    return {name: label for name, label in image.name.items() if name not in ("suffix", "extension", "datatype")}


def _parse_name(path: Path) -> dict[str, str]:
    """Split a file name as `_Image.name` has it."""
    stem, dot, extension = path.name.partition(".nii")
    *pairs, suffix = stem.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return entities | {"suffix": suffix, "extension": dot + extension, "datatype": path.parent.name}


def _list_images(dataset: str, root: Path, participants: Sequence[str], database_dir: Path | None) -> list[_Image]:
    """List a dataset's NIfTI files, of all participants where the index is kept."""
    if database_dir is not None:
        paths = _list_indexed(root, database_dir / f"{dataset}-{zlib.crc32(bytes(root)):08x}")
    elif participants:
        others = re.compile(rf"^/sub-(?!({'|'.join(map(re.escape, participants))})(?![a-zA-Z0-9+]))")
        paths = _list_paths(root, [*NOT_SEARCHED, others])
    else:
        paths = _list_paths(root, NOT_SEARCHED)
    return [_Image(dataset, root, path, _parse_name(path)) for path in paths]


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


def _explain_no_masks(
    asked: Mapping[str, Any],
    query: Collection[str],
    datasets: Mapping[str, Path],
    images: Sequence[_Image],
    database_dir: Path | None,
) -> str:
    """Say what was asked for and where, what there is instead, and what may help."""
    near = sorted(
        (image for image in images if image.name["suffix"] in MASK_SUFFIXES),
        key=lambda image: (not _is_lesion(image), image.path),
    )
    names = ("suffix", "label", "desc", "space", "ses", *query)
    lines = _explain_nothing("lesion mask", datasets.values(), asked, LESION_RULE, names, images, near)
    derivatives = datasets["source"] / "derivatives"
    for folder in [derivatives, *sorted(derivatives.glob("*/"))]:
        paths = folder.glob("sub-*/**/*.nii*")
        if folder not in datasets.values() and any(
            _is_lesion(_Image(folder.name, folder, path, _parse_name(path))) for path in paths
        ):
            lacks = (
                "" if (folder / "dataset_description.json").exists() else ", and give it a dataset_description.json"
            )
            lines.append(f"{folder} has lesion masks: add -d {folder}{lacks}")
    if database_dir is not None:
        lines.append(f"the index in {database_dir} may be older than the dataset: delete it to look again")
    return "\n".join(lines)


def _explain_nothing(
    what: str,
    roots: Iterable[Path],
    asked: Mapping[str, Any],
    rule: str,
    names: Iterable[str],
    images: Sequence[_Image],
    near: Sequence[_Image],
) -> list[str]:
    """Say in lines what was asked for and where, which labels the files have instead, and what came nearest."""
    lines = [f"no {what} in {_listing(roots)}"]
    lines += [f"{name}: {json.dumps(value)}" for name, value in asked.items() if value]
    lines += [f"the rule, where no filter says otherwise: {rule}", f"NIfTI files there: {len(images)}"]
    for name in dict.fromkeys(names):
        counts = Counter(image.name[name] for image in images if name in image.name)
        lines.append(f"  {name}: {_listing(f'{label} ({n})' for label, n in sorted(counts.items())) or 'none'}")
    return lines + [f"near miss: {image.path}" for image in near[:5]]


def _listing(values: Iterable[object], limit: int = 20) -> str:
    """Join the first values with commas, and count the rest."""
    words = [str(value) for value in values]
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
