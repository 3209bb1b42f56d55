"""An interactive viewer of a lesion's maps, as a single page that works from disk.

The page contains its data and its program, `templates/viewer.js`: a single file can be sent to a colleague. A script
shared by all viewers of a folder would save 0.2 MB each, and be missing from copies of a page.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from math import floor, log10
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib

from bids_lacuna.report.figures.colours import colour_limit, two_sided_colours
from bids_lacuna.report.figures.volumes import LesionShape, Volume, template
from bids_lacuna.report.pages import write_page

Array = np.ndarray

NAMES = {
    "r": "r: correlation with the lesion, no unit",
    "z": "z: Fisher z of r (arctanh), no unit",
    "t": "t: one-sample t of z over connectome subjects, no unit",
}
"""Titles of the colour bars."""

SIGNIFICANT_DIGITS = 3
"""Digits, at least, of the value at which a map's colours end."""

LARGEST_R = 0.9995
"""Bound of the r from which z is predicted: arctanh(1) is infinite."""

N_GREYS = 48
"""Shades of grey of the template."""

DARKEST_BRAIN = 0.05
"""Brightness of the template, from 0 to 1, below which it shows no brain."""

N_COLOURS = 64
"""Colours of each sign."""

LARGEST = 2**28
"""Bound of the multiples: their differences, doubled, fit into 32 bits."""


def write_viewer(
    path: Path,
    maps: Mapping[str, Volume],
    thresholds: Mapping[str, float],
    lesion: LesionShape | None,
    title: str,
) -> None:
    """Write an interactive viewer of a lesion's maps as a single page, which fetches nothing.

    It opens at the lesion's centre. A link to `viewer.html#mm=-40,12,8` opens it at a position in mm; a page that
    embeds it moves it by posting `{mm: [-40, 12, 8]}` to its frame.

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
    shown = {stat: volume for stat, volume in maps.items() if volume.defined.size}
    data = {
        "maps": _encode_maps(shown, thresholds),
        "template": _encode_template(),
        "kind": lesion.kind if lesion else "lesion",
        "lesion": _encode_lesion(lesion) if lesion else None,
        "start": lesion.centre_mm if lesion else (0, 0, 0),
        "colours": _colours(),
        "largestR": LARGEST_R,
    }
    write_page(path, "viewer.html.jinja", title=title, data=data)


def _encode_maps(maps: Mapping[str, Volume], thresholds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Encode maps as multiples of a power of 10: the viewer shows the same digits as the file has, rounded."""
    encoded = []
    before: dict[str, tuple[int, Array, Array]] = {}
    for stat, volume in maps.items():
        limit = colour_limit(volume, thresholds[stat])
        decimals = max(0, SIGNIFICANT_DIGITS - 1 - floor(log10(limit)))
        flat = volume.values.ravel(order="F")
        defined = np.isfinite(flat)
        values = _multiples(flat[defined], decimals)
        before[stat] = decimals, defined, values
        from_r = stat == "z" and "r" in before and np.array_equal(before["r"][1], defined)
        if from_r:
            values = values - _predict_z(before["r"][2], before["r"][0], decimals)
        encoded.append(
            {
                "stat": stat,
                "name": NAMES[stat],
                "decimals": decimals,
                "threshold": thresholds[stat],
                "limit": limit,
                "fromR": from_r,
                **_encode(volume, defined, values),
            }
        )
    return encoded


def _multiples(values: Array, decimals: int) -> Array:
    """Round values to multiples of 10**-decimals."""
    # float64: products in float32 would be rounded to another digit now and then.
    scaled = values * np.float64(10**decimals)
    return np.clip(np.rint(scaled, out=scaled), -LARGEST, LARGEST, out=scaled).astype(np.int32)


def _predict_z(r: Array, decimals: int, z_decimals: int) -> Array:
    """Predict z as arctanh of the rounded r: nearly all differences are -1, 0 or 1, which compress well."""
    size = 10**decimals
    possible = np.clip(np.arange(-size, size + 1) / size, -LARGEST_R, LARGEST_R)
    predictions = np.rint(10**z_decimals * np.arctanh(possible)).astype(np.int32)
    return predictions[r + size]


def _encode(volume: Volume, defined: Array, values: Array) -> dict[str, Any]:
    """Encode a volume of integers as text: which voxels are defined, and the differences between neighbours.

    Differences are stored without sign (0, -1, 1, -2 as 0, 1, 2, 3), all lowest bytes first, then all second bytes,
    up to the last ones that are not 0.

    Parameters
    ----------
    volume
        Volume with the shape and the affine.
    defined : shape (x * y * z,), boolean
        In Fortran order.
    values : shape (defined.sum(),), int32
    """
    steps = np.diff(values, prepend=np.int32(0))
    codes = ((steps << 1) ^ (steps >> 31)).view(np.uint32)
    n_bytes = (int(codes.max(initial=1)).bit_length() + 7) // 8
    by_rank = np.ascontiguousarray(codes.astype("<u4", copy=False).view(np.uint8).reshape(-1, 4)[:, :n_bytes].T)
    return {
        "shape": volume.values.shape,
        "affine": volume.affine[:3].ravel().tolist(),
        "defined": _pack(np.packbits(defined, bitorder="little")),
        "steps": _pack(by_rank),
    }


@cache
def _encode_template() -> dict[str, Any]:
    grey = np.clip(template().values, 0, 1).ravel(order="F")
    brain = grey > DARKEST_BRAIN
    shades = np.rint(grey[brain] * N_GREYS).astype(np.int32)
    return {"white": N_GREYS, **_encode(template(), brain, shades)}


def _encode_lesion(lesion: LesionShape) -> dict[str, Any]:
    inside = lesion.mask.values.ravel(order="F")
    return _encode(lesion.mask, inside, np.ones(int(inside.sum()), np.int32))


def _pack(array: Array) -> str:
    return b64encode(isal_zlib.compress(array, 1)).decode("ascii")


@cache
def _colours() -> dict[str, list[str]]:
    """Return the colours of each sign, from the threshold to the strongest value, as in the pictures."""
    negative, positive = np.split(two_sided_colours(N_COLOURS), 2)
    return {
        sign: ["#" + bytes(colour).hex() for colour in colours]
        for sign, colours in (("negative", negative[::-1]), ("positive", positive))
    }
