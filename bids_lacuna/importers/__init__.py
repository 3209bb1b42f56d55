"""Importers of the connectomes that people have, a module for each layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from bids_lacuna.importers import hdf5, nifti, npy
from bids_lacuna.importers.source import Source

Layout = Literal["hdf5", "nifti", "npy"]

LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class ImportOptions:
    """What a user may say about a source; each layout takes what concerns it."""

    space: str
    """The template of the grid."""
    pattern: str | None = None
    """Of the series' paths below the source."""
    mask: Path | None = None
    """The brain mask."""


def open_source(path: Path, layout: Layout, options: ImportOptions) -> Source:
    """Open somebody's connectome; its headers are read, its series are not.

    Raises
    ------
    FileNotFoundError, PermissionError
        Nothing is there, or it may not be read.
    NothingMatches
        No file of the source is a series that was asked for.
    ValueError
        A file is damaged or does not fit the others.
    """
    match layout:
        case "hdf5":
            return hdf5.open_source(path)
        case "nifti":
            return nifti.open_source(path, required_mask(options, layout), options.pattern)
        case "npy":
            return npy.open_source(path, required_mask(options, layout), options.pattern)


def required_mask(options: ImportOptions, layout: Layout) -> Path:
    """Give the brain mask, without which the layout cannot be read."""
    if options.mask is None:
        raise ValueError(f"a connectome in the layout {layout} needs a brain mask: --mask MASK.nii.gz")
    return options.mask
