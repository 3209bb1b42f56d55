"""Description of a group: overlaps, averages and similarity of lesions' maps, read from disk one lesion at a time.

All results are descriptive. An average of lesion network maps resembles the connectome itself, whatever the lesions'
symptoms; each sidecar says so.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.bids import describe_absence
from bids_lacuna.derivatives import GROUP_TABLE, SEED, TRANSFORMS, find_lesion
from bids_lacuna.grid import Grid, is_same_place
from bids_lacuna.group.cohort import Group, GroupLesion, LeftOut, refuse
from bids_lacuna.group.likeness import Likeness, known_columns
from bids_lacuna.group.remarks import describe_remarks, list_remarks
from bids_lacuna.group.sums import (
    BLOCK_BYTES,
    GroupSums,
    correlate_maps,
    find_outliers,
    find_peak,
    find_side,
    order_by_similarity,
)
from bids_lacuna.group.targets import add_target_columns, relate_to_targets
from bids_lacuna.group.writer import GroupSummary, GroupWriter
from bids_lacuna.images import open_image, read_volume
from bids_lacuna.kernels import single_threaded_blas
from bids_lacuna.lesion import LesionData, load_lesion
from bids_lacuna.mapping import Summary
from bids_lacuna.provenance import Provenance
from bids_lacuna.quality import LOW_COVERAGE, MaskFacts, describe_coverage
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.targets import Target
from bids_lacuna.text import percent
from bids_lacuna.weights import LesionWeights

logger = logging.getLogger(__name__)

Array = np.ndarray

IN_COMMON = 0.9
"""Warn if fewer than this fraction of the voxels that are defined in any map are defined in all maps."""


def summarize_group(
    group: Group,
    maps_dir: Path,
    links: Mapping[str, str],
    *,
    folder: Path | None = None,
    connectome: Summary | None = None,
    targets: Sequence[Target] = (),
    ignored: Collection[str] = (),
    block_bytes: int = BLOCK_BYTES,
    show_progress: bool = True,
) -> GroupSummary:
    """Describe a group of lesions and write the result to a folder in the dataset of the participants' maps.

    Maps are read one lesion at a time, and r-maps a second time, in blocks, to correlate each with all others.

    Parameters
    ----------
    group
        Group from `choose_group`.
    maps_dir
        Root of the dataset with the participants' maps.
    links
        Names in DatasetLinks by dataset, from `prepare_dataset`.
    folder
        Folder of the group's files; by default the root of that dataset.
    connectome
        Summary of the connectome that made the maps, to compare them with; without, the table has what their sidecars
        have.
    targets
        Target networks on the whole volume of the maps, to compare the lesions with; the table also has those in
        the sidecars.
    ignored
        Kinds of reasons for which a lesion is left out instead of refusing the group.
    block_bytes
        Bytes of r-maps in memory at a time.
    show_progress
        Whether to show a progress bar if stderr is a terminal.

    Raises
    ------
    UnfitLesions
        A map cannot be used and the reason is not ignored, or the maps have no voxels in common.
    OSError
        The output cannot be written.
    """
    sums = GroupSums(group.provenance.shape, group.provenance.options.t_thresholds)
    likeness = Likeness(connectome)
    lesions, rows, facts, relations, damaged = _add_lesions(group, maps_dir, sums, likeness, targets, show_progress)
    left_out = (*group.left_out, *damaged)
    refuse(left_out, len(lesions), ignored)

    common = sums.mean["r"].n == len(lesions)
    with single_threaded_blas():
        similarity, with_mean = correlate_maps(
            [maps_dir / lesion.maps["r"] for lesion in lesions], common, block_bytes, show_progress
        )
    order = order_by_similarity(similarity)
    outliers = find_outliers(with_mean)
    remarks = list_remarks(lesions, facts)
    for index, row in enumerate(rows):
        row |= {
            "look_at": "; ".join([*describe_coverage(row["coverage"]), *remarks[index]]) or "n/a",
            "r_with_group_mean": with_mean[index],
            "cluster_position": 1 + int(np.flatnonzero(order == index)[0]),
            "outlier": "yes" if outliers[index] else "no",
        }
    of_targets, mixed = add_target_columns(rows, relations)
    of_masks = describe_remarks(lesions, remarks)
    warnings = (*of_masks, *mixed, *list_warnings(group, lesions, common, sums.mean["r"].n > 0))
    for warning in warnings:
        logger.warning("%s", warning)
    # These have been logged already, by the search for masks.
    names = [each.name for each in lesions] + [each.name for each in left_out]
    participants = {name.partition("_")[0] for name in names}
    warnings = (*describe_absence(group.without_mask, len(participants)), *warnings)

    folder = folder or maps_dir
    writer = GroupWriter(group.provenance, lesions, maps_dir, folder, links)
    writer.remove_earlier()
    of_mean = likeness.of_mean(sums.mean["z"].values)
    summary = GroupSummary(
        maps=writer.write_maps(sums, of_mean),
        table=folder / GROUP_TABLE,
        similarity=writer.write_similarity(similarity, int(common.sum())),
        order=tuple(lesions[index].name for index in order),
        outliers=tuple(lesion.name for lesion, outlier in zip(lesions, outliers, strict=True) if outlier),
        left_out=left_out,
        warnings=warnings,
        relations={lesion.name: relation for lesion, relation in zip(lesions, relations, strict=True)},
    )
    writer.write_table(rows, known_columns(rows) | of_targets, summary)
    return summary


def _add_lesions(
    group: Group,
    maps_dir: Path,
    sums: GroupSums,
    likeness: Likeness,
    targets: Sequence[Target],
    show_progress: bool,
) -> tuple[
    list[GroupLesion],
    list[dict[str, Any]],
    list[MaskFacts | None],
    list[dict[str, Mapping[str, Any]]],
    list[LeftOut],
]:
    """Add all lesions to the sums.

    Returns
    -------
    lesions, rows, facts, relations
        The lesions added, their rows of the table, facts about their masks, and their relation to target networks.
    damaged
        The lesions that could not be added.
    """
    lesions: list[GroupLesion] = []
    rows: list[dict[str, Any]] = []
    facts: list[MaskFacts | None] = []
    relations: list[dict[str, Mapping[str, Any]]] = []
    damaged: list[LeftOut] = []
    with Progress(len(group.lesions), "reading maps", "lesion", shown=show_progress) as progress:
        for lesion in group.lesions:
            try:
                loaded, maps = _read_lesion(lesion, maps_dir, group.provenance)
                weights = loaded.loaded_weights
                row = _describe_lesion(lesion, weights, maps, group.provenance.grid)
                row |= likeness.of_lesion(lesion, weights, maps["z"])
                relation = relate_to_targets(lesion, weights, maps["z"], targets)
                # Nothing is added if a file is damaged.
                sums.add(weights, maps)
                rows.append(row)
                facts.append(loaded.facts)
                relations.append(relation)
                lesions.append(lesion)
            except (OSError, ValueError) as error:
                damaged.append(LeftOut(lesion.name, "missing", str(error)))
            progress.update()
    return lesions, rows, facts, relations, damaged


def _read_lesion(lesion: GroupLesion, maps_dir: Path, provenance: Provenance) -> tuple[LesionData, dict[str, Array]]:
    """Read a lesion on the maps' grid, and its maps; raises OSError or ValueError."""
    maps = {stat: read_lesion_map(maps_dir / path, provenance.grid) for stat, path in lesion.maps.items()}
    loaded = load_mask(lesion, maps_dir, provenance, np.isfinite(maps["r"]))
    if not np.nanmin(maps["r"], initial=np.inf) < np.nanmax(maps["r"], initial=-np.inf):
        raise ValueError(f"{lesion.maps['r'].name} does not vary: map the lesion again (--overwrite)")
    return loaded, maps


