"""The section of a participant's page about one lesion."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

from bids_lacuna.files import hash_file, write_table
from bids_lacuna.lesion import LOW_COVERAGE, name_side
from bids_lacuna.report import figures
from bids_lacuna.report.figures import Cluster, LesionShape, MapFacts, Volume
from bids_lacuna.report.maps_on_disk import MappedLesion, page_anchor
from bids_lacuna.report.pages import decimal, position
from bids_lacuna.report.pictures import Part, Pictures
from bids_lacuna.text import percent

logger = logging.getLogger(__name__)

FEW_CONNECTOME_SUBJECTS = 30
"""With fewer, maps of another sample of healthy people would look different."""

NOT_IN_HEADING = ("sub", "ses", "space", "res", "label", "stat", "desc")
"""Entities that all lesions of a page share, or that a heading has in other words."""


@dataclass
class Section:
    """Contents of the section of one lesion."""

    heading: str
    anchor: str
    volume_ml: float | None
    coverage: float | None
    n_subjects: int | None
    side: str = "\N{EN DASH}"
    facts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    viewer: str = ""
    viewer_map: str = ""
    clusters: dict[str, Any] = field(default_factory=dict)
    has_t: bool = False
    files: list[str] = field(default_factory=list)


def describe_lesion(output_dir: Path, label: str, lesion: MappedLesion) -> Section:
    """Draw and describe one lesion and its maps; a failure is noted in its section and affects no other."""
    heading = _heading(lesion)
    volume_mm3, coverage = (_number(lesion.sidecar.get(key)) for key in ("LesionVolume", "LesionCoverage"))
    n_subjects = lesion.sidecar.get("NumberOfConnectomeSubjects")
    section = Section(
        heading,
        page_anchor(lesion),
        None if volume_mm3 is None else volume_mm3 / 1000,
        coverage,
        n_subjects if isinstance(n_subjects, int) else None,
    )
    maps = [lesion.r_map, lesion.z_map, lesion.t_map, lesion.n_map, *lesion.binary_maps.values()]
    section.files = [path.relative_to(output_dir).as_posix() for path in maps if path]
    section.warnings = _warn(lesion, coverage, section.n_subjects)
    section.facts = [
        ("Volume", f"{decimal(section.volume_ml)} mL"),
        ("Coverage", f"{percent(nan if coverage is None else coverage)} inside the connectome's mask"),
        ("Connectome subjects", f"{n_subjects}{', fewer in some voxels: see the n-map' if lesion.n_map else ''}"),
    ]
    try:
        _draw(output_dir, output_dir / f"sub-{label}" / "figures", lesion, section)
    # The border of a lesion's section: whatever is wrong with its files, the page is written.
    except Exception as error:
        logger.debug("traceback of the failure below", exc_info=True)
        section.errors.append(f"pictures could not be drawn ({type(error).__name__}: {error})")
    return section


def _heading(lesion: MappedLesion) -> str:
    """Return a heading that tells the lesions of a page apart: "Session 1: lesion, in connectome GSP1000"."""
    connectome = str(lesion.sidecar.get("ConnectomeName", ""))
    label = lesion.entities.get("label", "lesion")
    words = ["lesion" if label == "lesion" else f"lesion labelled {label}"]
    words += [f"{entity} {value}" for entity, value in lesion.entities.items() if entity not in NOT_IN_HEADING]
    if own_desc := lesion.entities.get("desc", "").removesuffix(connectome):
        words.append(f"desc {own_desc}")
    words.append(f"in connectome {connectome}")
    session = lesion.entities.get("ses")
    text = f"Session {session}: {', '.join(words)}" if session else ", ".join(words)
    return text[:1].upper() + text[1:]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _warn(lesion: MappedLesion, coverage: float | None, n_subjects: int | None) -> list[str]:
    found = []
    if coverage is not None and coverage < LOW_COVERAGE:
        found.append(
            f"only {percent(coverage)} of the lesion lies inside the connectome's mask; the maps describe only that "
            "part."
        )
    if n_subjects == 1:
        found.append("the connectome has one subject: t is undefined, and the r-map is that of a single brain.")
    elif n_subjects is not None and n_subjects < FEW_CONNECTOME_SUBJECTS:
        found.append(
            f"the connectome has only {n_subjects} subjects: maps from another sample of healthy people would differ "
            "noticeably."
        )
    space = str(lesion.sidecar.get("SpatialReference", ""))
    if not space.startswith("MNI152"):
        found.append(
            f"the maps are in {space or 'an unknown'} space, but the background of the pictures is in MNI152 space."
        )
    return found


def _draw(output_dir: Path, folder: Path, lesion: MappedLesion, section: Section) -> None:
    """Draw all pictures of a lesion and add them to its section."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = _read_lesion(lesion, section)
    pictures = Pictures(output_dir, folder / lesion.name)
    if shape:
        section.facts += _describe_shape(shape, section)
        path = pictures.path("lesion.png")
        figures.draw_lesion(path, shape)
        alt = (
            f"Slices of the MNI template with the lesion in red, around {position(shape.centre_mm)} mm; "
            f"side: {section.side}"
        )
        caption = "The lesion (red). The middle slices pass through its centre."
        section.parts.append(Part("Lesion", [pictures.add("Lesion on the template", path, alt, caption)]))
    r_map = figures.read_map(lesion.r_map)
    t_map = figures.read_map(lesion.t_map) if lesion.t_map else None
    shown = [("r", r_map, figures.strongest_tenth_threshold(r_map), "about the strongest tenth of all voxels")]
    if t_map:
        given = next(iter(lesion.binary_maps), None)
        threshold, why = (
            (given, "the threshold given") if given else (figures.strongest_tenth_threshold(t_map), shown[0][3])
        )
        shown.append(("t", t_map, threshold, why))
    for stat, volume, threshold, why in shown:
        _draw_map(pictures, section, stat, volume, threshold, why, shape)
    for threshold, map_path in lesion.binary_maps.items():
        _draw_binary_map(pictures, section, threshold, figures.read_map(map_path), shape)
    _write_viewer(pictures, section, shown, shape)
    section.has_t = t_map is not None
    section.clusters = _write_clusters(pictures, r_map, t_map, shape)
    # matplotlib's figures are reference cycles: 4 MB per lesion.
    gc.collect()


