"""Which lesions make up a group: those whose maps are whole, and were made with what most were made with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn

import numpy as np

from bids_lacuna.bids import LesionMask, StatMap
from bids_lacuna.derivatives.names import MapSettings, map_path, number_label, sidecar_path
from bids_lacuna.derivatives.records import file_hash
from bids_lacuna.files import read_json_object
from bids_lacuna.grid import Grid
from bids_lacuna.images import open_image
from bids_lacuna.weights import Weighting

Kind = Literal["missing", "mixed"]
"""Why a lesion is not in the group: its maps are missing or damaged, or were made with something else than most."""

MAPS_NEEDED = ("r", "z", "t")
"""The maps that a lesion needs to be in a group."""


class NoMaps(LookupError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """There is nothing to make a group of; the message says what there is instead."""


class UnfitLesions(ValueError):  # noqa: N818  a fact about the dataset, not a defect of the program
    """Some lesions cannot be in the group; the message names each with its reason, and what to do."""


@dataclass(frozen=True)
class Origin:
    """What a lesion's maps were made with: all lesions of a group share it."""

    connectome_name: str
    """Part of the maps' names."""
    connectome_hash: str
    """SHA-256 that tells one connectome from another of the same name."""
    space: str
    """Template of the connectome."""
    weighting: Weighting
    """How lesions were brought to the grid."""
    shape: tuple[int, ...]
    """Of the maps."""
    affine: tuple[float, ...]
    """Of the maps, row by row, rounded to 1e-4."""
    thresholds: tuple[float, ...]
    """Of the masks of |t|; those asked for where the group has its own."""
    lesion_threshold: float | None = None
    """From which probability on voxels of the lesions count; None where their masks are binary."""

    @property
    def grid(self) -> Grid:
        """Every voxel of the maps' volume, those outside the brain as well."""
        return Grid(np.ones(self.shape, dtype=bool), np.reshape(self.affine, (4, 4)))

    @property
    def settings(self) -> MapSettings:
        """What names the maps."""
        return MapSettings(
            self.connectome_name,
            self.connectome_hash,
            self.space,
            self.grid,
            self.weighting,
            compute_t_map=True,
            t_thresholds=self.thresholds,
            lesion_threshold=self.lesion_threshold,
        )

    def describe(self, names: Collection[str] = ()) -> str:
        """Describe it for people: all of it, or the fields of these names."""
        thresholds = ", ".join(f"{threshold:g}" for threshold in self.thresholds)
        words = {
            "connectome_name": f"connectome {self.connectome_name} ({self.connectome_hash[:8]})",
            "space": f"space {self.space}",
            "weighting": f"{self.weighting} weighting",
            "shape": self.grid.place,
            "thresholds": f"|t| > {thresholds}" if thresholds else "no threshold",
            "lesion_threshold": f"lesion threshold {self.lesion_threshold}",
        }
        same_words = {"connectome_hash": "connectome_name", "affine": "shape"}
        asked = {same_words.get(name, name) for name in names}
        if self.lesion_threshold is None and not names:
            del words["lesion_threshold"]
        return ", ".join(text for name, text in words.items() if not names or name in asked)

    def differences(self, group: Origin) -> str:
        """Tell in what a lesion's maps differ from the group's."""
        names = [field.name for field in fields(self) if getattr(self, field.name) != getattr(group, field.name)]
        return f"made with {self.describe(names)}; the group with {group.describe(names)}"


@dataclass(frozen=True)
class GroupLesion:
    """A lesion with all its maps."""

    name: str
    """The mask's entities, without space and resolution."""
    mask: LesionMask
    """What the maps were made from."""
    maps: Mapping[str, PurePosixPath]
    """r, z and t: paths relative to the root of the participants' maps."""
    sidecar: Mapping[str, Any]
    """Of the r-map."""


@dataclass(frozen=True)
class LeftOut:
    """A lesion that cannot be in the group."""

    name: str
    """As `GroupLesion.name`."""
    kind: Kind
    """What kind of reason."""
    reason: str
    """A sentence for the user."""


@dataclass(frozen=True)
class Group:
    """Which lesions make up a group."""

    origin: Origin
    """What their maps were made with."""
    lesions: tuple[GroupLesion, ...]
    """Sorted by the paths of their maps."""
    left_out: tuple[LeftOut, ...]
    """Lesions of the dataset that cannot be in it."""
    not_asked: tuple[PurePosixPath, ...]
    """r-maps of the same origin whose masks are not among those asked for."""


