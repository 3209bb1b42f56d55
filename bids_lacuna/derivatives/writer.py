"""The maps as a BIDS derivative dataset: names, sidecars, and the callback that writes them after each batch."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import nibabel as nib
import numpy as np

from bids_lacuna._version import __version__
from bids_lacuna.bids import LesionMask
from bids_lacuna.files import hash_file, read_json_object, remove_unfinished, renamed_when_whole, write_json
from bids_lacuna.grid import Grid
from bids_lacuna.lesion import LesionData, Weighting
from bids_lacuna.runtime.locks import Claim, Claims
from bids_lacuna.runtime.logs import log_failure
from bids_lacuna.spaces import describe_mismatch
from bids_lacuna.text import one_line

logger = logging.getLogger(__name__)

ANALYSIS = "FunctionalNetworkMapping"
"""The key of the maps in `LesionData.results`."""

PROGRAM = "bids-lacuna"
"""Its name in dataset_description.json; in `derivatives/<folder>/` it has to be part of the folder's name."""

DESCRIPTION = "dataset_description.json"

DATASET_FILES = (DESCRIPTION, ".bidsignore")
"""What all runs write, one after another."""

BIDS_VERSION = "1.10.0"

CODE_URL = "https://github.com/bids-lacuna/bids_lacuna"

BIDSIGNORE = ("*.html", "figures", "logs", "sub-*/log", "group_*", "*_stat-*", "*_timeseries.tsv", "*_relmat.tsv")
"""What the validator does not know. It does not match folders by a trailing slash, nor `*_stat-*_mask.*`."""

STATISTICS = {
    # Written first: it is there only where n varies, so that nothing would miss it if the others came before.
    "n": ("n_map", "Number of connectome subjects with a defined correlation at each voxel"),
    "r": ("correlation_map", "Lesion network map: hyperbolic tangent of the mean Fisher z over connectome subjects"),
    "z": ("z_map", "Lesion network map: mean Fisher z over connectome subjects"),
    "t": ("t_map", "Lesion network map: one-sample t of Fisher z over connectome subjects"),
}
"""`stat` entity: the map's key and its description."""

RECORD = {
    "ConnectomeHash": "another connectome",
    "LesionHash": "another mask",
    "LesionWeighting": "{there} weighting",
    "LesionThreshold": "the lesion threshold {there}",
}
"""What a sidecar tells of that which decides a map's numbers, and how a difference is put into words."""

# fmt: off
ENTITY_ORDER = (
    "sub", "tpl", "ses", "cohort", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec",
    "dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk",
    "atlas", "seg", "scale", "res", "den", "label", "stat", "desc",
)
# fmt: on
"""BIDS's order of entities, with `stat` where fitlins has it."""

LAST_BEFORE_SPACE = ENTITY_ORDER.index("space") - 0.5
"""Where an entity goes that BIDS does not know."""


@dataclass(frozen=True)
class MapSettings:
    """What all maps of a run have in common; it decides their names and is written into their sidecars."""

    connectome_name: str
    """Letters and digits."""
    connectome_hash: str
    """SHA-256 that tells one connectome from another of the same name."""
    space: str
    """The connectome's template: the maps' too."""
    grid: Grid
    """The connectome's: the maps' too."""
    weighting: Weighting
    """How lesions were brought to the grid."""
    compute_t_map: bool
    """Whether t-maps are written."""
    t_thresholds: tuple[float, ...]
    """A mask of |t| above each one is written."""
    lesion_threshold: float | None = None
    """From where on probabilities count; None where masks are binary."""


@dataclass
class LesionRecord:
    """What became of one mask: a row of lesions.tsv."""

    mask: LesionMask
    """As found in the dataset."""
    status: Literal["pending", "done", "failed", "skipped", "not run"] = "pending"
    """`pending` only while the run goes on; `not run` where it ended before."""
    reason: str = ""
    """Why it failed or was skipped."""
    volume_mm3: float | None = None
    """On the mask's own grid."""
    coverage: float | None = None
    """Share of the lesion inside the connectome's mask."""
    batch: int | None = None
    """Counted from 1."""

    def set_aside(self, status: Literal["failed", "skipped", "not run"], reason: str) -> None:
        """Leave the mask out of the run."""
        self.status, self.reason = status, reason

    def as_lesion(self) -> LesionData:
        """Make the lesion that is mapped; its metadata lead back here."""
        metadata = {"subject_id": f"sub-{self.mask.entities['sub']}", "space": self.mask.space, "record": self}
        return LesionData.from_nifti(self.mask.path, metadata)

    def close(self, lesion: LesionData) -> None:
        """Take over what became of the lesion."""
        self.status = "failed" if lesion.error else "done"
        self.reason = lesion.error or ""
        self.volume_mm3, self.coverage, self.batch = lesion.volume_mm3, lesion.coverage, lesion.batch


