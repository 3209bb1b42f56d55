"""Outcomes of masks: mapped, skipped or failed, with reasons."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from bids_lacuna.derivatives.history import NO_MASK
from bids_lacuna.derivatives.names import (
    TRANSFORMS,
    before_statistic,
    expected_maps,
    expected_masks,
    is_of_lesion,
    map_path,
)
from bids_lacuna.files import hash_file, read_json_object, write_table
from bids_lacuna.lesion import LesionData
from bids_lacuna.provenance import OPTION_WORDS, Provenance
from bids_lacuna.quality import describe_coverage
from bids_lacuna.runtime.locks import Claim, Claims
from bids_lacuna.spaces import describe_mismatch
from bids_lacuna.transforms import TransformChain

if TYPE_CHECKING:
    from bids_lacuna.bids import LesionMask, ParticipantWithoutMask

logger = logging.getLogger(__name__)

DECIDING = {
    "ConnectomeHash": "another connectome",
    "LesionHash": "another mask",
    TRANSFORMS: "other transforms of the mask",
    **OPTION_WORDS,
}
"""Sidecar keys that decide a map's numbers, with phrases for values that differ."""


FindChain = Callable[["LesionMask"], TransformChain | None]
"""Finds the transforms that a mask in another space needs: None if none are known, ValueError with a reason."""


@dataclass
class LesionRecord:
    """Outcome of one mask: a row of lesions.tsv."""

    mask: LesionMask
    """Mask in the dataset."""
    status: Literal["pending", "done", "failed", "skipped", "not run"] = "pending"
    """`pending` while the run lasts; `not run` if the run ended before this mask."""
    reason: str = ""
    """Reason why it failed or was skipped; empty otherwise."""
    volume_mm3: float | None = None
    """Volume on the mask's own grid."""
    coverage: float | None = None
    """Fraction of the lesion inside the connectome's mask."""
    remarks: tuple[str, ...] = ()
    """What a person should look at in the mask, in a few words each."""
    batch: int | None = None
    """Number of the batch, counted from 1."""
    t_map: Path | None = None
    """t-map on disk of a lesion that lacks nothing but masks of |t|, which are made from it without a pass."""
    transform: TransformChain | None = None
    """Transforms from the mask's space to the connectome's, if it needs some."""
    held_by: Claim | None = None
    """Claim of another run, which alone writes files of this lesion."""
    lacks: list[str] = field(default_factory=list)
    """What could not be added to its finished maps, and why."""

    def can_gain(self, space: str) -> bool:
        """Return whether this run may add to the lesion's maps, in its space or that to which its transforms lead."""
        its_space = self.transform.target if self.transform else self.mask.space
        return self.status in ("done", "skipped") and its_space == space and self.held_by is None

    def lack(self, what: str) -> None:
        """Record, with a warning, what could not be added to the lesion's finished maps, and why."""
        logger.warning("%s: %s", self.mask.path.name, what)
        self.lacks.append(what)

    def set_aside(self, status: Literal["failed", "skipped", "not run"], reason: str) -> None:
        """Exclude the mask from mapping."""
        self.status, self.reason = status, reason

    def as_lesion(self) -> LesionData:
        """Return the lesion to map."""
        metadata = {"subject_id": f"sub-{self.mask.entities['sub']}", "space": self.mask.space}
        lesion = LesionData.from_nifti(self.mask.path, metadata, self.transform)
        return replace(lesion, is_seed=self.mask.seed is not None)

    def close(self, lesion: LesionData) -> None:
        """Record the outcome of the lesion."""
        self.status = "failed" if lesion.error else "done"
        self.reason = lesion.error or ""
        self.volume_mm3, self.coverage, self.batch = lesion.volume_mm3, lesion.coverage, lesion.batch
        self.remarks = lesion.facts.remarks if lesion.facts else ()


def decide(
    masks: Sequence[LesionMask],
    output_dir: Path,
    provenance: Provenance,
    overwrite: bool = False,
    find_chain: FindChain = lambda _: None,
) -> list[LesionRecord]:
    """Decide for each mask whether to map it (pending), skip it or fail it, before reading it.

    A mask in another space than the connectome is skipped if the same lesion exists in the connectome's space, is
    mapped through its transforms if there are some, and fails otherwise. Masks whose maps would have the same names
    fail. A mask with complete maps is skipped. A mask with maps made from another mask or connectome, by other
    transforms or with other options fails, so that maps are never mixed.

    Parameters
    ----------
    overwrite
        Map lesions again that have maps.
    find_chain
        Asked for masks in another space.
    """
    records = [LesionRecord(mask) for mask in masks]
    sidecars = Sidecars(output_dir, provenance)
    by_name: dict[PurePosixPath, list[LesionRecord]] = defaultdict(list)
    for record in records:
        if record.mask.problem:
            record.set_aside("failed", record.mask.problem)
            continue
        if not _has_bids_name(record.mask):
            record.set_aside(
                "failed", "its name has characters other than letters, digits and + in an entity: rename the file"
            )
            continue
        by_name[map_path(record.mask, provenance, stat="r")].append(record)
    for same_name in by_name.values():
        right = [record for record in same_name if record.mask.space == provenance.space]
        problems = {} if right else _find_transforms(same_name, find_chain)
        right = right or [record for record in same_name if record.transform]
        for record in same_name:
            if id(record) in problems and not right:
                record.set_aside("failed", problems[id(record)])
            elif record not in right:
                _set_aside_for_space(record, provenance.space, right)
            elif len(right) > 1:
                others = ", ".join(str(other.mask.path) for other in right if other is not record)
                record.set_aside(
                    "failed",
                    f"its maps would have the same names as those of {others}: select one with --bids-filter-file",
                )
            elif not overwrite:
                _set_aside_if_done(record, provenance, sidecars)
    return records


