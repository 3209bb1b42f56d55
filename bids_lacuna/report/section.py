"""The section of a participant's page about one lesion."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.derivatives import FIGURES, REMARKS, SEED, TRANSFORMS
from bids_lacuna.files import hash_file, write_table
from bids_lacuna.lesion import VOLUME_RATIOS, name_side
from bids_lacuna.quality import LOW_COVERAGE
from bids_lacuna.report import figures
from bids_lacuna.report.figures import Cluster, LesionShape, Row, Volume
from bids_lacuna.report.maps_on_disk import MappedLesion, page_anchor
from bids_lacuna.report.nulls import ShownNulls, draw_nulls, explain_no_nulls, find_null_map
from bids_lacuna.report.pages import position
from bids_lacuna.report.parcels import RegionNames, ShownParcels, read_parcels, read_region_names
from bids_lacuna.report.pictures import Part, Picture, Pictures
from bids_lacuna.report.similarity import ShownSimilarity, ShownTarget, read_similarity, read_targets
from bids_lacuna.text import decimal, percent
from bids_lacuna.transforms import describe_steps

logger = logging.getLogger(__name__)

FEW_CONNECTOME_SUBJECTS = 30
"""With fewer, maps of another sample of healthy people would look different."""

MOST = 0.5
"""Fraction of the voxels above which a threshold tells little: t exceeds the usual ones nearly everywhere."""

NOT_IN_HEADING = ("sub", "ses", "space", "res", "label", "stat", "desc")
"""Entities that all lesions of a page share, or that a heading has in other words."""


SPHERES = 8
"""Spheres of a seed that its section lists."""

WHAT = {
    "r": "r: correlation with the {kind}, from the mean Fisher z",
    "z": "mean Fisher z: the map for statistics over {kind}s",
    "t": "t of z over the connectome subjects",
    "n": "number of connectome subjects with a signal in each voxel",
}
"""What a map file contains."""


@dataclass
class Section:
    """Contents of the section of one lesion."""

    heading: str
    anchor: str
    volume_ml: float | None
    coverage: float | None
    n_subjects: int | None
    kind: str = "lesion"
    """What to call it: lesion or seed."""
    side: str = "\N{EN DASH}"
    place: str = ""
    """Its side in words, at the beginning of a sentence; "" if the mask cannot be read."""
    facts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lesion: Picture | None = None
    maps: list[Part] = field(default_factory=list)
    """The pictures of each map, of which the page shows one at a time."""
    viewer: str = ""
    clusters: dict[str, Any] = field(default_factory=dict)
    has_t: bool = False
    similarity: ShownSimilarity | None = None
    """Similarity of the map to the connectome as a whole; None without the connectome's summary."""
    targets: list[ShownTarget] = field(default_factory=list)
    """Relation to target networks."""
    atlases: list[RegionNames] = field(default_factory=list)
    """Atlases that name the regions of clusters."""
    parcels: list[ShownParcels] = field(default_factory=list)
    """The lesion by the regions of atlases."""
    nulls: ShownNulls | None = None
    """T among null lesions; None if there is none."""
    why_no_nulls: str = ""
    """Why there is none, if that is known."""
    files: list[tuple[str, str]] = field(default_factory=list)
    """Paths relative to the output's root, and what they contain."""

    @property
    def pictures(self) -> list[Picture]:
        """All pictures of the section."""
        found = [self.lesion, self.nulls.picture if self.nulls else None]
        return [each for each in found if each] + [each for part in self.maps for each in part.pictures]


@dataclass(frozen=True)
class _Shown:
    """A map, and what the page shows of it."""

    stat: str
    volume: Volume
    threshold: float
    """Voxels with a greater absolute value are shown; NaN for an undefined map."""
    why: str
    """Where the threshold comes from."""

    @property
    def condition(self) -> str:
        """Describe the shown voxels."""
        return f"|{self.stat}| > {decimal(self.threshold)}"


