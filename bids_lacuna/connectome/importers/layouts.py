"""Which layout a source has, and which options belong to it."""

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
    """What a user may say about a source; each layout takes what concerns it."""

    space: str
    """The template of the grid."""
    pattern: str | None = None
    """Of the series' paths below the source."""
    mask: Path | None = None
    """The brain mask."""
    mask_fraction: float | None = None
    """Share of the runs' brain masks that a voxel has to be in."""
    bids_filter_file: Path | None = None
    """JSON with filters on the runs' entities."""


USED_OPTIONS: Mapping[Layout, tuple[str, ...]] = {
    "hdf5": (),
    "nifti": ("pattern", "mask"),
    "bids": ("mask", "mask_fraction", "bids_filter_file"),
    "leaddbs": (),
    "npy": ("pattern", "mask"),
}
"""Beside the space."""


def detect_layout(path: Path) -> Layout:
    """Tell a source's layout from the names of its files.

    Raises
    ------
    FileNotFoundError
        It looks like none of them; the message says what each looks like.
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
        f"{path} looks like no layout of a connectome: HDF5 files (*.h5), GSP1000's NIfTI files ({nifti.PATTERN}), "
        f"derivatives of BIDS (dataset_description.json), Lead-DBS ({' or '.join(leaddbs.DATASET_FILES)}) or "
        "NumPy arrays (*.npy); name the folder that holds the files itself, or the layout with --format"
    )


def open_source(path: Path, layout: Layout, options: ImportOptions) -> Source:
    """Open somebody's connectome; its headers are read, its series are not.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, PermissionError
        Nothing is there, or it may not be read.
    NothingMatches
        No file of the source is a series that was asked for.
    MistakenOption
        An option is missing, or does not belong to the layout.
    ValueError, OSError
        A file is damaged or does not fit the others.
    """
    given = {field.name for field in fields(options) if getattr(options, field.name) is not None} - {"space"}
    for name in sorted(given - set(USED_OPTIONS[layout])):
        others = [other for other, names in USED_OPTIONS.items() if name in names]
        option = "--" + name.replace("_", "-")
        raise MistakenOption(f"{option} is only for the layout {' or '.join(others)}; {path} is read as {layout}")
    if options.pattern is not None and Path(options.pattern).is_absolute():
        raise MistakenOption(f"--pattern {options.pattern} begins at the root: name the paths below {path}")
    if options.mask is not None and options.mask_fraction is not None:
        raise MistakenOption("--mask-fraction is of the runs' own brain masks, which --mask takes the place of")
    match layout:
        case "hdf5":
            return hdf5.open_source(path)
        case "nifti":
            return nifti.open_source(path, _required_mask(options), options.pattern)
        case "bids":
            # Not at the top: pybids takes a second to import, and reads a file of settings in the user's home.
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
        raise MistakenOption("this layout needs the brain mask that the series lie on: --mask MASK.nii.gz")
    return options.mask