def map_path(mask: LesionMask, settings: MapSettings, *, stat: str, threshold: float | None = None) -> PurePosixPath:
    """Name one map, relative to the output's root.

    The mask's own `desc` goes before the connectome's name, so that two masks that differ in nothing else have
    maps of their own. A mask whose name has a `res` gets maps with the connectome's.

    Parameters
    ----------
    stat
        r, z, t or n.
    threshold
        Names the mask of |stat| above it.
    """
    desc = mask.entities.get("desc", "") + settings.connectome_name
    if threshold is not None:
        desc += "T" + number_label(threshold)
    entities = mask.entities | {
        "space": settings.space,
        "res": resolution_label(settings.grid) if "res" in mask.entities else "",
        "label": mask.entities.get("label", "lesion"),
        "stat": stat,
        "desc": desc,
    }
    ordered = sorted(
        entities, key=lambda name: ENTITY_ORDER.index(name) if name in ENTITY_ORDER else LAST_BEFORE_SPACE
    )
    name = "_".join(f"{entity}-{entities[entity]}" for entity in ordered if entities[entity])
    folder = PurePosixPath(*(f"{level}-{entities[level]}" for level in ("sub", "ses") if level in entities), "func")
    return folder / f"{name}_{'statmap' if threshold is None else 'mask'}.nii.gz"


def number_label(number: float) -> str:
    """Write a number with letters and digits only, as BIDS labels want it: 7.5 is 7p5."""
    return np.format_float_positional(number, trim="-").replace(".", "p")


def resolution_label(grid: Grid) -> str:
    """Write a grid's voxel size in mm as a BIDS label: 2, or 2x2x3 where the edges differ."""
    sizes = [number_label(size) for size in grid.voxel_sizes_mm.round(3)]
    return sizes[0] if len(set(sizes)) == 1 else "x".join(sizes)


def expected_maps(mask: LesionMask, settings: MapSettings) -> list[PurePosixPath]:
    """Name all maps that one mask always gets, relative to the output's root."""
    stats = ["r", "z", "t"] if settings.compute_t_map else ["r", "z"]
    return [
        *(map_path(mask, settings, stat=stat) for stat in stats),
        *(map_path(mask, settings, stat="t", threshold=threshold) for threshold in settings.t_thresholds),
    ]


def decide(
    masks: Sequence[LesionMask], output_dir: Path, settings: MapSettings, overwrite: bool = False
) -> list[LesionRecord]:
    """Decide for each mask whether it is mapped (pending), skipped or failed before it is read.

    A mask in another space than the connectome is skipped where the same lesion is there in the right one, else it
    fails. Masks whose maps would have the same names fail. A mask whose maps are all there is skipped. One that has
    maps made from another mask, connectome or weighting fails, and nothing is mixed.

    Parameters
    ----------
    overwrite
        Map again what was mapped before.
    """
    records = [LesionRecord(mask) for mask in masks]
    sidecars = _Sidecars(output_dir, settings)
    by_name: dict[PurePosixPath, list[LesionRecord]] = defaultdict(list)
    for record in records:
        if not _has_bids_name(record.mask):
            record.set_aside(
                "failed", "its name has other characters than letters, digits and + in a label: rename the file"
            )
            continue
        by_name[map_path(record.mask, settings, stat="r")].append(record)
    for same_name in by_name.values():
        right = [record for record in same_name if record.mask.space == settings.space]
        for record in same_name:
            if record not in right:
                _set_aside_for_space(record, settings.space, right)
            elif len(right) > 1:
                others = ", ".join(str(other.mask.path) for other in right if other is not record)
                record.set_aside(
                    "failed", f"its maps would have the same names as those of {others}: choose by --bids-filter-file"
                )
            elif not overwrite:
                _set_aside_if_done(record, settings, sidecars)
    return records


def _has_bids_name(mask: LesionMask) -> bool:
    """Tell whether the maps' names can be made of this mask's: entities and labels go there as they are."""
    return all(re.fullmatch(r"[A-Za-z0-9+]+", part) for entity in mask.entities.items() for part in entity)


