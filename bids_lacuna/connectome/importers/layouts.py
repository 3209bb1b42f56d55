"""Layouts of sources, and the options that belong to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from bids_lacuna.connectome.importers import hdf5, leaddbs, nifti, npy
from bids_lacuna.connectome.importers.source import Source

Layout = Literal["hdf5", "nifti", "bids", "leaddbs", "npy"]


class MistakenOption(ValueError):  # noqa: N818  a mistake of the user's, not a defect of the program
    """An option is missing, or does not belong to the source's layout."""


@dataclass(frozen=True)
class ImportOptions:
    """Options for opening a source; each layout uses some of them."""

    space: str
    """Template space of the grid."""
    pattern: str | None = None
    """Glob pattern of the series' paths relative to the source."""
    mask: Path | None = None
    """NIfTI file of the brain mask."""
    mask_fraction: float | None = None
    """Smallest fraction of the runs' brain masks that a voxel must be in."""
    bids_filter_file: Path | None = None
    """JSON with filters on the runs' entities."""


USED_OPTIONS: Mapping[Layout, tuple[str, ...]] = {
    "hdf5": (),
    "nifti": ("pattern", "mask"),
    "bids": ("mask", "mask_fraction", "bids_filter_file"),
    "leaddbs": (),
    "npy": ("pattern", "mask"),
}
"""Options of each layout, beside the space."""


def detect_layout(path: Path) -> Layout:
    """Detect a source's layout from the names of its files.

    Raises
    ------
    FileNotFoundError
        The source looks like no known layout; the message describes each.
    """
    if path.is_file() and path.suffix.lower() in hdf5.SUFFIXES:
        return "hdf5"
    if path.is_dir():
        names = {file.name for file in path.iterdir() if not file.name.startswith(".")}
        suffixes = {Path(name).suffix.lower() for name in names}
        if not names.isdisjoint(leaddbs.DATASET_FILES):
            return "leaddbs"
        if not suffixes.isdisjoint(hdf5.SUFFIXES):
            return "hdf5"
        if ".npy" in suffixes:
            return "npy"
        if any(path.glob(nifti.PATTERN)):
            return "nifti"
        if "dataset_description.json" in names:
            return "bids"
    raise FileNotFoundError(
        f"{path} has no known layout of a connectome: HDF5 files (*.h5), GSP1000's NIfTI files ({nifti.PATTERN}), "
        f"BIDS derivatives (dataset_description.json), Lead-DBS ({' or '.join(leaddbs.DATASET_FILES)}) or "
        "NumPy arrays (*.npy); name the folder that directly holds the files, or give the layout with --format"
    )


def open_source(path: Path, layout: Layout, options: ImportOptions) -> Source:
    """Open a source of any layout; headers are read, series are not.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, PermissionError
        The source does not exist or may not be read.
    NothingMatches
        The source has no series of the requested kind.
    MistakenOption
        An option is missing, or does not belong to the layout.
    ValueError, OSError
        A file is damaged or inconsistent with the others.
    """
    given = {field.name for field in fields(options) if getattr(options, field.name) is not None} - {"space"}
    for name in sorted(given - set(USED_OPTIONS[layout])):
        others = [other for other, names in USED_OPTIONS.items() if name in names]
        option = "--" + name.replace("_", "-")
        raise MistakenOption(f"{option} is only for the layout {' or '.join(others)}; {path} is read as {layout}")
    if options.pattern is not None and Path(options.pattern).is_absolute():
        raise MistakenOption(f"--pattern {options.pattern} is absolute: give it relative to {path}")
    if options.mask is not None and options.mask_fraction is not None:
        raise MistakenOption(
            "--mask-fraction applies to the runs' own brain masks, which --mask replaces: give only one of them"
        )
    match layout:
        case "hdf5":
            return hdf5.open_source(path)
        case "nifti":
            return nifti.open_source(path, _required_mask(options), options.pattern)
        case "bids":
            # Not at the top: pybids takes a second to import and reads a settings file in the user's home. The
            # other four layouts do without it.
            from bids_lacuna.connectome.importers import bids

            try:
                filters = bids.read_filters(options.bids_filter_file) if options.bids_filter_file else None
            except ValueError as error:
                raise MistakenOption(str(error)) from error
            return bids.open_source(
                path,
                options.space,
                mask=options.mask,
                mask_fraction=options.mask_fraction or bids.MASK_FRACTION,
                filters=filters,
            )
        case "leaddbs":
            return leaddbs.open_source(path)
        case "npy":
            return npy.open_source(path, _required_mask(options), options.pattern)


def _required_mask(options: ImportOptions) -> Path:
    if options.mask is None:
        raise MistakenOption("this layout needs the brain mask on the grid of the series: give --mask MASK.nii.gz")
    return options.mask
