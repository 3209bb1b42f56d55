"""Connectomes in derivatives of fMRIPrep or XCP-D: BOLD runs on the grid of their brain masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.bids import BoldRun, NoBoldRuns, find_bold_runs, read_filter_file
from bids_lacuna.connectome.importers.nifti import NiftiRun, check_affine, read_grid
from bids_lacuna.connectome.importers.source import NothingMatches, Source, group_by_subject, natural_order
from bids_lacuna.grid import Grid, tell_grids_apart
from bids_lacuna.images import open_image

MASK_FRACTION = 0.95
"""Smallest fraction of the BOLD runs' brain masks that a voxel of the connectome is in."""


def open_source(
    path: Path,
    space: str,
    *,
    mask: Path | None = None,
    mask_fraction: float = MASK_FRACTION,
    filters: Mapping[str, Any] | None = None,
) -> Source:
    """Open a derivative dataset; one participant's BOLD runs of all sessions are one subject's, in natural order.

    Parameters
    ----------
    space, filters
        As in `bids.find_bold_runs`.
    mask
        NIfTI file whose nonzero voxels belong to the connectome; by default, the runs' own brain masks decide.
    mask_fraction
        Smallest fraction of the runs' brain masks that a voxel must be in, above 0 and up to 1.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        There is no such dataset or mask, or a link is broken.
    PermissionError
        A file or folder may not be read.
    NothingMatches
        The dataset has no such BOLD runs; the message says what it has.
    ValueError
        The runs have different grids or spaces, one has no brain mask, or a file is not a 4D series.
    OSError
        A file is damaged.
    """
    try:
        found = find_bold_runs(path, space, filters)
    except NoBoldRuns as error:
        raise NothingMatches(str(error)) from error
    except PermissionError as error:
        raise PermissionError(f"the dataset {path} cannot be searched ({error}): check its permissions") from error
    runs = sorted(found, key=lambda run: natural_order(run.path))
    source_space = _only_space(runs)
    _check_grids(runs)
    grid = _common_grid(runs, mask_fraction) if mask is None else read_grid(mask)
    root = path.absolute()
    opened = [
        (run.entities["sub"], NiftiRun.open(run.path, run.path.relative_to(root).as_posix(), grid)) for run in runs
    ]
    return Source(grid, group_by_subject(opened), source_space)


def read_filters(path: Path) -> dict[str, Any]:
    """Read the filters for BOLD runs from a BIDS filter file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged, or has no filters for BOLD runs.
    """
    filters = read_filter_file(path, "bold")
    if not filters:
        raise ValueError(f'{path} has no filters under "bold": write them as {{"bold": {{…}}}}')
    return filters


def _only_space(runs: Sequence[BoldRun]) -> str | None:
    """Return the one space of all runs; filters may select several spaces, or files that name none."""
    examples = {run.entities.get("space"): run.path for run in runs}
    space, *others = examples
    if others:
        raise ValueError(
            f"{examples[others[0]]} lies in another space than {examples[space]}: choose one with "
            '--bids-filter-file, as in {"bold": {"space": "MNI152NLin6Asym"}}'
        )
    return space


def _check_grids(runs: Sequence[BoldRun]) -> None:
    """Raise ValueError unless all runs have the same shape and affine."""
    first, *others = (run.path for run in runs)
    grid = _whole_grid(first)
    for path in others:
        _check_same_place(
            path,
            _whole_grid(path),
            first,
            grid,
            'choose runs of one resolution with --bids-filter-file, as in {"bold": {"res": "2"}}',
        )


def _whole_grid(path: Path) -> Grid:
    """Read the grid of a series' whole volumes from its header."""
    image = open_image(path, "series")
    check_affine(image, path)
    return Grid(np.ones(image.shape[:3], bool), image.affine)


def _common_grid(runs: Sequence[BoldRun], mask_fraction: float) -> Grid:
    """Return the grid of the voxels that are in enough of the runs' brain masks."""
    if not 0 < mask_fraction <= 1:
        raise ValueError(
            f"the mask fraction is {mask_fraction}: a fraction of the runs is needed, above 0 and up to 1"
        )
    masks = [run.brain_mask for run in runs if run.brain_mask is not None]
    if len(masks) < len(runs):
        lacking = next(run.path for run in runs if run.brain_mask is None)
        raise ValueError(
            f"{len(runs) - len(masks)} of {len(runs)} runs have no …_desc-brain_mask.nii.gz beside them, "
            f"such as {lacking}: give one for all runs with --mask (XCP-D writes none; fMRIPrep's are on its grid)"
        )
    first = read_grid(masks[0])
    counts = first.mask.astype(int)
    for path in masks[1:]:
        grid = read_grid(path)
        _check_same_place(path, grid, masks[0], first, "give one mask for all runs with --mask")
        counts += grid.mask
    # Rounded up, apart from floating-point error: 0.07 * 100 is 7.000000000000001.
    needed = max(math.ceil(mask_fraction * len(masks) - 1e-6), 1)
    common = counts >= needed
    if not common.any():
        raise ValueError(
            f"no voxel is inside {needed} of the {len(masks)} brain masks (a fraction of {mask_fraction}), such as "
            f"{masks[0]}: lower --mask-fraction, or give one mask for all runs with --mask"
        )
    return Grid(common, first.affine)


def _check_same_place(path: Path, grid: Grid, first_path: Path, first: Grid, advice: str) -> None:
    """Raise ValueError if two files have different shapes or affines."""
    if not grid.lies_as(first):
        extent, first_extent = tell_grids_apart(grid, first)
        raise ValueError(
            f"{path} lies on another grid than {first_path}: {extent}, the other is {first_extent}; {advice}"
        )