def choose_group(
    masks: Sequence[LesionMask],
    maps: Sequence[StatMap],
    maps_dir: Path,
    *,
    connectome_name: str | None = None,
    connectome_hash: str | None = None,
    t_thresholds: Sequence[float] = (),
) -> Group:
    """Choose the lesions of a group: those masks whose maps are whole, and made with what most were made with.

    Parameters
    ----------
    masks
        The lesions that are asked for.
    maps
        Found in the dataset that the participant level wrote.
    maps_dir
        That dataset's root.
    connectome_name, connectome_hash
        Of the connectome that the maps must be of; by default that of most lesions.
    t_thresholds
        By default the lesions' own, which must then be the same for all.

    Raises
    ------
    NoMaps
        There are no maps, or none of this connectome, or none of these masks.
    UnfitLesions
        As many lesions' maps were made with one thing as with another.
    """
    origins, damaged = _read_origins(maps, maps_dir, tuple(sorted(set(t_thresholds))))
    on_disk = {stat_map.path for stat_map in maps}
    names = {
        origin: {path for mask in masks if origins.get(path := map_path(mask, origin.settings, stat="r")) == origin}
        for origin in dict.fromkeys(origins.values())
    }
    group = _choose_origin(
        {
            origin: len(paths)
            for origin, paths in names.items()
            if connectome_name in (None, origin.connectome_name) and connectome_hash in (None, origin.connectome_hash)
        },
        maps_dir,
        dict.fromkeys(origin.connectome_name for origin in origins.values()),
    )
    by_name: dict[PurePosixPath, list[LesionMask]] = defaultdict(list)
    for mask in masks:
        by_name[map_path(mask, group.settings, stat="r")].append(mask)
    lesions: list[GroupLesion] = []
    left_out: list[LeftOut] = []
    for path, same_name in sorted(by_name.items()):
        try:
            if path not in names[group]:
                _explain_absence(path, same_name, group, names, damaged)
            lesions.append(_gather(path, same_name, group, on_disk, maps_dir))
        except _Unfit as unfit:
            left_out.append(LeftOut(same_name[0].name, unfit.kind, str(unfit)))
    not_asked = sorted(path for path, origin in origins.items() if origin == group and path not in by_name)
    return Group(group, tuple(lesions), tuple(left_out), tuple(not_asked))


def refuse(left_out: Collection[LeftOut], n_lesions: int, ignored: Collection[str]) -> None:
    """Refuse a group that lacks lesions, unless the user chose to leave such ones out.

    Raises
    ------
    UnfitLesions
        Some have a reason that is not ignored, or no lesion is left.
    """
    unfit = [lesion for lesion in left_out if lesion.kind not in ignored]
    if unfit or not n_lesions:
        lines = [f"{len(left_out)} of {n_lesions + len(left_out)} lesions cannot be in the group:"]
        lines += [f"  {lesion.name}: {lesion.kind}: {lesion.reason}" for lesion in unfit or left_out]
        kinds = " ".join(sorted({lesion.kind for lesion in left_out}))
        lines.append(f"mend this, or leave them out with --ignore {kinds}" if n_lesions else "no lesion is left")
        raise UnfitLesions("\n".join(lines))