def _find_transforms(records: Sequence[LesionRecord], find_chain: FindChain) -> dict[int, str]:
    """Set the transforms of masks in other spaces; return why they cannot be found, by the records' ids."""
    problems = {}
    for record in records:
        try:
            record.transform = find_chain(record.mask)
        except (OSError, ValueError) as error:
            problems[id(record)] = str(error)
    return problems


def _has_bids_name(mask: LesionMask) -> bool:
    """Return whether entities and labels of a mask's name are valid in its maps' names, which repeat them."""
    return all(re.fullmatch(r"[A-Za-z0-9+]+", part) for entity in mask.entities.items() for part in entity)


def _set_aside_for_space(record: LesionRecord, space: str, right: Sequence[LesionRecord]) -> None:
    if right:
        own_space = record.mask.space or "(not named)"
        how = "is brought to" if right[0].transform else "is in"
        record.set_aside("skipped", f"in space {own_space}; {right[0].mask.path.name} {how} {space}")
    elif record.mask.space is None:
        record.set_aside(
            "failed",
            f"its name has no space, so it is in the participant's own, but the connectome is in {space}: transform "
            f"the mask to {space} and name it space-{space}, or set SpatialReference in its sidecar",
        )
    else:
        record.set_aside("failed", describe_mismatch(record.mask.space, space))


def add_to_each(records: Iterable[LesionRecord], add: Callable[[LesionRecord], None], failed: str) -> list[str]:
    """Add something to the finished maps of each lesion; one that fails does not stop the others.

    Parameters
    ----------
    add
        Adds it to one lesion; OSError and ValueError are what the lesion lacks from then on.
    failed
        What is lacking, said before the reason.

    Returns
    -------
    list of str
        Labels of the participants with something new.
    """
    labels = []
    for record in records:
        try:
            add(record)
            labels.append(record.mask.entities["sub"])
        except (OSError, ValueError) as error:
            record.lack(f"{failed}: {error}")
    return labels


def claim_lesions(
    records: Sequence[LesionRecord], claims: Claims, output_dir: Path, provenance: Provenance, overwrite: bool = False
) -> int:
    """Claim lesions, pending or with maps that lack something.

    A pending lesion that another run holds fails, unless its maps are complete by now. To one that has maps, nothing
    is added.

    Parameters
    ----------
    records
        Records from `decide`, with one for each map.
    overwrite
        Map lesions again that have maps.

    Returns
    -------
    int
        Number of pending lesions that other runs hold.
    """
    wanted = {str(map_path(record.mask, provenance, stat="r")): record for record in records}
    pending = {name: record for name, record in wanted.items() if _is_pending(record)}
    held = claims.take(wanted)
    for name, of_other in held.items():
        wanted[name].held_by = of_other
    # Re-check after reading the claims: another run may have just finished a lesion that it no longer holds.
    sidecars = Sidecars(output_dir, provenance)
    for name, record in pending.items():
        if not overwrite:
            _set_aside_if_done(record, provenance, sidecars)
        if name in held and _is_pending(record):
            record.set_aside(
                "failed",
                f"{held[name]} holds this lesion: rerun the same command after that run to map what is left",
            )
    return len(pending.keys() & held.keys())


def _is_pending(record: LesionRecord) -> bool:
    return record.status == "pending"