def pictures_of(output_dir: Path, label: str, lesion: MappedLesion) -> Pictures:
    """Return the picture files of a participant's lesion."""
    return Pictures(output_dir, output_dir / f"sub-{label}" / FIGURES / lesion.name)


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
        lesion.kind,
    )
    maps = [
        (lesion.r_map, WHAT["r"]),
        (lesion.z_map, WHAT["z"]),
        (lesion.t_map, WHAT["t"]),
        (lesion.n_map, WHAT["n"]),
    ]
    maps += [(path, f"voxels with |t| > {threshold:g}") for threshold, path in lesion.binary_maps.items()]
    maps += [(find_null_map(lesion), "T among null lesions: a description, not a test")]
    section.files = [
        (path.relative_to(output_dir).as_posix(), what.format(kind=lesion.kind)) for path, what in maps if path
    ]
    section.warnings = _warn(lesion, coverage, section.n_subjects)
    section.similarity, section.targets = read_similarity(lesion.sidecar), read_targets(lesion.sidecar)
    section.parcels, section.atlases = read_parcels(lesion), read_region_names(output_dir, lesion.sidecar)
    section.files += [
        (each.path.relative_to(output_dir).as_posix(), f"by the regions of {each.name}") for each in section.parcels
    ]
    section.facts = [
        *((f"In {each.name}", each.lesion) for each in section.parcels if each.lesion),
        *_describe_spheres(lesion.sidecar),
        *_describe_transforms(lesion.sidecar),
        ("Connectome subjects", f"{n_subjects}{', fewer in some voxels: see the n-map' if lesion.n_map else ''}"),
    ]
    try:
        (output_dir / f"sub-{label}" / FIGURES).mkdir(parents=True, exist_ok=True)
        _draw(pictures_of(output_dir, label, lesion), lesion, section)
    # The border of a lesion's section: whatever is wrong with its files, the page is written.
    except Exception as error:
        logger.debug("traceback of the failure below", exc_info=True)
        section.errors.append(f"pictures could not be drawn ({type(error).__name__}: {error})")
    return section