def load_mask(lesion: GroupLesion, maps_dir: Path, provenance: Provenance, brain: Array | None = None) -> LesionData:
    """Read a lesion on the maps' grid, with facts about its mask unless it is a seed; raises OSError or ValueError.

    Parameters
    ----------
    brain : shape (x, y, z), boolean
        As in `load_lesion`; None where no facts are needed.
    """
    path, lowest = find_lesion(lesion.mask.path, maps_dir / lesion.maps["r"], lesion.sidecar)
    # After transforms, the file has the weights themselves, whatever the weighting.
    weighting = "volume" if TRANSFORMS in lesion.sidecar else provenance.options.weighting
    return load_lesion(
        LesionData.from_nifti(path),
        provenance.grid,
        weighting=weighting,
        threshold=lowest,
        brain=brain,
        examined=brain is not None and SEED not in lesion.sidecar,
    )


def _describe_lesion(
    lesion: GroupLesion, weights: LesionWeights, maps: Mapping[str, Array], grid: Grid
) -> dict[str, Any]:
    """Return a lesion's row of the table, without the columns that depend on the whole group."""
    return {
        **lesion.identity,
        "label": lesion.mask.entities.get("label", "n/a"),
        "volume": float(lesion.sidecar["LesionVolume"]),
        "coverage": float(lesion.sidecar["LesionCoverage"]),
        "side": find_side(weights, grid),
        "n_connectome_subjects": lesion.sidecar["NumberOfConnectomeSubjects"],
        **find_peak("r", maps["r"], grid),
        **find_peak("t", maps["t"], grid),
    }


