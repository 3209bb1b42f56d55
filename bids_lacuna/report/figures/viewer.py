"""An interactive viewer of a map, as a separate page."""

from __future__ import annotations

import re
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


def write_viewer(path: Path, volume: Volume, threshold: float, title: str, lesion: LesionShape | None) -> None:
    """Write nilearn's interactive viewer of a map as a separate page, which fetches nothing from the web.

    It opens at the lesion's centre, if that is known.
    """
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