def _read_lesion(lesion: MappedLesion, section: Section) -> LesionShape | None:
    try:
        shape = figures.read_lesion(lesion.mask, lesion.sidecar.get("LesionThreshold"))
    except (OSError, ValueError) as error:
        section.warnings.append(f"the lesion is not drawn because its mask cannot be read: {error}.")
        return None
    if hash_file(lesion.mask) != lesion.sidecar.get("LesionHash"):
        section.warnings.append("the mask has changed since it was mapped; the maps show the old one.")
    return shape


def _describe_shape(shape: LesionShape, section: Section) -> list[tuple[str, str]]:
    left = shape.left_fraction
    section.side = name_side(left, 1 - left)
    if section.side == "both":
        section.side += f" (left {percent(left)})"
    extents = zip("xyz", shape.low_mm, shape.high_mm, strict=True)
    return [
        ("Side", section.side),
        ("Centre (mm)", position(shape.centre_mm)),
        ("Extent (mm)", "; ".join(f"{axis} {decimal(low)} to {decimal(high)}" for axis, low, high in extents)),
    ]


def _draw_map(
    pictures: Pictures,
    section: Section,
    stat: str,
    volume: Volume,
    threshold: float,
    why: str,
    shape: LesionShape | None,
) -> None:
    facts = figures.measure_map(volume, threshold)
    if not facts.n_defined:
        section.warnings.append(f"the {stat}-map has no defined voxel and is not drawn.")
        return
    section.facts += [
        (f"Highest {stat}", f"{decimal(facts.maximum)} at {position(facts.maximum_mm)} mm"),
        (f"Lowest {stat}", f"{decimal(facts.minimum)} at {position(facts.minimum_mm)} mm"),
    ]
    if not facts.n_above + facts.n_below:
        section.warnings.append(f"no voxel has |{stat}| > {decimal(threshold)}: the pictures of the map are empty.")
    mosaic, glass = pictures.path(f"{stat}-mosaic.png"), pictures.path(f"{stat}-glass.png")
    figures.draw_map(mosaic, volume, threshold, stat, shape)
    figures.draw_glass_brain(glass, volume, threshold, stat)
    above = f"|{stat}| > {decimal(threshold)}, {why}"
    counts = _describe_counts(facts)
    outlined = "; the lesion is outlined in green" if shape else ""
    section.parts.append(
        Part(
            f"{stat}-map",
            [
                pictures.add(
                    f"{stat}-map on the template",
                    mosaic,
                    f"Slices of the MNI template with the {stat}-map where {above}: {counts}",
                    f"Voxels with {above}: {counts}. Red is positive, blue negative{outlined}.",
                ),
                pictures.add(
                    f"{stat}-map in a glass brain",
                    glass,
                    f"Glass brain from the left, the back, the right and above, with the {stat}-map where {above}",
                    "The strongest voxels along each line of sight, with the same threshold.",
                ),
            ],
        )
    )