def _set_aside_for_space(record: LesionRecord, space: str, right: Sequence[LesionRecord]) -> None:
    if right:
        own_space = record.mask.space or "(none named)"
        record.set_aside("skipped", f"in space {own_space}; {right[0].mask.path.name} is in {space}")
    elif record.mask.space is None:
        record.set_aside(
            "failed",
            f"names no space, so it is in the participant's own; the connectome is in {space}: transform the mask "
            f"to {space} and name it space-{space}, or say SpatialReference in its sidecar",
        )
    else:
        record.set_aside("failed", describe_mismatch(record.mask.space, space))


def claim_pending(
    records: Sequence[LesionRecord], claims: Claims, output_dir: Path, settings: MapSettings, overwrite: bool = False
) -> int:
    """Claim the lesions that are to be mapped; one that another run holds fails, unless its maps are there by now.

    Parameters
    ----------
    records
        As from `decide`.
    overwrite
        As for `decide`.

    Returns
    -------
    int
        How many other runs hold.
    """
    pending = {str(map_path(record.mask, settings, stat="r")): record for record in records if _is_pending(record)}
    held = claims.take(pending)
    # After the claims were read: what nobody held then, and is not there now, nobody has finished.
    sidecars = _Sidecars(output_dir, settings)
    for name, record in pending.items():
        if not overwrite:
            _set_aside_if_done(record, settings, sidecars)
        if name in held and _is_pending(record):
            record.set_aside(
                "failed",
                f"{held[name]} holds this lesion: once it has ended, the same command maps what is left",
            )
    return len(held)


def _is_pending(record: LesionRecord) -> bool:
    return record.status == "pending"


