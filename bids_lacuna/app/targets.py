"""Target networks of the command line: read onto the connectome's voxels, and compared with finished maps."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bids_lacuna import kernels
from bids_lacuna.app.command import Exit, Stop, ending
from bids_lacuna.app.nulls import Nulls, rounded
from bids_lacuna.app.transforms import find_chains
from bids_lacuna.bids import read_space
from bids_lacuna.derivatives import (
    SEED,
    TARGETS,
    WITHOUT_NULLS,
    DerivativesWriter,
    LesionRecord,
    add_to_each,
    map_path,
    null_map_path,
    sidecar_path,
)
from bids_lacuna.derivatives.parcels import read_sidecar_of
from bids_lacuna.files import read_json_object, write_json
from bids_lacuna.grid import Grid
from bids_lacuna.images import open_image, read_volume
from bids_lacuna.mapping import FunctionalNetworkMapping
from bids_lacuna.mapping.null_maps import compare_with_targets, find_percentile
from bids_lacuna.mapping.nulls import make_nulls
from bids_lacuna.mapping.places import Tissue
from bids_lacuna.provenance import Provenance
from bids_lacuna.runtime.plan import Resources
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.targets import Target, compare_with_target, describe_closeness, is_recorded, read_target

logger = logging.getLogger(__name__)


def read_targets(
    arguments: argparse.Namespace, datasets: Mapping[str, Path], grid: Grid, space: str
) -> tuple[Target, ...]:
    """Read the targets of a command line.

    Parameters
    ----------
    grid, space
        Grid of the connectome, and its template space.

    Raises
    ------
    Stop
        A target cannot be used.
    """
    given = [(name, Path(path)) for name, _, path in (text.partition("=") for text in arguments.target)]
    for name, n in Counter(name for name, _ in given).items():
        if n > 1:
            paths = " and ".join(str(path) for each, path in given if each == name)
            raise Stop(Exit.USAGE, f"{n} targets are called {name} ({paths}): give each a name of its own")
    if not given:
        return ()
    finder = find_chains(arguments, datasets, space)
    found = []
    for name, path in given:
        with (
            ending(Exit.BAD_DATA, OSError, ValueError, saying=f"the target {name} cannot be used"),
            ending(Exit.NO_INPUT, FileNotFoundError, saying=f"the target {name} cannot be used"),
        ):
            own_space = read_space(path)
            if own_space is None:
                logger.warning("target %s: %s names no space: taken to be in the connectome's, %s", name, path, space)
            transform = finder.of_template(own_space or space)
            found.append(read_target(name, path, grid, own_space or space, transform))
        if transform:
            logger.info("target %s: brought %s", name, transform.words)
    return tuple(found)


def add_targets(
    targets: Sequence[Target], records: Collection[LesionRecord], output_dir: Path, analysis: FunctionalNetworkMapping
) -> list[str]:
    """Add the relation to target networks to the sidecars of the r-maps that lack it, or have that to another file.

    Parameters
    ----------
    records
        Records of lesions; those without maps are left alone.
    output_dir
        Root of the derivative dataset.
    analysis
        Analysis that made the maps.

    Returns
    -------
    list of str
        Labels of the participants with a sidecar that has changed.
    """
    due = (record for record in records if lacks_targets(targets, record, output_dir, analysis.provenance))
    return add_to_each(due, partial(_add, targets, output_dir, analysis), "it is not compared with target networks")


def lacks_targets(targets: Sequence[Target], record: LesionRecord, output_dir: Path, provenance: Provenance) -> bool:
    """Return whether a lesion has maps that were not compared with each target."""
    if not targets or not record.can_gain(provenance.space):
        return False
    recorded = _recorded(read_sidecar_of(output_dir / map_path(record.mask, provenance, stat="r")))
    return not all(is_recorded(target, recorded.get(target.name)) for target in targets)


def _add(
    targets: Sequence[Target], output_dir: Path, analysis: FunctionalNetworkMapping, record: LesionRecord
) -> None:
    """Add the relation to targets to one sidecar."""
    sidecar = sidecar_path(output_dir / map_path(record.mask, analysis.provenance, stat="r"))
    content = read_json_object(sidecar)
    recorded = _recorded(content)
    lacking = [target for target in targets if not is_recorded(target, recorded.get(target.name))]
    z_map = open_image(output_dir / map_path(record.mask, analysis.provenance, stat="z"), "map")
    z = analysis.connectome.grid.vector(read_volume(z_map, "map"))
    weights = analysis.row(analysis.load(record.as_lesion()))
    new = {
        target.name: target.describe()
        | describe_closeness(compare_with_target(z, weights, target.values), SEED in content)
        for target in lacking
    }
    write_json(sidecar, content | {TARGETS: {**recorded, **new}})


def _recorded(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sidecar has of targets, by their names."""
    recorded = sidecar.get(TARGETS)
    return dict(recorded) if isinstance(recorded, Mapping) else {}