def _heading(lesion: MappedLesion) -> str:
    """Return a heading that tells the lesions of a page apart: "Session 1: lesion, in connectome GSP1000"."""
    connectome = str(lesion.sidecar.get("ConnectomeName", ""))
    label = lesion.entities.get("label", "lesion")
    words = [lesion.kind if label == lesion.kind else f"{lesion.kind} labelled {label}"]
    words += [f"{entity} {value}" for entity, value in lesion.entities.items() if entity not in NOT_IN_HEADING]
    if own_desc := lesion.entities.get("desc", "").removesuffix(connectome):
        words.append(f"desc {own_desc}")
    words.append(f"in connectome {connectome}")
    session = lesion.entities.get("ses")
    text = f"Session {session}: {', '.join(words)}" if session else ", ".join(words)
    return text[:1].upper() + text[1:]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _describe_spheres(sidecar: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe the spheres of a seed, at most `SPHERES` of them."""
    spheres = sidecar.get(SEED, {}).get("Spheres", [])
    if not spheres:
        return []
    shown = [
        f"{sphere['Radius']:g} mm around {', '.join(decimal(float(x)) for x in sphere['Centre'])} mm"
        for sphere in spheres[:SPHERES]
    ]
    more = f"; and {len(spheres) - SPHERES} more" if len(spheres) > SPHERES else ""
    return [("Sphere" if len(spheres) == 1 else "Union of spheres", "; ".join(shown) + more)]


def _describe_transforms(sidecar: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe how a mask was brought to the template, and what became of its volume."""
    files = sidecar.get(TRANSFORMS)
    if not files:
        return []
    steps = [(str(file.get("From")), str(file.get("To")), str(file.get("Software", ""))) for file in files]
    names = ", ".join(str(file.get("File")) for file in files)
    before, after, ratio = (
        _number(sidecar.get(key)) for key in ("LesionVolume", "LesionVolumeInTemplate", "LesionVolumeRatio")
    )
    volumes = ""
    if before is not None and after is not None and ratio is not None:
        volumes = f"; {before / 1000:.2f} mL became {after / 1000:.2f} mL ({ratio:.2f} times)"
    return [("Transforms", f"Brought {describe_steps(steps)} ({names}){volumes}")]


def _warn(lesion: MappedLesion, coverage: float | None, n_subjects: int | None) -> list[str]:
    found = []
    if coverage is not None and coverage < LOW_COVERAGE:
        found.append(
            f"only {percent(coverage)} of the {lesion.kind} lies inside the connectome's mask; the maps describe "
            "only that part."
        )
    if remarks := lesion.sidecar.get(REMARKS):
        found.append(f"look at the mask: {'; '.join(map(str, remarks))}.")
    ratio, (low, high) = _number(lesion.sidecar.get("LesionVolumeRatio")), VOLUME_RATIOS
    if ratio is not None and not low <= ratio <= high:
        found.append(f"the transforms change the {lesion.kind}'s volume by a factor of {ratio:.2g}: check them.")
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


def _draw(pictures: Pictures, lesion: MappedLesion, section: Section) -> None:
    """Draw all pictures of a lesion and add them to its section; each map is read once."""
    shape = _read_lesion(lesion, section)
    shown = _read_maps(lesion)
    r_map, t_map = shown["r"], shown.get("t")
    if shape:
        section.facts = _describe_shape(shape, section) + section.facts
        section.lesion = _draw_lesion(pictures, section, shape, r_map.volume)
    clusters, missing = _find_clusters(r_map, shape)
    for each in (r_map, t_map):
        if each:
            _draw_map(pictures, section, each, _choose_rows(each, shape, clusters), shape)
    for threshold, path in lesion.binary_maps.items():
        mask = Volume(np.sign(r_map.volume.values) * figures.read_map(path).values, r_map.volume.affine)
        _draw_binary_map(pictures, section, threshold, mask, _choose_rows(None, shape, clusters), shape)
    _write_viewer(pictures, section, shown, shape, f"Maps of sub-{lesion.entities['sub']}: {section.heading}")
    section.has_t = t_map is not None
    section.nulls = draw_nulls(pictures, lesion, shape)
    section.why_no_nulls = "" if section.nulls else explain_no_nulls(lesion.sidecar)
    if section.maps:
        section.clusters = {**_write_clusters(pictures, t_map, clusters, section.atlases), "missing": missing}


def _read_lesion(lesion: MappedLesion, section: Section) -> LesionShape | None:
    try:
        shape = figures.read_lesion(*lesion.shown_lesion, lesion.kind)
    except (OSError, ValueError) as error:
        section.warnings.append(f"the {lesion.kind} is not drawn because its mask cannot be read: {error}.")
        return None
    if hash_file(lesion.mask) != lesion.sidecar.get("LesionHash"):
        section.warnings.append("the mask has changed since it was mapped; the maps show the old one.")
    if shape.apart_mm and lesion.kind == "lesion":
        lie, where = ("lies", "") if shape.n_apart == 1 else ("lie", "for instance ")
        section.warnings.append(
            f"{shape.n_apart} of the mask's {shape.n_voxels} voxels {lie} apart from the rest, {where}at "
            f"{position(shape.apart_mm)} mm: check the mask. The extent and the slices of the lesion leave it out."
        )
    return shape


def _read_maps(lesion: MappedLesion) -> dict[str, _Shown]:
    """Read those of the r-, z- and t-map that exist, and choose what is shown of them."""
    paths = {"r": lesion.r_map, "z": lesion.z_map, "t": lesion.t_map}
    given = next(iter(lesion.binary_maps), None)
    shown = {}
    for stat, path in paths.items():
        if path:
            volume = figures.read_map(path)
            threshold, why = figures.strongest_tenth_threshold(volume), "about the strongest tenth of all voxels"
            if stat == "t" and given is not None and threshold == threshold:
                threshold, why = given, "the threshold given"
            shown[stat] = _Shown(stat, volume, threshold, why)
    return shown


def _describe_shape(shape: LesionShape, section: Section) -> list[tuple[str, str]]:
    left = shape.left_fraction
    section.side = name_side(left, 1 - left)
    section.place = f"{section.side.capitalize()} hemisphere"
    if section.side == "both":
        section.side += f" (left {percent(left)})"
        section.place = f"Both hemispheres ({percent(left)} on the left)"
    extents = zip("xyz", shape.low_mm, shape.high_mm, strict=True)
    return [
        ("Centre (mm)", position(shape.centre_mm)),
        ("Extent (mm)", "; ".join(f"{axis} {decimal(low)} to {decimal(high)}" for axis, low, high in extents)),
    ]


def _draw_lesion(pictures: Pictures, section: Section, shape: LesionShape, r_map: Volume) -> Picture:
    path = pictures.path("lesion.png")
    figures.draw_lesion(path, shape, r_map)
    coverage = nan if section.coverage is None else section.coverage
    covered = "" if coverage >= 1 else ", hatched where the connectome has no data"
    kind = shape.kind
    slices = f"Axial slices from the {kind}'s lower to its upper end, the middle one through its centre"
    where = f"{section.place}, around {position(shape.centre_mm)} mm"
    return pictures.add(
        f"{kind.capitalize()} on the template",
        path,
        f"Axial slices of the MNI template with the {kind} in red{covered}. {where}",
        f"{slices}. Red: the {kind}{covered}. L: left, R: right.",
    )


def _choose_rows(
    shown: _Shown | None, shape: LesionShape | None, clusters: Mapping[str, Sequence[Cluster]]
) -> list[Row]:
    """Choose the slices of a map's picture: through the lesion's centre, and through the strongest peaks of r.

    Without both, they pass through the template's origin.
    """
    points = [(f"{shape.kind.capitalize()}'s centre", shape.centre_mm)] if shape else []
    outside = f" outside the {shape.kind}" if shape else ""
    for name, sign in (("Highest", "positive"), ("Lowest", "negative")):
        points += [(f"{name} r{outside}", cluster.peak_mm) for cluster in clusters[sign][:1]]
    rows = []
    for name, point in points or [("Template's origin", (0.0, 0.0, 0.0))]:
        value = ""
        if shown:
            number = decimal(shown.volume.at(point))
            value = "no data, " if number == decimal(None) else f"{shown.stat} = {number}, "
        rows.append(Row(f"{name}: {value}at {position(point)} mm", point))
    return rows


def _draw_map(
    pictures: Pictures, section: Section, shown: _Shown, rows: Sequence[Row], shape: LesionShape | None
) -> None:
    stat = shown.stat
    if not shown.volume.defined.size:
        section.warnings.append(f"the {stat}-map has no defined voxel and is not drawn.")
        return
    above, below = figures.fractions_beyond(shown.volume, shown.threshold)
    if not above + below:
        section.warnings.append(f"no voxel has {shown.condition}: the pictures of the map are empty.")
    path = pictures.path(f"{stat}-map.png")
    scale = figures.two_sided_scale(shown.volume, shown.threshold, stat)
    figures.draw_views(path, shown.volume, scale, rows, shape)
    limit = decimal(shown.threshold)
    counts = (
        f"{percent(above)} of the voxels have {stat} > {limit}, {percent(below)} have {stat} < \N{MINUS SIGN}{limit}"
    )
    what = f"{shown.condition}, {shown.why}: {counts}"
    caption = f"{stat}-map from {section.n_subjects} connectome subjects. Shown: {what}."
    caption += (
        f"{_judge(above + below)} Red: positive. Blue: negative. Without colour: weaker, or no data. {_legend(shape)}"
    )
    alt = f"Slices of the MNI template and glass brain with the {stat}-map where {what}. {_list_rows(rows)}"
    section.maps.append(Part(f"{stat}-map", [pictures.add(f"{stat}-map on the template", path, alt, caption)]))


def _judge(shown: float) -> str:
    """Say of the shown fraction of the voxels if it is so large that the picture tells nothing."""
    return " Most voxels exceed this threshold: it does not single out a network." if shown > MOST else ""


def _legend(shape: LesionShape | None) -> str:
    outlined = f"Green line: the {shape.kind}. " if shape else ""
    return f"{outlined}L: left, R: right, A: front, P: back. The crosses mark the points named above the slices."


def _list_rows(rows: Sequence[Row]) -> str:
    return ". ".join(row.name for row in rows)


def _draw_binary_map(
    pictures: Pictures,
    section: Section,
    threshold: float,
    mask: Volume,
    rows: Sequence[Row],
    shape: LesionShape | None,
) -> None:
    """Draw a binary map with the sign of r, which is that of t."""
    if not mask.defined.size:
        return
    path = pictures.path(f"t{threshold:g}".replace(".", "p") + "-mask.png")
    figures.draw_views(path, mask, figures.two_colour_scale(), rows, shape)
    fractions = figures.fractions_beyond(mask, 0)
    above, below = map(percent, fractions)
    what = (
        f"{above} of the voxels have t > {threshold:g} (orange), {below} have t < \N{MINUS SIGN}{threshold:g} (blue)"
    )
    name = f"|t| > {threshold:g}"
    caption = f"Binary map of {name} from {section.n_subjects} connectome subjects: {what}.{_judge(sum(fractions))}"
    picture = pictures.add(
        f"Binary map of {name}",
        path,
        f"Slices of the MNI template with the binary map of {name}: {what}. {_list_rows(rows)}",
        f"{caption} {_legend(shape)}",
    )
    section.maps.append(Part(name, [picture]))


def _write_viewer(
    pictures: Pictures, section: Section, shown: Mapping[str, _Shown], shape: LesionShape | None, title: str
) -> None:
    """Write the viewer of the maps that have a defined voxel."""
    if not any(each.volume.defined.size for each in shown.values()):
        return
    path = pictures.path("viewer.html")
    maps = {stat: each.volume for stat, each in shown.items()}
    thresholds = {stat: each.threshold for stat, each in shown.items()}
    figures.write_viewer(path, maps, thresholds, shape, title)
    section.viewer = pictures.relative(path)


def _find_clusters(r_map: _Shown, shape: LesionShape | None) -> tuple[dict[str, list[Cluster]], dict[str, str]]:
    """Find the clusters of each sign whose peak is among the shown voxels, and describe a sign that has none."""
    clusters, missing = {}, {}
    limit = decimal(r_map.threshold)
    beyond = {"positive": f"r > {limit}", "negative": f"r < \N{MINUS SIGN}{limit}"}
    for sign, found in zip(beyond, figures.find_clusters(r_map.volume, shape), strict=True):
        clusters[sign] = [each for each in found if abs(each.value) > r_map.threshold]
        if not clusters[sign]:
            strongest = f"; the strongest has its peak at r = {decimal(found[0].value)}" if found else ""
            missing[sign] = f"none with {beyond[sign]}{strongest}"
    return clusters, missing


def _write_clusters(
    pictures: Pictures,
    t_map: _Shown | None,
    clusters: Mapping[str, Sequence[Cluster]],
    atlases: Sequence[RegionNames],
) -> dict[str, Any]:
    """Write the table of clusters, and return its rows for the page."""
    tables: dict[str, list[dict[str, Any]]] = {
        sign: [
            {
                "peak_mm": cluster.peak_mm,
                "r": cluster.value,
                "t": t_map.volume.at(cluster.peak_mm) if t_map else None,
                "size_mm3": cluster.size_mm3,
                "regions": [each.at(cluster.peak_mm) for each in atlases],
            }
            for cluster in found
        ]
        for sign, found in clusters.items()
    }
    cells = []
    for sign, table in tables.items():
        for row in table:
            t = "n/a" if row["t"] is None or row["t"] != row["t"] else f"{row['t']:.6g}"
            numbers = [*(f"{x:g}" for x in row["peak_mm"]), f"{row['r']:.6g}", t, f"{row['size_mm3']:g}"]
            cells.append([sign, *numbers, *(name or "n/a" for name in row["regions"])])
    path = pictures.path("clusters.tsv")
    columns = [f"region_{each.name.replace(' ', '_')}" for each in atlases]
    write_table(path, ("sign", "x_mm", "y_mm", "z_mm", "r", "t", "size_mm3", *columns), cells)
    return {**tables, "path": pictures.relative(path)}
