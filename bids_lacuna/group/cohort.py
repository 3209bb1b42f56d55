"""Select a group's lesions: those with complete maps and the majority's settings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn

import numpy as np

from bids_lacuna.bids import LesionMask, ParticipantWithoutMask, StatMap
from bids_lacuna.derivatives import (
    OWN_DATASET,
    SEED,
    TRANSFORMS,
    file_hash,
    map_path,
    number_label,
    read_outcomes,
    sidecar_path,
)
from bids_lacuna.files import read_json_object
from bids_lacuna.images import open_image
from bids_lacuna.provenance import PROGRAM, MappingOptions, Provenance, round_affine
from bids_lacuna.text import one_line

Kind = Literal["missing", "mixed"]
"""Why a lesion is left out: its maps are missing or damaged, or were made with other settings than the group's."""

MAPS_NEEDED = ("r", "z", "t")
"""Statistics whose maps a lesion needs to be in a group."""


CONNECTOME_KEYS = ("ConnectomeName", "ConnectomeHash", "SpatialReference")
"""Keys of a sidecar about the connectome."""


class NoMaps(LookupError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """No lesion has maps that could form a group; the message says which maps exist."""


class UnfitLesions(ValueError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """Some lesions cannot be in the group; the message lists each with its reason and says what to do."""


IDENTITY_COLUMNS = {
    "lesion": {"Description": "Entities of the lesion's mask, without space and resolution"},
    "participant_id": {"Description": "Participant"},
    "session_id": {"Description": "Session; n/a where the dataset has none"},
}
"""Columns of each table of a group's lesions that say whose a row is, with their entries in the data dictionary."""


@dataclass(frozen=True)
class GroupLesion:
    """A lesion with all its maps."""

    name: str
    """Entities of the mask, without space and resolution."""
    mask: LesionMask
    """Mask from which the maps were made."""
    maps: Mapping[str, PurePosixPath]
    """Paths of the r-, z- and t-map by statistic, relative to the root of the participants' maps."""
    sidecar: Mapping[str, Any]
    """Sidecar of the r-map."""

    @property
    def identity(self) -> dict[str, str]:
        """Its cells of `IDENTITY_COLUMNS`."""
        sub, ses = self.mask.entities["sub"], self.mask.entities.get("ses")
        session = "n/a" if ses is None else f"ses-{ses}"
        return {"lesion": self.name, "participant_id": f"sub-{sub}", "session_id": session}


@dataclass(frozen=True)
class LeftOut:
    """A lesion that cannot be in the group."""

    name: str
    """As in `GroupLesion`."""
    kind: Kind
    """Kind of reason."""
    reason: str
    """Reason, as a sentence for the user."""


@dataclass(frozen=True)
class Group:
    """The lesions of a group."""

    provenance: Provenance
    """Settings and connectome of their maps."""
    lesions: tuple[GroupLesion, ...]
    """Lesions in the group, sorted by the paths of their maps."""
    left_out: tuple[LeftOut, ...]
    """Requested lesions that cannot be in the group."""
    not_asked: tuple[PurePosixPath, ...]
    """r-maps of the same provenance whose masks were not requested, without those of seeds."""
    other_thresholds: tuple[float, ...] = ()
    """Thresholds of some lesions' masks that are not the group's."""
    without_mask: tuple[ParticipantWithoutMask, ...] = ()
    """Participants of the dataset for whom no mask was found."""


def choose_group(
    masks: Sequence[LesionMask],
    maps: Sequence[StatMap],
    maps_dir: Path,
    *,
    connectome_name: str | None = None,
    connectome_hash: str | None = None,
    t_thresholds: Sequence[float] = (),
    without_mask: Sequence[ParticipantWithoutMask] = (),
) -> Group:
    """Select the lesions with complete maps and the majority's settings.

    Parameters
    ----------
    masks
        Requested lesions.
    maps
        Maps in the dataset that the participant level wrote.
    maps_dir
        Root of that dataset.
    connectome_name, connectome_hash
        Connectome of the maps; by default the one that most lesions were mapped with.
    t_thresholds
        Thresholds of |t| for the group; by default those that all lesions have masks for. Overlaps are made from the
        t-maps, so lesions with masks for different thresholds form one group.
    without_mask
        Participants for whom no mask was found; the group's page names them.

    Raises
    ------
    NoMaps
        No maps exist for these masks and this connectome.
    UnfitLesions
        Several settings have the most lesions, equally many each.
    """
    provenances, damaged = _read_provenances(maps, maps_dir)
    on_disk = {stat_map.path for stat_map in maps}
    names = {
        provenance: {
            path for mask in masks if provenances.get(path := map_path(mask, provenance, stat="r")) == provenance
        }
        for provenance in dict.fromkeys(provenances.values())
    }
    group = _choose_provenance(
        {
            provenance: len(paths)
            for provenance, paths in names.items()
            if connectome_name in (None, provenance.connectome_name)
            and connectome_hash in (None, provenance.connectome_hash)
        },
        maps_dir,
        dict.fromkeys(provenance.connectome_name for provenance in provenances.values()),
    )
    by_name: dict[PurePosixPath, list[LesionMask]] = defaultdict(list)
    for mask in masks:
        by_name[map_path(mask, group, stat="r")].append(mask)
    outcomes = _read_reasons(maps_dir, group.connectome_name) if set(by_name) - names[group] else {}
    lesions: list[GroupLesion] = []
    left_out: list[LeftOut] = []
    for path, same_name in sorted(by_name.items()):
        try:
            if path not in names[group]:
                _explain_absence(path, same_name, group, names, damaged, outcomes)
            lesions.append(_gather(path, same_name, group, on_disk, maps_dir))
        except _Unfit as unfit:
            left_out.append(LeftOut(same_name[0].name, unfit.kind, str(unfit)))
    not_asked = sorted(
        path
        for path, provenance in provenances.items()
        if provenance == group and path not in by_name and not _is_seed(maps_dir / path)
    )
    of_all: tuple[float, ...] = tuple(sorted(set(t_thresholds)))
    others: tuple[float, ...] = ()
    if not of_all:
        of_all, others = _shared_thresholds(maps, maps_dir, [lesion.maps["r"] for lesion in lesions])
    with_thresholds = replace(group, options=replace(group.options, t_thresholds=of_all))
    return Group(with_thresholds, tuple(lesions), tuple(left_out), tuple(not_asked), others, tuple(without_mask))


def describe_settings(provenance: Provenance) -> dict[str, Any]:
    """Return what the sidecar of each file of a group says about the settings of the participants' maps."""
    return {
        "SpatialReference": provenance.space,
        "ConnectomeName": provenance.connectome_name,
        "ConnectomeHash": provenance.connectome_hash,
        **provenance.options.sidecar,
    }


def refuse(left_out: Collection[LeftOut], n_lesions: int, ignored: Collection[str]) -> None:
    """Refuse a group from which lesions are missing, unless the user ignores this kind of reason.

    Raises
    ------
    UnfitLesions
        Some lesion's kind of reason is not ignored, or no lesion is left.
    """
    unfit = [lesion for lesion in left_out if lesion.kind not in ignored]
    if unfit or not n_lesions:
        lines = [f"{len(left_out)} of {n_lesions + len(left_out)} lesions cannot be in the group:"]
        lines += [f"  {lesion.name}: {lesion.kind}: {lesion.reason}" for lesion in unfit or left_out]
        kinds = " ".join(sorted({lesion.kind for lesion in left_out}))
        lines.append(f"fix this, or leave them out with --ignore {kinds}" if n_lesions else "no lesion is left")
        raise UnfitLesions("\n".join(lines))


class _Unfit(ValueError):  # noqa: N818  a fact about a lesion
    """A lesion cannot be in the group."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def _shared_thresholds(
    maps: Sequence[StatMap], maps_dir: Path, r_maps: Sequence[PurePosixPath]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the thresholds that all lesions have masks for, and those that only some have; NaN is nobody's."""
    found: dict[PurePosixPath, set[float]] = {r_map: set() for r_map in r_maps}
    for stat_map in maps:
        if stat_map.suffix == "mask":
            r_map, threshold = _thresholded(stat_map.path, maps_dir)
            if r_map in found and threshold == threshold:
                found[r_map].add(threshold)
    of_any = set().union(*found.values())
    of_all = of_any.intersection(*found.values())
    return tuple(sorted(of_all)), tuple(sorted(of_any - of_all))


def _read_provenances(
    maps: Sequence[StatMap], maps_dir: Path
) -> tuple[dict[PurePosixPath, Provenance], dict[PurePosixPath, str]]:
    """Read the provenance of each r-map, and why some r-maps cannot be used."""
    provenances: dict[PurePosixPath, Provenance] = {}
    damaged: dict[PurePosixPath, str] = {}
    for stat_map in maps:
        # The sidecar is written last: a map without one is unfinished.
        if stat_map.suffix != "statmap" or stat_map.entities["stat"] != "r" or not _has_sidecar(stat_map, maps_dir):
            continue
        path = maps_dir / stat_map.path
        try:
            sidecar = read_json_object(sidecar_path(path))
            image = open_image(path, "map")
            name, content_hash, space = (sidecar[key] for key in CONNECTOME_KEYS)
            options: dict[str, Any] = {
                each.name: sidecar.get(key) if each.default is None else sidecar[key]
                for each in fields(MappingOptions)
                if (key := each.metadata["key"])
            }
            provenances[stat_map.path] = Provenance(
                name,
                content_hash,
                space,
                tuple(image.shape),
                round_affine(image.affine),
                MappingOptions(**options),
                {PROGRAM: str(sidecar.get("SoftwareVersion"))},
            )
        except KeyError as error:
            damaged[stat_map.path] = f"the sidecar of {path.name} has no {error}: map the lesion again (--overwrite)"
        except (OSError, ValueError) as error:
            damaged[stat_map.path] = str(error)
    return provenances, damaged


def _is_seed(r_map: Path) -> bool:
    return SEED in read_json_object(sidecar_path(r_map))


def _has_sidecar(stat_map: StatMap, maps_dir: Path) -> bool:
    return sidecar_path(maps_dir / stat_map.path).exists()


def _thresholded(path: PurePosixPath, maps_dir: Path) -> tuple[PurePosixPath, float]:
    """Return the path of the r-map that belongs to a mask of |t|, and the threshold; NaN if it cannot be read."""
    try:
        threshold = float(read_json_object(sidecar_path(maps_dir / path))["Threshold"])
    except (KeyError, TypeError, OSError, ValueError):
        return path, np.nan
    stem = path.name.removesuffix(f"T{number_label(threshold)}_mask.nii.gz").replace("_stat-t_", "_stat-r_")
    return path.with_name(f"{stem}_statmap.nii.gz"), threshold


def _choose_provenance(counts: Mapping[Provenance, int], maps_dir: Path, connectomes: Collection[str]) -> Provenance:
    """Return the provenance of most lesions' maps."""
    most = max(counts.values(), default=0)
    if not most:
        there = f"there are maps of {', '.join(connectomes)}" if connectomes else "there are no maps"
        raise NoMaps(
            f"{maps_dir} has no maps of these lesions in this connectome ({there}): run the participant level first, "
            "with the same folders and options"
        )
    best = [provenance for provenance, count in counts.items() if count == most]
    if len(best) > 1:
        lines = [f"several settings have the most lesions, {most} each:"]
        lines += [f"  {provenance.describe()}" for provenance in best]
        lines.append("choose with --connectome-name or --participant-label")
        raise UnfitLesions("\n".join(lines))
    return best[0]


def _explain_absence(
    r_map: PurePosixPath,
    masks: Sequence[LesionMask],
    group: Provenance,
    names: Mapping[Provenance, Collection[PurePosixPath]],
    damaged: Mapping[PurePosixPath, str],
    outcomes: Mapping[tuple[str, str], str],
) -> NoReturn:
    """Raise `_Unfit` with the reason why a lesion has no maps of the group's provenance."""
    if r_map in damaged:
        raise _Unfit("missing", damaged[r_map])
    for provenance, paths in names.items():
        if any(map_path(mask, provenance, stat="r") in paths for mask in masks):
            raise _Unfit("mixed", provenance.differences(group))
    for mask in masks:
        if recorded := outcomes.get(_row_key(mask)):
            raise _Unfit("missing", f"{mask.path.name} has no maps; by lesions.tsv: {recorded}")
    raise _Unfit("missing", f"{masks[0].path.name} has no maps: run the participant level")


def _read_reasons(maps_dir: Path, connectome_name: str) -> dict[tuple[str, str], str]:
    """Read from the tables of outcomes why masks have no maps of a connectome, by dataset and path."""
    newest = {}
    for outcome in read_outcomes(maps_dir):
        if outcome.run is None or outcome.run.provenance.connectome_name == connectome_name:
            newest[outcome.row.get("dataset", ""), outcome.row.get("mask", "")] = outcome
    return {
        key: f"{outcome.status}: {outcome.row.get('reason', 'n/a')}"
        for key, outcome in newest.items()
        if outcome.status in ("failed", "not run")
    }


def _row_key(mask: LesionMask) -> tuple[str, str]:
    """Return what a table of outcomes calls a mask: dataset and path."""
    return mask.dataset, one_line(mask.path.relative_to(mask.dataset_path).as_posix())


def _gather(
    r_map: PurePosixPath,
    masks: Sequence[LesionMask],
    group: Provenance,
    on_disk: Collection[PurePosixPath],
    maps_dir: Path,
) -> GroupLesion:
    """Combine a lesion's mask and maps; raises `_Unfit` if they do not belong together."""
    sidecar = read_json_object(sidecar_path(maps_dir / r_map))
    hashes = {mask.path: file_hash(mask.path) for mask in masks}
    if set(hashes.values()) == {None}:
        raise _Unfit("missing", f"its mask {masks[0].path} cannot be read")
    same = [mask for mask in masks if hashes[mask.path] == sidecar.get("LesionHash")]
    if not same:
        raise _Unfit("mixed", f"{masks[0].path.name} has changed since it was mapped: map it again (--overwrite)")
    if same[0].dataset == OWN_DATASET and same[0].seed != sidecar.get(SEED):
        raise _Unfit("mixed", "its coordinates have changed since it was mapped: map it again (--overwrite)")
    maps = {stat: map_path(same[0], group, stat=stat) for stat in MAPS_NEEDED}
    for stat, path in maps.items():
        if path not in on_disk or not sidecar_path(maps_dir / path).exists():
            why = "run the participant level without --no-t-map" if stat == "t" else "run the participant level again"
            raise _Unfit("missing", f"it has no {stat}-map: {why}")
        try:
            other = read_json_object(sidecar_path(maps_dir / path))
        except (OSError, ValueError) as error:
            raise _Unfit("missing", str(error)) from error
        for key in ("ConnectomeHash", "LesionHash", TRANSFORMS, "LesionWeighting", "LesionThreshold"):
            if other.get(key) != sidecar.get(key):
                raise _Unfit("mixed", f"its {stat}-map and its r-map differ in {key}: map it again (--overwrite)")
    for key in ("LesionVolume", "LesionCoverage", "NumberOfConnectomeSubjects"):
        if not isinstance(sidecar.get(key), int | float):
            raise _Unfit("missing", f"the sidecar of {r_map.name} has no {key}: map the lesion again (--overwrite)")
    return GroupLesion(same[0].name, same[0], maps, sidecar)