def add_target_nulls(
    targets: Sequence[Target],
    nulls: Nulls,
    writer: DerivativesWriter,
    resources: Resources,
    show_progress: bool = True,
) -> list[str]:
    """Add the percentiles among null lesions to the sidecars of lesions that have T and a relation to targets.

    Returns
    -------
    list of str
        Labels of the participants with a sidecar that has changed.
    """
    out, provenance = writer.output_dir, writer.provenance
    due = [
        record
        for record in writer.records
        if _has_t(record, nulls, out, provenance) and lacks_percentiles(targets, record, nulls, out, provenance)
    ]
    if not due:
        return []
    try:
        tissue = nulls.load_tissue()
    except (OSError, ValueError) as error:
        logger.warning("target networks are not compared with null lesions: %s", error)
        return []
    logger.info("target networks among null lesions: lesions to compare: %d", len(due))
    with (
        kernels.threads(resources.n_threads),
        Progress(len(due), "null lesions and targets", "lesion", shown=show_progress) as progress,
    ):

        def add(record: LesionRecord) -> None:
            try:
                _add_nulls(targets, nulls, tissue, writer, record)
            finally:
                progress.update()

        return add_to_each(due, add, "its relation to targets is not compared with null lesions")


def _add_nulls(
    targets: Sequence[Target], nulls: Nulls, tissue: Tissue, writer: DerivativesWriter, record: LesionRecord
) -> None:
    """Add the percentiles among null lesions to one sidecar."""
    r_map = writer.output_dir / map_path(record.mask, writer.provenance, stat="r")
    shape = nulls.read(record.mask.path, r_map, writer.provenance.options)
    lesion = make_nulls(shape, nulls.connectivity, tissue, nulls.n, nulls.random_seed)
    compared = compare_with_targets(lesion, shape, [target.values for target in targets], nulls.connectivity)
    content = read_json_object(sidecar_path(r_map))
    recorded = _recorded(content)
    for target, r, damage in zip(targets, *compared, strict=True):
        if not is_recorded(target, recorded.get(target.name)):
            raise ValueError(f"its relation to {target.name} is missing")
        recorded[target.name]["NullLesions"] = {
            **nulls.identity,
            "NumberOfNullLesions": lesion.n_nulls,
            "ApproximateR": rounded(r[0]),
            "RPercentile": rounded(find_percentile(r)),
            "DamageScorePercentile": rounded(find_percentile(damage)),
        }
    write_json(sidecar_path(r_map), content | {TARGETS: recorded})


def lacks_percentiles(
    targets: Sequence[Target], record: LesionRecord, nulls: Nulls, output_dir: Path, provenance: Provenance
) -> bool:
    """Return whether a lesion has maps, may have null lesions, and lacks a target's percentiles among them."""
    if not record.can_gain(provenance.space):
        return False
    sidecar = read_sidecar_of(output_dir / map_path(record.mask, provenance, stat="r"))
    if nulls.made(sidecar.get(WITHOUT_NULLS)):
        return False
    entries = [_recorded(sidecar).get(target.name, {}) for target in targets]
    return not all(
        is_recorded(target, entry) and nulls.made(entry.get("NullLesions"))
        for target, entry in zip(targets, entries, strict=True)
    )


def _has_t(record: LesionRecord, nulls: Nulls, output_dir: Path, provenance: Provenance) -> bool:
    path = output_dir / null_map_path(record.mask, provenance)
    with suppress(OSError, ValueError):
        return path.exists() and nulls.made(read_json_object(sidecar_path(path)))
    return False