def read_lesion_map(path: Path, grid: Grid) -> Array:
    """Read one map and check its grid.

    Returns
    -------
    shape (x, y, z), float32
        NaN where the map is undefined.

    Raises
    ------
    OSError
        The file is missing or damaged.
    ValueError
        The map lies on another grid.
    """
    image = open_image(path, "map")
    if image.shape != grid.shape or not is_same_place(grid.affine, image.affine):
        raise ValueError(
            f"{path.name} lies on another grid than the group's ({grid.extent}): map the lesion again (--overwrite)"
        )
    return read_volume(image, "map").astype(np.float32, copy=False)


def list_warnings(group: Group, lesions: Sequence[GroupLesion], common: Array, any_map: Array) -> tuple[str, ...]:
    """List what a user should know about a group, in sentences.

    Parameters
    ----------
    lesions
        Lesions in the group.
    common, any_map : shape (x, y, z), boolean
        Voxels that are defined in all r-maps, and in any.
    """
    warnings = []
    kind = "seed" if all(SEED in lesion.sidecar for lesion in lesions) else "lesion"
    low = [lesion.name for lesion in lesions if lesion.sidecar["LesionCoverage"] < LOW_COVERAGE]
    if low:
        warnings.append(
            f"{kind}s of which the connectome covers less than {percent(LOW_COVERAGE)}, so that their maps describe "
            f"that part only: {', '.join(low)}"
        )
    several = [sub for sub, n in Counter(lesion.mask.entities["sub"] for lesion in lesions).items() if n > 1]
    if several:
        warnings.append(
            f"participants with several {kind}s, each of which counts as one: "
            f"{', '.join(f'sub-{sub}' for sub in several)}"
        )
    if common.sum() < IN_COMMON * any_map.sum():
        warnings.append(
            f"correlations between maps are over {common.sum()} voxels, of {any_map.sum()} that any map has: some "
            "map is undefined elsewhere"
        )
    versions = sorted({str(lesion.sidecar.get("SoftwareVersion")) for lesion in lesions})
    if len(versions) > 1:
        warnings.append(f"the maps were made by several versions of the program: {', '.join(versions)}")
    if group.other_thresholds:
        thresholds = ", ".join(f"{threshold:g}" for threshold in group.other_thresholds)
        warnings.append(
            f"some lesions have masks for |t| > {thresholds}, others do not: --t-threshold adds the overlaps, which "
            "are made from the t-maps"
        )
    if group.not_asked:
        warnings.append(
            f"{len(group.not_asked)} lesions with maps, such as {group.not_asked[0].name}, are not in the group: "
            "their masks are not among those asked for"
        )
    return tuple(warnings)