def clean_after(output_dir: Path, claim: Claim) -> None:
    """Remove the temporary files of a run that was killed."""
    remove_unfinished(output_dir / "logs" / claim.run)
    by_folder: dict[Path, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for lesion in claim.lesions:
        r_map = output_dir / lesion
        # The claim is a file that anybody may have written.
        if "_stat-r_" in r_map.name and ".." not in r_map.parts and r_map.is_relative_to(output_dir):
            by_folder[r_map.parent][_before_statistic(r_map.name)].append(r_map.name)
    for folder, r_maps in by_folder.items():
        remove_unfinished(folder, of=partial(_is_of_any, r_maps))


def _is_of_any(r_maps: Mapping[str, Sequence[str]], name: str) -> bool:
    return any(_is_of_lesion(name, r_map) for r_map in r_maps.get(_before_statistic(name), ()))


def _before_statistic(name: str) -> str:
    return name.partition("_stat-")[0]


def _is_of_lesion(name: str, r_map: str) -> bool:
    """Tell by their names whether a map or its sidecar is of the same lesion and connectome as an r-map."""
    before, after = map(re.escape, r_map.removesuffix("_statmap.nii.gz").rsplit("_stat-r_", 1))
    return bool(re.fullmatch(rf"{before}_stat-[a-z]+_{after}(_statmap|T[0-9p]+_mask)\.(nii\.gz|json)", name))


def _set_aside_if_done(record: LesionRecord, settings: MapSettings, sidecars: _Sidecars) -> None:
    try:
        # The sidecar is written last: a map without one is nobody's finished work.
        there = {path.name: sidecar for path, sidecar in sidecars.of(record.mask).items() if path.exists()}
        now = _provenance(record.mask, settings) if there else {}
        different = {name: words for name, sidecar in there.items() if (words := _differences(sidecar, now))}
    except OSError as error:
        record.set_aside(
            "failed", f"its maps of an earlier run cannot be read ({error}): check the output folder's permissions"
        )
        return
    if different:
        name, words = next(iter(different.items()))
        record.set_aside(
            "failed",
            f"{name} is there already, made with {words}: --overwrite makes it anew, "
            "another --connectome-name keeps both",
        )
    elif {path.name for path in expected_maps(record.mask, settings)} <= set(there):
        record.set_aside("skipped", "its maps are all there")


class _Sidecars:
    """What sidecars the output has; each folder is listed once, since it may hold thousands of lesions."""

    def __init__(self, output_dir: Path, settings: MapSettings) -> None:
        self._output_dir = output_dir
        self._settings = settings
        self._by_folder: dict[Path, dict[str, list[str]]] = {}

    def of(self, mask: LesionMask) -> dict[Path, Path]:
        """Give each map of a lesion, there or not, that has a sidecar."""
        r_map = self._output_dir / map_path(mask, self._settings, stat="r")
        if r_map.parent not in self._by_folder:
            self._by_folder[r_map.parent] = _sidecars_by_lesion(r_map.parent)
        names = self._by_folder[r_map.parent].get(_before_statistic(r_map.name), [])
        maps = {r_map.with_name(name.removesuffix(".json") + ".nii.gz"): r_map.with_name(name) for name in names}
        return {path: sidecar for path, sidecar in maps.items() if _is_of_lesion(path.name, r_map.name)}


def _sidecars_by_lesion(folder: Path) -> dict[str, list[str]]:
    """List a folder's sidecars, by what their names have before the statistic."""
    by_lesion = defaultdict(list)
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(path.name for path in folder.iterdir() if path.name.endswith(".json")):
            by_lesion[_before_statistic(name)].append(name)
    return by_lesion


def _differences(sidecar: Path, now: Mapping[str, Any]) -> str:
    """Tell in what a map on disk differs from what would be made now; "" if in nothing."""
    try:
        there = read_json_object(sidecar)
    except ValueError:
        return "a sidecar that is damaged"
    return " and ".join(
        words.format(there=there.get(key)) for key, words in RECORD.items() if there.get(key) != now.get(key)
    )


def _provenance(mask: LesionMask, settings: MapSettings) -> dict[str, Any]:
    return {
        "ConnectomeName": settings.connectome_name,
        "ConnectomeHash": settings.connectome_hash,
        "LesionHash": file_hash(mask.path),
        "LesionWeighting": settings.weighting,
        "LesionThreshold": settings.lesion_threshold,
    }


def file_hash(path: Path) -> str | None:
    """Compute the SHA-256 of a file; None where it cannot be read."""
    try:
        return hash_file(path)
    except OSError:
        return None


class DerivativesWriter:
    """Writes each batch's maps, with a sidecar each: a callback of `batch_process`. Keeps lesions.tsv up to date.

    Each file is written under a temporary name beside its final one and renamed, so that no file that looks whole
    is not.
    """

    def __init__(
        self,
        output_dir: Path,
        settings: MapSettings,
        records: Sequence[LesionRecord],
        log_dir: Path,
        links: Mapping[str, str],
    ) -> None:
        """Prepare to write.

        Parameters
        ----------
        output_dir
            The derivative dataset's root.
        settings
            What all maps have in common.
        records
            All masks found; `as_lesion` of a pending one makes the lesions that the writer is called with.
        log_dir
            Where lesions.tsv goes.
        links
            The name in DatasetLinks of each dataset: as from `prepare_dataset`.
        """
        self.output_dir = output_dir
        self.settings = settings
        self.records = records
        self.log_dir = log_dir
        self.links = links

    def __call__(self, results: Sequence[LesionData]) -> None:
        """Write one batch. A lesion whose maps cannot be written gets its `error`; the others go on."""
        for lesion in results:
            record: LesionRecord = lesion.metadata["record"]
            try:
                self._write_lesion(record.mask, lesion)
            except (OSError, ValueError) as error:
                lesion.error = f"its maps cannot be written: {error}"
                log_failure(logger, [lesion.name], lesion.error)
            record.close(lesion)

    def close(self, lesions: Sequence[LesionData]) -> None:
        """Take over what became of a batch's lesions, also of those that were not mapped, into lesions.tsv."""
        for lesion in lesions:
            lesion.metadata["record"].close(lesion)
        try:
            self.write_table()
        except OSError as error:
            # The maps are there all the same; at the end of the run it is tried again.
            logger.warning("the table of outcomes could not be written: %s", error)

    def write_table(self) -> None:
        """Write lesions.tsv: a row for every mask found."""
        with renamed_when_whole(self.log_dir / "lesions.tsv") as temporary:
            temporary.write_text(_table(self.records), encoding="utf-8")

    def _write_lesion(self, mask: LesionMask, lesion: LesionData) -> None:
        maps = lesion.results[ANALYSIS]
        sidecar = self._common_sidecar(mask, lesion, maps["summary_statistics"])
        self._remove_stale(mask, sidecar)
        for stat, (key, description) in STATISTICS.items():
            if key in maps:
                path = map_path(mask, self.settings, stat=stat)
                self._write_map(path, maps[key], {"Description": description, **sidecar})
        for threshold, image in maps.get("binary_maps", {}).items():
            description = f"Voxels where the lesion network map's |t| is above {threshold:g}; 0 where t is undefined"
            path = map_path(mask, self.settings, stat="t", threshold=threshold)
            self._write_map(
                path, image, {"Description": description, "Type": "ROI", "Threshold": threshold, **sidecar}
            )

    def _remove_stale(self, mask: LesionMask, sidecar: Mapping[str, Any]) -> None:
        """Remove this lesion's maps that were made from something else, before a new one is taken for theirs."""
        for path, old in _Sidecars(self.output_dir, self.settings).of(mask).items():
            if differences := _differences(old, sidecar):
                logger.info("removed: %s, made with %s", path.name, differences)
                path.unlink(missing_ok=True)
                old.unlink()

    def _common_sidecar(self, mask: LesionMask, lesion: LesionData, summary: Mapping[str, Any]) -> dict[str, Any]:
        sidecar = {
            "Sources": [f"bids:{self.links[mask.dataset]}:{mask.path.relative_to(mask.dataset_path).as_posix()}"],
            "SpatialReference": self.settings.space,
            "NumberOfConnectomeSubjects": summary["n_subjects"],
            "DegreesOfFreedom": summary["degrees_of_freedom"],
            "LesionVolume": lesion.volume_mm3,
            "LesionVolumeUnits": "mm^3",
            "LesionCoverage": lesion.coverage,
            **_provenance(mask, self.settings),
            "SoftwareVersion": __version__,
        }
        if "res" in mask.entities:
            sizes = " x ".join(f"{size:g}" for size in self.settings.grid.voxel_sizes_mm.round(3))
            sidecar["Resolution"] = f"{sizes} mm, the connectome's grid"
        return sidecar

    def _write_map(self, relative_path: PurePosixPath, image: nib.Nifti1Image, sidecar: Mapping[str, Any]) -> None:
        path = self.output_dir / relative_path
        with renamed_when_whole(path) as temporary:
            nib.save(image, temporary)
        write_json(sidecar_path(path), sidecar)


def sidecar_path(path: Path) -> Path:
    """Name the JSON file beside an image."""
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")


def _table(records: Sequence[LesionRecord]) -> str:
    """Lay the records out as BIDS wants a table: tabs, and n/a for what is not known."""
    entities = list(dict.fromkeys(name for record in records for name in record.mask.entities))
    rows = [["dataset", "mask", *entities, "status", "reason", "volume_mm3", "coverage", "batch"]]
    for record in records:
        mask = record.mask
        rows.append(
            [
                mask.dataset,
                mask.path.relative_to(mask.dataset_path).as_posix(),
                *(mask.entities.get(name, "n/a") for name in entities),
                record.status,
                " ".join(record.reason.split()) or "n/a",
                "n/a" if record.volume_mm3 is None else f"{record.volume_mm3:g}",
                "n/a" if record.coverage is None else f"{record.coverage:.4f}",
                "n/a" if record.batch is None else str(record.batch),
            ]
        )
    return "".join("\t".join(map(one_line, row)) + "\n" for row in rows)


def read_description(output_dir: Path) -> dict[str, Any]:
    """Read the description of the output folder, {} if it has none yet.

    Raises
    ------
    FileExistsError
        The folder holds another program's dataset, or is a file.
    ValueError
        The description is damaged.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise FileExistsError(f"{output_dir} is a file, where a folder for the maps is needed: name another place")
    path = output_dir / DESCRIPTION
    there = read_json_object(path) if path.exists() else {"GeneratedBy": [{"Name": PROGRAM}]}
    match there:
        case {"GeneratedBy": [{"Name": name}, *_]} if name == PROGRAM:
            return there
    raise FileExistsError(
        f"{output_dir} holds another dataset ({there.get('Name')}, by {there.get('GeneratedBy')}): "
        "choose a folder of its own for the maps"
    )


def prepare_dataset(output_dir: Path, datasets: Mapping[str, Path]) -> dict[str, str]:
    """Make the output folder a BIDS derivative dataset, or add to the one that is there.

    Both files are written by rename. Jobs of one array do so one after another (`Claims.exclusive`), so that what
    another job linked stays.

    Parameters
    ----------
    output_dir
        The derivative dataset's root; made when missing.
    datasets
        Name and root of each dataset that masks come from.

    Returns
    -------
    dict
        The name that each dataset has in BIDS URIs: its own, or one with a number where an earlier run gave that
        name to another folder.

    Raises
    ------
    FileExistsError
        The folder holds another program's dataset, or is a file.
    OSError
        The folder cannot be written to.
    """
    links = read_description(output_dir).get("DatasetLinks")
    links = links if isinstance(links, dict) else {}
    names = {}
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
    """Tell which container the program runs in, from what its image and Apptainer set."""
    keys = ("Type", "Tag", "URI")
    container = {key: environ[name] for key in keys if environ.get(name := f"BIDS_LACUNA_CONTAINER_{key.upper()}")}
    if image := environ.get("APPTAINER_CONTAINER") or environ.get("SINGULARITY_CONTAINER"):
        container |= {"Type": "singularity", "URI": image}
    return {"Container": container} if container else {}