class _Unfit(ValueError):  # noqa: N818  a fact about a lesion
    """A lesion cannot be in the group."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def _read_origins(
    maps: Sequence[StatMap], maps_dir: Path, t_thresholds: tuple[float, ...]
) -> tuple[dict[PurePosixPath, Origin], dict[PurePosixPath, str]]:
    """Read what each r-map was made with, and why some cannot be used."""
    thresholds: dict[PurePosixPath, set[float]] = defaultdict(set)
    origins: dict[PurePosixPath, Origin] = {}
    damaged: dict[PurePosixPath, str] = {}
    for stat_map in maps if not t_thresholds else ():
        if stat_map.suffix == "mask":
            r_map, threshold = _thresholded(stat_map.path, maps_dir)
            thresholds[r_map].add(threshold)
    for stat_map in maps:
        # The sidecar is written last: a map without one is nobody's finished work.
        if stat_map.suffix != "statmap" or stat_map.entities["stat"] != "r" or not _has_sidecar(stat_map, maps_dir):
            continue
        path = maps_dir / stat_map.path
        try:
            sidecar = read_json_object(sidecar_path(path))
            image = open_image(path, "map")
            origins[stat_map.path] = Origin(
                sidecar["ConnectomeName"],
                sidecar["ConnectomeHash"],
                sidecar["SpatialReference"],
                sidecar["LesionWeighting"],
                image.shape,
                tuple((image.affine.round(4) + 0.0).ravel().tolist()),
                t_thresholds or tuple(sorted(thresholds[stat_map.path])),
                sidecar.get("LesionThreshold"),
            )
        except KeyError as error:
            damaged[stat_map.path] = f"the sidecar of {path.name} lacks {error}: map the lesion again (--overwrite)"
        except (OSError, ValueError) as error:
            damaged[stat_map.path] = str(error)
    return origins, damaged


def _has_sidecar(stat_map: StatMap, maps_dir: Path) -> bool:
    return sidecar_path(maps_dir / stat_map.path).exists()


def _thresholded(path: PurePosixPath, maps_dir: Path) -> tuple[PurePosixPath, float]:
    """Name the r-map of the lesion that a mask of |t| is of, and read the threshold; NaN where there is none."""
    try:
        threshold = float(read_json_object(sidecar_path(maps_dir / path))["Threshold"])
    except (KeyError, TypeError, OSError, ValueError):
        return path, np.nan
    stem = path.name.removesuffix(f"T{number_label(threshold)}_mask.nii.gz").replace("_stat-t_", "_stat-r_")
    return path.with_name(f"{stem}_statmap.nii.gz"), threshold


def _choose_origin(counts: Mapping[Origin, int], maps_dir: Path, connectomes: Collection[str]) -> Origin:
    """Take what most lesions' maps were made with."""
    most = max(counts.values(), default=0)
    if not most:
        there = f"there are maps of {', '.join(connectomes)}" if connectomes else "there are none at all"
        raise NoMaps(
            f"{maps_dir} has no maps of these lesions in this connectome ({there}): run the participant level first, "
            "with the same folders and options"
        )
    best = [origin for origin, count in counts.items() if count == most]
    if len(best) > 1:
        lines = [f"as many lesions, {most}, have maps made with one thing as with another:"]
        lines += [f"  {origin.describe()}" for origin in best]
        lines.append("choose by --connectome-name, --participant-label or --t-threshold")
        raise UnfitLesions("\n".join(lines))
    return best[0]


def _explain_absence(
    r_map: PurePosixPath,
    masks: Sequence[LesionMask],
    group: Origin,
    names: Mapping[Origin, Collection[PurePosixPath]],
    damaged: Mapping[PurePosixPath, str],
) -> NoReturn:
    """Say why a lesion has no maps of the group's origin, with `_Unfit`."""
    if r_map in damaged:
        raise _Unfit("missing", damaged[r_map])
    for origin, paths in names.items():
        if any(map_path(mask, origin.settings, stat="r") in paths for mask in masks):
            raise _Unfit("mixed", origin.differences(group))
    raise _Unfit(
        "missing",
        f"{masks[0].path.name} has no maps: run the participant level, and see its table of lesions if it failed",
    )


def _gather(
    r_map: PurePosixPath,
    masks: Sequence[LesionMask],
    group: Origin,
    on_disk: Collection[PurePosixPath],
    maps_dir: Path,
) -> GroupLesion:
    """Put a lesion's mask and maps together; raises `_Unfit` where they do not belong together."""
    sidecar = read_json_object(sidecar_path(maps_dir / r_map))
    hashes = {mask.path: file_hash(mask.path) for mask in masks}
    if set(hashes.values()) == {None}:
        raise _Unfit("missing", f"its mask {masks[0].path} cannot be read")
    same = [mask for mask in masks if hashes[mask.path] == sidecar.get("LesionHash")]
    if not same:
        raise _Unfit("mixed", f"made from another mask than {masks[0].path.name} is now: map it again (--overwrite)")
    maps = {stat: map_path(same[0], group.settings, stat=stat) for stat in MAPS_NEEDED}
    for stat, path in maps.items():
        if path not in on_disk or not sidecar_path(maps_dir / path).exists():
            why = "without --no-t-map" if stat == "t" else "it may have been interrupted"
            raise _Unfit("missing", f"it has no {stat}-map: run the participant level again, {why}")
        try:
            other = read_json_object(sidecar_path(maps_dir / path))
        except (OSError, ValueError) as error:
            raise _Unfit("missing", str(error)) from error
        for key in ("ConnectomeHash", "LesionHash", "LesionWeighting", "LesionThreshold"):
            if other.get(key) != sidecar.get(key):
                raise _Unfit("mixed", f"its {stat}-map has another {key} than its r-map: map it again (--overwrite)")
    for key in ("LesionVolume", "LesionCoverage", "NumberOfConnectomeSubjects"):
        if key not in sidecar:
            raise _Unfit("missing", f"the sidecar of {r_map.name} lacks {key}: map the lesion again (--overwrite)")
    return GroupLesion(same[0].name, same[0], maps, sidecar)