def _set_aside_if_done(record: LesionRecord, provenance: Provenance, sidecars: Sidecars) -> None:
    try:
        # The sidecar is written last: a map without one is incomplete.
        there = {path.name: sidecar for path, sidecar in sidecars.of(record.mask).items() if path.exists()}
        now = lesion_provenance(record.mask, provenance, record.transform) if there else {}
        different = {name: words for name, sidecar in there.items() if (words := describe_differences(sidecar, now))}
    except OSError as error:
        record.set_aside(
            "failed", f"its maps of an earlier run cannot be read ({error}): check the output folder's permissions"
        )
        return
    if not there:
        return
    if different:
        name, words = next(iter(different.items()))
        record.set_aside(
            "failed",
            f"{name} exists, made with {words}: replace it with --overwrite, or keep both with another "
            "--connectome-name",
        )
        return
    missing = {path.name for path in expected_maps(record.mask, provenance)} - set(there)
    t_map = map_path(record.mask, provenance, stat="t")
    masks = {path.name for path in expected_masks(record.mask, provenance).values()}
    if not missing:
        record.set_aside("skipped", "all its maps exist")
    elif t_map.name in there and missing <= masks:
        record.t_map = sidecars.root / t_map


def read_threshold(sidecar: Path) -> float | None:
    """Return the threshold in the sidecar of a mask of |t|; None if it has none or is damaged."""
    try:
        threshold = read_json_object(sidecar).get("Threshold")
    except (OSError, ValueError):
        return None
    return float(threshold) if isinstance(threshold, int | float) else None


class Sidecars:
    """Sidecars in the output; each folder is listed once, since it may contain thousands of lesions."""

    def __init__(self, output_dir: Path, provenance: Provenance) -> None:
        self.root = output_dir
        self._provenance = provenance
        self._by_folder: dict[Path, dict[str, list[str]]] = {}

    def of(self, mask: LesionMask) -> dict[Path, Path]:
        """Return the maps of a lesion that have a sidecar, whether or not the map exists, with that sidecar."""
        r_map = self.root / map_path(mask, self._provenance, stat="r")
        if r_map.parent not in self._by_folder:
            self._by_folder[r_map.parent] = _sidecars_by_lesion(r_map.parent)
        names = self._by_folder[r_map.parent].get(before_statistic(r_map.name), [])
        maps = {r_map.with_name(name.removesuffix(".json") + ".nii.gz"): r_map.with_name(name) for name in names}
        return {path: sidecar for path, sidecar in maps.items() if is_of_lesion(path.name, r_map.name)}


def _sidecars_by_lesion(folder: Path) -> dict[str, list[str]]:
    """List a folder's sidecars by the part of their names before the statistic."""
    by_lesion = defaultdict(list)
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(path.name for path in folder.iterdir() if path.name.endswith(".json")):
            by_lesion[before_statistic(name)].append(name)
    return by_lesion


def describe_differences(sidecar: Path, now: Mapping[str, Any]) -> str:
    """Describe how a map on disk differs from one that would be made now; empty if it does not."""
    try:
        there = read_json_object(sidecar)
    except ValueError:
        return "a damaged sidecar"
    return " and ".join(
        words.format(value=there.get(key)) for key, words in DECIDING.items() if there.get(key) != now.get(key)
    )


def lesion_provenance(
    mask: LesionMask, provenance: Provenance, transform: TransformChain | None = None
) -> dict[str, Any]:
    """Return the sidecar values that decide the numbers of a lesion's maps; raises OSError for a lost transform."""
    return {
        "ConnectomeName": provenance.connectome_name,
        "ConnectomeHash": provenance.connectome_hash,
        "LesionHash": file_hash(mask.path),
        **({TRANSFORMS: transform.describe()} if transform else {}),
        **provenance.options.sidecar,
    }


def file_hash(path: Path) -> str | None:
    """Return the SHA-256 of a file; None if it cannot be read."""
    try:
        return hash_file(path)
    except OSError:
        return None


def write_outcomes(
    path: Path, records: Sequence[LesionRecord], without_mask: Sequence[ParticipantWithoutMask] = ()
) -> None:
    """Write lesions.tsv: one row per record and per participant without a mask, with n/a for unknown values."""
    entities = list(dict.fromkeys(name for record in records for name in record.mask.entities))
    columns = ["dataset", "mask", *entities, "status", "reason", "volume_mm3", "coverage", "look_at", "batch"]
    rows = []
    for record in records:
        mask = record.mask
        rows.append(
            [
                mask.dataset,
                mask.path.relative_to(mask.dataset_path).as_posix(),
                *(mask.entities.get(name, "n/a") for name in entities),
                record.status,
                " ".join("; ".join(filter(None, [record.reason, *record.lacks])).split()) or "n/a",
                "n/a" if record.volume_mm3 is None else f"{record.volume_mm3:g}",
                "n/a" if record.coverage is None else f"{record.coverage:.4f}",
                "; ".join([*describe_coverage(record.coverage), *record.remarks]) or "n/a",
                "n/a" if record.batch is None else str(record.batch),
            ]
        )
    for participant in without_mask:
        reason = participant.reason + (f" ({participant.path.name})" if participant.path else "")
        cells = {"dataset": participant.dataset, "sub": participant.label, "status": NO_MASK, "reason": reason}
        rows.append([cells.get(column, "n/a") for column in columns])
    write_table(path, columns, rows)
