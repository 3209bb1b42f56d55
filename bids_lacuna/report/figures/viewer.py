"""An interactive viewer of a map, as a separate page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

import nibabel as nib
from nilearn import plotting

from bids_lacuna.files import renamed_when_whole
from bids_lacuna.report.figures.colours import colour_limit, two_sided_colours
from bids_lacuna.report.figures.volumes import LesionShape, Volume, template

TITLE = re.compile("<title>.*?</title>", re.DOTALL)

FAVICON = re.compile(r'<link rel="icon".*?/>', re.DOTALL)
"""The only thing that nilearn's viewer would fetch from the web."""


def write_viewer(
    path: Path,
    maps: Mapping[str, Volume],
    thresholds: Mapping[str, float],
    lesion: LesionShape | None,
    title: str,
) -> None:
    """Write an interactive viewer of a lesion's maps as a single page, which fetches nothing.

    It opens at the lesion's centre. A link to `viewer.html#mm=-40,12,8` opens it at a position in mm.

    Parameters
    ----------
    maps
        Maps by the name of their statistic: "r", "z", "t". At least one has a defined voxel; the first one that has
        is shown first.
    thresholds
        Voxels with a greater absolute value are shown at first; one for each map that has a defined voxel.
    lesion
        Shape to outline; None if the mask cannot be read.
    title
        Title of the page.
    """
    stat, volume = list(maps.items())[-1]
    threshold = thresholds[stat]
    background, limit = template(), colour_limit(volume, threshold)
    view = plotting.view_img(
        volume.image(),
        bg_img=nib.Nifti1Image(background.values, background.affine),
        threshold=threshold,
        vmax=limit,
        cut_coords=lesion.centre_mm if lesion else (0, 0, 0),
        cmap=two_sided_colours(limit, threshold),
        black_bg=False,
        resampling_interpolation="nearest",
        opacity=0.9,
    )
    page = TITLE.sub(f"<title>{escape(title)}</title>", FAVICON.sub("", view.get_standalone()), count=1)
    with renamed_when_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
