"""What a page shows of null lesions: T of a lesion among them, and the effect of a group against chance places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.derivatives import WITHOUT_NULLS, sidecar_path
from bids_lacuna.files import read_json_object
from bids_lacuna.report import figures
from bids_lacuna.report.figures import LesionShape, Row, Volume
from bids_lacuna.report.maps_on_disk import MappedLesion
from bids_lacuna.report.pages import position
from bids_lacuna.report.pictures import Picture, Pictures
from bids_lacuna.text import decimal

NOT_A_TEST = (
    "It is a description, not a test: every place has a network of its own, so T has no p, and it says nothing about "
    "the symptom."
)

NOT_SPECIFIC = (
    "This is not specific to a symptom: that needs a comparison with lesions without it. Lesions in one artery's "
    "territory do not lie at chance places, whatever their symptom."
)


STAMP = "Not specific to a symptom: that needs a comparison with lesions without it."
"""Printed on the picture of a group against chance places."""


@dataclass(frozen=True)
class ShownNulls:
    """T of a lesion among its null lesions."""

    picture: Picture
    meaning: str
    """What it says, in a sentence."""
    limit: str
    """What it does not say."""
    sidecar: Mapping[str, Any]
    """What decided the null lesions."""


def find_null_map(lesion: MappedLesion) -> Path | None:
    """Return the path of a lesion's T among its null lesions; None if there is none of the same mask."""
    path = lesion.r_map.with_name(
        lesion.r_map.name.replace("_stat-r_", "_stat-zscore_").replace("_statmap.nii.gz", "null_statmap.nii.gz")
    )
    sidecar = sidecar_path(path)
    if not (path.exists() and sidecar.exists()):
        return None
    same = read_json_object(sidecar).get("LesionHash") == lesion.sidecar.get("LesionHash")
    return path if same else None


def explain_no_nulls(sidecar: Mapping[str, Any]) -> str:
    """Return the reason why a lesion has no T among null lesions, from its r-map's sidecar; "" if it has none."""
    recorded = sidecar.get(WITHOUT_NULLS)
    return str(recorded.get("Reason", "")) if isinstance(recorded, Mapping) else ""


def draw_nulls(pictures: Pictures, lesion: MappedLesion, shape: LesionShape | None) -> ShownNulls | None:
    """Draw T among null lesions; None if the lesion has no such map, or no voxel of it is defined."""
    source = find_null_map(lesion)
    if source is None:
        return None
    volume = figures.read_map(source)
    if not volume.defined.size:
        return None
    sidecar = read_json_object(sidecar_path(source))
    threshold = figures.strongest_tenth_threshold(volume)
    facts = figures.measure_map(volume, threshold)
    rows = [Row("Lesion's centre", shape.centre_mm)] if shape else []
    rows += [
        Row(f"Highest T: {decimal(facts.maximum)}, at {position(facts.maximum_mm)} mm", facts.maximum_mm),
        Row(f"Lowest T: {decimal(facts.minimum)}, at {position(facts.minimum_mm)} mm", facts.minimum_mm),
    ]
    path = pictures.path("null.png")
    figures.draw_views(path, volume, figures.two_sided_scale(volume, threshold, "T"), rows, shape)
    what = f"T among {sidecar.get('NumberOfNullLesions')} null lesions, where |T| > {decimal(threshold)}"
    caption = (
        f"{what}, about the strongest tenth of the voxels. Red: more connected than at other places. Blue: less. "
        "Without colour: weaker, near the lesion, or no data. "
        f"{'Green line: the lesion. ' if shape else ''}The crosses mark the points named above the slices."
    )
    picture = pictures.add("T among null lesions", path, f"Slices of the MNI template. {what}", caption)
    return ShownNulls(picture, _describe_meaning(sidecar), NOT_A_TEST, sidecar)


def _describe_meaning(sidecar: Mapping[str, Any]) -> str:
    said = (
        "T compares this lesion's connectivity with that of the same lesion at "
        f"{sidecar.get('NumberOfNullLesions')} other places of its hemisphere with similar tissue: where |T| is "
        "large, it is particular to this place."
    )
    percentile = sidecar.get("DegreeRPercentile")
    if isinstance(percentile, int | float):
        said += f" The map resembles the connectome's degree more than {percentile:.0f} % of their maps do."
    return said


def find_chance_maps(folder: Path, group: Mapping[str, Any]) -> dict[str, Path]:
    """Return the paths of a group's effect, T and corrected p against chance places; empty if there are none."""
    stem = f"space-{group['SpatialReference']}_stat"
    name = group["ConnectomeName"]
    paths = {
        "effect": folder / f"{stem}-effect_desc-{name}chance_statmap.nii.gz",
        "zscore": folder / f"{stem}-zscore_desc-{name}chance_statmap.nii.gz",
        "logp": folder / f"{stem}-logp_desc-{name}chanceFWE_statmap.nii.gz",
    }
    return paths if all(path.exists() and sidecar_path(path).exists() for path in paths.values()) else {}


def draw_chance(pictures: Pictures, maps: Mapping[str, Path]) -> Picture | str:
    """Draw the effect against chance places where it is significant, or say that it is nowhere."""
    sidecar = read_json_object(sidecar_path(maps["effect"]))
    effect, logp = (figures.read_map(maps[name]) for name in ("effect", "logp"))
    compared = (
        f"{sidecar['NumberOfLesions']} lesions, compared with {sidecar['NumberOfNullSets']} sets of lesions of the "
        "same sizes at chance places of their hemispheres"
    )
    significant = logp.values >= np.float32(-np.log10(sidecar["Alpha"]))
    if not significant.any():
        return f"Nothing is significant (smallest corrected p = {decimal(sidecar['SmallestP'])}): {compared}."
    shown = Volume(np.where(significant, effect.values, np.float32(np.nan)), effect.affine)
    facts = figures.measure_map(shown, 0)
    path = pictures.path("chance.png")
    title = f"Effect against chance places, where corrected p \N{LESS-THAN OR EQUAL TO} {sidecar['Alpha']:g}"
    figures.draw_map(path, shown, 0, "z", (title, STAMP))
    peaks = _list_peaks(facts)
    what = (
        f"{title}: {facts.n_above + facts.n_below} voxels. {compared}. Red: these lesions are more connected there. "
        f"Blue: less. {peaks} {NOT_SPECIFIC}"
    )
    return pictures.add_slices("Effect against chance places", path, what)


def _list_peaks(facts: figures.MapFacts) -> str:
    found: Sequence[tuple[str, int, float, tuple[float, float, float]]] = (
        ("Largest", facts.n_above, facts.maximum, facts.maximum_mm),
        ("Lowest", facts.n_below, facts.minimum, facts.minimum_mm),
    )
    return " ".join(
        f"{word} effect: {decimal(value)} at {position(where)} mm." for word, n, value, where in found if n
    )