def _describe_counts(facts: MapFacts) -> str:
    above, below = (percent(n / facts.n_defined) for n in (facts.n_above, facts.n_below))
    return f"{above} of the voxels are above the threshold, {below} below its negative"


def _draw_binary_map(
    pictures: Pictures, section: Section, threshold: float, volume: Volume, shape: LesionShape | None
) -> None:
    path = pictures.path(f"t{threshold:g}".replace(".", "p") + "-mask.png")
    figures.draw_binary_map(path, volume, shape)
    n = int((volume.values > 0).sum())
    caption = f"The {n} voxels with |t| > {threshold:g}, positive or negative."
    section.parts.append(
        Part(
            f"Binary map, |t| > {threshold:g}",
            [
                pictures.add(
                    f"Binary map of |t| above {threshold:g}",
                    path,
                    f"Slices of the MNI template with the {n} voxels where |t| is above {threshold:g} in orange",
                    caption,
                )
            ],
        )
    )


def _write_viewer(
    pictures: Pictures,
    section: Section,
    shown: Sequence[tuple[str, Volume, float, str]],
    shape: LesionShape | None,
) -> None:
    """Write the viewer of the maps that have a defined voxel."""
    maps = {stat: volume for stat, volume, threshold, _ in shown if threshold == threshold}
    thresholds = {stat: threshold for stat, _, threshold, _ in shown}
    if maps:
        path = pictures.path("viewer.html")
        section.viewer_map = " and the ".join(f"{stat}-map" for stat in maps)
        figures.write_viewer(path, maps, thresholds, shape, f"Maps of {section.heading}")
        section.viewer = pictures.relative(path)


def _write_clusters(
    pictures: Pictures, r_map: Volume, t_map: Volume | None, shape: LesionShape | None
) -> dict[str, Any]:
    """Write the table of clusters, and return its rows for the page."""
    positive, negative = figures.find_clusters(r_map, shape)

    def rows(clusters: Iterable[Cluster]) -> list[dict[str, Any]]:
        return [
            {
                "peak_mm": cluster.peak_mm,
                "r": cluster.value,
                "t": t_map.at(cluster.peak_mm) if t_map else None,
                "size_mm3": cluster.size_mm3,
            }
            for cluster in clusters
        ]

    tables = {"positive": rows(positive), "negative": rows(negative)}
    cells = []
    for sign, table in tables.items():
        for row in table:
            t = "n/a" if row["t"] is None or row["t"] != row["t"] else f"{row['t']:.6g}"
            cells.append([sign, *(f"{x:g}" for x in row["peak_mm"]), f"{row['r']:.6g}", t, f"{row['size_mm3']:g}"])
    path = pictures.path("clusters.tsv")
    write_table(path, ("sign", "x_mm", "y_mm", "z_mm", "r", "t", "size_mm3"), cells)
    return {**tables, "path": pictures.relative(path)}
