"""A page for each participant, made from what is on disk: maps, sidecars, lesion masks and the logs of the runs."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from glob import escape
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bids_lacuna.citations import references
from bids_lacuna.derivatives.history import TABLE, Outcome, Run, read_outcomes
from bids_lacuna.files import hash_file, read_json_object, renamed_when_whole
from bids_lacuna.lesion import LOW_COVERAGE, name_side
from bids_lacuna.report.methods import combine
from bids_lacuna.report.pages import anchor, decimal, place, write_page
from bids_lacuna.runtime.processes import prepare_worker
from bids_lacuna.text import format_bytes

if TYPE_CHECKING:
    from bids_lacuna.derivatives.records import LesionRecord
    from bids_lacuna.report.figures import Cluster, LesionShape, MapFacts, Volume

logger = logging.getLogger(__name__)

WORKER_BYTES = 600 * 2**20
"""Of each process that writes pages, at most: see test_memory."""

MOST_WORKERS = 4
"""With more, the disk and the other jobs of the machine would wait."""

MEMORY_SHARE = 8
"""Workers after the first may take one part in this many of the memory."""

FEW_CONNECTOME_SUBJECTS = 30
"""Below it, maps of other samples of healthy people would look different."""

TOLD_OTHERWISE = ("sub", "ses", "space", "res", "label", "stat", "desc")
"""Entities of maps that all lesions of a page have alike, or that a heading tells in other words."""


@dataclass(frozen=True)
class MappedLesion:
    """The maps of one lesion in one connectome, on disk."""

    name: str
    """What the names of its maps have in common, without the statistic."""
    entities: Mapping[str, str]
    """Of the maps' names."""
    sidecar: Mapping[str, Any]
    """Of the r-map."""
    r_map: Path
    t_map: Path | None
    n_map: Path | None
    binary_maps: Mapping[float, Path]
    """By their thresholds, the lowest first."""
    source: tuple[str, str]
    """Of the mask: its dataset's name in BIDS URIs, and the path in it."""
    mask: Path
    """Where it should be."""


PAGE_SECONDS = 2.0
"""That a process takes for the part of a page that is one lesion's."""

PAGE_BYTES = 2**21
"""On disk, of that part with its pictures and its viewer."""


@dataclass(frozen=True)
class Picture:
    """An image of a page."""

    name: str
    path: str
    """From the output's root."""
    alt: str
    caption: str
    width: int
    """Pixels."""
    height: int


@dataclass(frozen=True)
class Part:
    """Pictures below one heading."""

    heading: str
    pictures: list[Picture]


@dataclass
class Section:
    """What a page tells of one lesion."""

    heading: str
    anchor: str
    volume_ml: float | None
    coverage_percent: float | None
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


def write_report(output_dir: Path, label: str) -> list[str]:
    """Write the page of one participant and its pictures, anew, from what is on disk.

    Returns
    -------
    list of str
        What could not be drawn, in sentences; the page says so, too.
    """
    outcomes = [outcome for outcome in read_outcomes(output_dir) if outcome.row.get("sub") == label]
    lesions = find_mapped_lesions(output_dir, label)
    sections = [_describe_lesion(output_dir, label, lesion) for lesion in lesions]
    origins = [_origin(lesion, outcomes) for lesion in lesions]
    runs = [origin.run for origin in origins if origin and origin.run]
    methods = combine(runs)
    write_page(
        output_dir / f"sub-{label}.html",
        "participant.html.jinja",
        label=label,
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        sections=sections,
        failures=_failures(outcomes),
        runs=_describe_runs(output_dir, sections, origins),
        methods=methods.split("\n\n") if methods else [],
        references=references(methods, runs[-1].version) if runs else "",
    )
    return [f"{section.heading}: {error}" for section in sections for error in section.errors]


def find_participants(output_dir: Path) -> list[str]:
    """List the labels of all participants that have maps, or a row in a table of outcomes."""
    with_maps = {path.name.removeprefix("sub-") for path in output_dir.glob("sub-*") if path.is_dir()}
    in_tables = {
        outcome.row["sub"] for outcome in read_outcomes(output_dir) if outcome.row.get("sub", "n/a") != "n/a"
    }
    return sorted(with_maps | in_tables)


def find_mapped_lesions(output_dir: Path, label: str) -> list[MappedLesion]:
    """Find the lesions of a participant that have an r-map with a sidecar, in the order of their names.

    Raises
    ------
    ValueError
        dataset_description.json is damaged.
    OSError
        It cannot be read.
    """
    links = read_links(output_dir)
    folder = output_dir / f"sub-{label}"
    found = []
    for path in sorted(folder.rglob("*_stat-r_*_statmap.json")):
        try:
            found.append(read_mapped_lesion(output_dir, path, links))
        except ValueError as error:
            logger.warning("a map is left out of the page: %s", error)
    return found


def read_links(output_dir: Path) -> Mapping[str, Any]:
    """Read where the datasets with the masks are, by their names in BIDS URIs; raises as `find_mapped_lesions`."""
    links = read_json_object(output_dir / "dataset_description.json").get("DatasetLinks", {})
    return links if isinstance(links, dict) else {}


def read_mapped_lesion(output_dir: Path, r_sidecar: Path, links: Mapping[str, Any]) -> MappedLesion:
    """Find the maps of one lesion.

    Parameters
    ----------
    r_sidecar
        Of its r-map.
    links
        As from `read_links`.

    Raises
    ------
    ValueError
        The sidecar is damaged.
    OSError
        It cannot be read.
    """
    sidecar = read_json_object(r_sidecar)
    before, after = r_sidecar.name.removesuffix("_statmap.json").rsplit("_stat-r_", 1)
    t_map, n_map = (r_sidecar.with_name(f"{before}_stat-{stat}_{after}_statmap.nii.gz") for stat in "tn")
    dataset, _, source = str((sidecar.get("Sources") or [""])[0]).removeprefix("bids:").partition(":")
    return MappedLesion(
        f"{before}_{after}",
        dict(part.split("-", 1) for part in f"{before}_{after}".split("_") if "-" in part),
        sidecar,
        _image_of(r_sidecar),
        t_map if t_map.exists() else None,
        n_map if n_map.exists() else None,
        _find_binary_maps(r_sidecar, before, after, sidecar.get("ConnectomeName")),
        (dataset, source),
        (output_dir / str(links.get(dataset, dataset)) / source).resolve(),
    )


def page_anchor(lesion: MappedLesion) -> str:
    """Name the place of a lesion's section in its participant's page."""
    return anchor(f"lesion-{lesion.name}")


def _find_binary_maps(r_sidecar: Path, before: str, after: str, connectome: object) -> dict[float, Path]:
    maps = {}
    for path in r_sidecar.parent.glob(f"{escape(before)}_stat-t_{escape(after)}T*_mask.json"):
        sidecar = read_json_object(path)
        # The name alone may be that of a connectome whose own name goes on with a T.
        if sidecar.get("ConnectomeName") == connectome and isinstance(sidecar.get("Threshold"), int | float):
            maps[float(sidecar["Threshold"])] = _image_of(path)
    return dict(sorted(maps.items()))


def _image_of(sidecar: Path) -> Path:
    return sidecar.with_name(sidecar.name.removesuffix(".json") + ".nii.gz")


def _origin(lesion: MappedLesion, outcomes: Sequence[Outcome]) -> Outcome | None:
    """Find the newest row that tells of a lesion's mapping."""
    name = lesion.sidecar.get("ConnectomeName")
    for outcome in reversed(outcomes):
        same_connectome = outcome.run is None or outcome.run.connectome_name == name
        if outcome.status == "done" and outcome.mask == lesion.source and same_connectome:
            return outcome
    return None


def _failures(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """Tell which masks failed, and have not been mapped since."""
    newest = {}
    for outcome in outcomes:
        newest[outcome.mask, outcome.run.connectome_name if outcome.run else ""] = outcome
    return [
        {"mask": outcome.mask[1], "reason": outcome.row.get("reason", "n/a")}
        for outcome in newest.values()
        if outcome.status == "failed"
    ]


def _describe_runs(
    output_dir: Path, sections: Sequence[Section], origins: Sequence[Outcome | None]
) -> list[dict[str, Any]]:
    """Tell what was run, once for each run, with the lesions that were mapped in it."""
    headings: dict[Path, list[str]] = {}
    runs: dict[Path, Run] = {}
    for section, origin in zip(sections, origins, strict=True):
        if origin is not None and origin.run is not None:
            headings.setdefault(origin.log_dir, []).append(section.heading)
            runs[origin.log_dir] = origin.run
    return [
        {
            "headings": headings[log_dir],
            "rows": _run_rows(run),
            "command": run.command,
            "table": (log_dir / TABLE).relative_to(output_dir).as_posix(),
        }
        for log_dir, run in runs.items()
    ]


def _run_rows(run: Run) -> list[tuple[str, str]]:
    sizes = " \N{MULTIPLICATION SIGN} ".join(f"{size:g}" for size in run.voxel_sizes_mm)
    thresholds = ", ".join(f"|t| > {threshold:g}" for threshold in run.t_thresholds) or "none"
    so_far = "" if run.finished else ", up to this participant's batch"
    taken = "not known" if run.seconds is None else f"{timedelta(seconds=round(run.seconds))} (h:mm:ss){so_far}"
    used = "not known" if run.peak_bytes is None else f"{format_bytes(run.peak_bytes)}{so_far}"
    return [
        ("Connectome", f"{run.connectome_name}, in {run.connectome_space}"),
        ("Connectome subjects", str(run.n_connectome_subjects)),
        ("Connectome grid", f"{run.n_voxels} voxels of {sizes} mm; up to {run.n_timepoints} timepoints"),
        ("Connectome hash", run.connectome_hash),
        ("Lesion weighting", run.weighting),
        ("Thresholds", thresholds),
        ("Started", run.started.replace("T", " ")),
        ("Run time", taken),
        ("Memory planned", f"{format_bytes(run.planned_bytes)}, of {format_bytes(run.available_bytes)}"),
        ("Memory used", used),
        ("Batches", f"{run.n_lesions} lesions, up to {run.batch_size} in one pass, on {run.n_threads} threads"),
        ("bids-lacuna", run.version),
        ("Software", ", ".join(f"{name} {version}" for name, version in run.software.items())),
    ]


def _describe_lesion(output_dir: Path, label: str, lesion: MappedLesion) -> Section:
    """Draw one lesion and its maps, and put them into words. What fails is written into its section alone."""
    heading = _heading(lesion)
    volume_mm3, coverage = (_number(lesion.sidecar.get(key)) for key in ("LesionVolume", "LesionCoverage"))
    n_subjects = lesion.sidecar.get("NumberOfConnectomeSubjects")
    section = Section(
        heading,
        page_anchor(lesion),
        None if volume_mm3 is None else volume_mm3 / 1000,
        None if coverage is None else 100 * coverage,
        n_subjects if isinstance(n_subjects, int) else None,
    )
    maps = [lesion.r_map, lesion.t_map, lesion.n_map, *lesion.binary_maps.values()]
    section.files = [path.relative_to(output_dir).as_posix() for path in maps if path]
    section.warnings = _warn(lesion, coverage, section.n_subjects)
    section.facts = [
        ("Volume", f"{decimal(section.volume_ml)} mL"),
        ("Coverage", f"{decimal(section.coverage_percent)} % lie in the connectome's mask"),
        ("Connectome subjects", f"{n_subjects}{', fewer in some voxels: see the n-map' if lesion.n_map else ''}"),
    ]
    try:
        _draw(output_dir, output_dir / f"sub-{label}" / "figures", lesion, section)
    # The border of a lesion's report: whatever is wrong with its files, the page is written, and the others' too.
    except Exception as error:
        logger.debug("traceback of the failure below", exc_info=True)
        section.errors.append(f"pictures could not be drawn ({type(error).__name__}: {error})")
    return section


def _heading(lesion: MappedLesion) -> str:
    """Name a lesion by what tells it from the others of a page: "Session 1: lesion, in connectome GSP1000"."""
    connectome = str(lesion.sidecar.get("ConnectomeName", ""))
    label = lesion.entities.get("label", "lesion")
    words = ["lesion" if label == "lesion" else f"lesion labelled {label}"]
    words += [f"{entity} {value}" for entity, value in lesion.entities.items() if entity not in TOLD_OTHERWISE]
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
            f"only {100 * coverage:.0f} % of the lesion lie inside the connectome's mask; the maps describe that."
        )
    if n_subjects == 1:
        found.append(
            "the connectome has one subject: t is not defined, and the r-map is that of a single person's brain."
        )
    elif n_subjects is not None and n_subjects < FEW_CONNECTOME_SUBJECTS:
        found.append(
            f"the connectome has {n_subjects} subjects only: maps from another sample of healthy people would differ "
            "noticeably."
        )
    space = str(lesion.sidecar.get("SpatialReference", ""))
    if not space.startswith("MNI152"):
        found.append(
            f"the maps are in space {space or 'unknown'}: the background of the pictures is in MNI152 space."
        )
    return found


def _draw(output_dir: Path, folder: Path, lesion: MappedLesion, section: Section) -> None:
    """Draw all pictures of a lesion, and add what they show to its section."""
    # Not at the top: the process that maps hands its pages to others, and has no need of nilearn's 200 MB.
    from bids_lacuna.report import figures

    folder.mkdir(parents=True, exist_ok=True)
    shape = _read_lesion(lesion, section)
    pictures = Pictures(output_dir, folder / lesion.name)
    if shape:
        section.facts += _describe_shape(shape, section)
        path = pictures.path("lesion.png")
        figures.draw_lesion(path, shape)
        alt = (
            f"Slices of the MNI template with the lesion in red, around {place(shape.centre_mm)} mm; "
            f"side: {section.side}"
        )
        caption = "The lesion, in red. The middle slices go through its centre."
        section.parts.append(Part("Lesion", [pictures.add("Lesion on the template", path, alt, caption)]))
    r_map = figures.read_map(lesion.r_map)
    t_map = figures.read_map(lesion.t_map) if lesion.t_map else None
    shown = [("r", r_map, figures.strongest_share_threshold(r_map), "the strongest tenth of all voxels")]
    if t_map:
        given = next(iter(lesion.binary_maps), None)
        threshold, why = (
            (given, "the threshold given") if given else (figures.strongest_share_threshold(t_map), shown[0][3])
        )
        shown.append(("t", t_map, threshold, why))
    for stat, volume, threshold, why in shown:
        _draw_map(pictures, section, stat, volume, threshold, why, shape)
    for threshold, map_path in lesion.binary_maps.items():
        _draw_binary_map(pictures, section, threshold, figures.read_map(map_path), shape)
    _write_viewer(pictures, section, shown, shape)
    section.has_t = t_map is not None
    section.clusters = _write_clusters(pictures, r_map, t_map, shape)
    # matplotlib's figures hold themselves in circles: 4 MB a lesion.
    gc.collect()


def _read_lesion(lesion: MappedLesion, section: Section) -> LesionShape | None:
    from bids_lacuna.report import figures

    try:
        shape = figures.read_lesion(lesion.mask, lesion.sidecar.get("LesionThreshold"))
    except (OSError, ValueError) as error:
        section.warnings.append(f"the lesion is not drawn, since its mask cannot be read: {error}.")
        return None
    if hash_file(lesion.mask) != lesion.sidecar.get("LesionHash"):
        section.warnings.append("the mask has been changed since it was mapped: the maps are of the old one.")
    return shape


def _describe_shape(shape: LesionShape, section: Section) -> list[tuple[str, str]]:
    left = shape.left_share
    section.side = name_side(left, 1 - left)
    if section.side == "both":
        section.side += f" (left {100 * left:.0f} %)"
    extents = zip("xyz", shape.low_mm, shape.high_mm, strict=True)
    return [
        ("Side", section.side),
        ("Centre (mm)", place(shape.centre_mm)),
        ("Extent (mm)", "; ".join(f"{axis} {decimal(low)} to {decimal(high)}" for axis, low, high in extents)),
    ]


class Pictures:
    """The pictures of one lesion, or of a group: where they lie, and how large they are."""

    def __init__(self, output_dir: Path, stem: Path) -> None:
        """Begin.

        Parameters
        ----------
        output_dir
            Root of the dataset.
        stem
            What the paths of all the pictures begin with.
        """
        self._output_dir = output_dir
        self._stem = stem

    def path(self, kind: str) -> Path:
        """Name a file."""
        return self._stem.with_name(f"{self._stem.name}_{kind}")

    def relative(self, path: Path) -> str:
        """Tell where a file lies, from the output's root."""
        return path.relative_to(self._output_dir).as_posix()

    def add(self, name: str, path: Path, alt: str, caption: str) -> Picture:
        """Describe a picture that was drawn."""
        from PIL import Image

        with Image.open(path) as image:
            width, height = image.size
        return Picture(name, self.relative(path), alt, caption, width, height)


def _draw_map(
    pictures: Pictures,
    section: Section,
    stat: str,
    volume: Volume,
    threshold: float,
    why: str,
    shape: LesionShape | None,
) -> None:
    from bids_lacuna.report import figures

    facts = figures.measure_map(volume, threshold)
    if not facts.n_defined:
        section.warnings.append(f"the {stat}-map has no defined voxel, and is not drawn.")
        return
    section.facts += [
        (f"Highest {stat}", f"{decimal(facts.maximum)} at {place(facts.maximum_mm)} mm"),
        (f"Lowest {stat}", f"{decimal(facts.minimum)} at {place(facts.minimum_mm)} mm"),
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
                    "The strongest voxels along each line of sight, above the same threshold.",
                ),
            ],
        )
    )


def _describe_counts(facts: MapFacts) -> str:
    above, below = (100 * n / facts.n_defined for n in (facts.n_above, facts.n_below))
    return f"{decimal(above)} % of the voxels are above it, {decimal(below)} % below its negative"


def _draw_binary_map(
    pictures: Pictures, section: Section, threshold: float, volume: Volume, shape: LesionShape | None
) -> None:
    from bids_lacuna.report import figures

    path = pictures.path(f"t{threshold:g}".replace(".", "p") + "-mask.png")
    figures.draw_binary_map(path, volume, shape)
    n = int((volume.values > 0).sum())
    caption = f"The {n} voxels with |t| > {threshold:g}, of either sign."
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
    """Write the viewer of the last map that has a defined voxel."""
    from bids_lacuna.report import figures

    for stat, volume, threshold, _ in reversed(shown):
        if threshold == threshold:
            path = pictures.path("viewer.html")
            section.viewer_map = f"{stat}-map"
            figures.write_viewer(path, volume, threshold, f"{stat}-map", shape)
            section.viewer = pictures.relative(path)
            return


def _write_clusters(
    pictures: Pictures, r_map: Volume, t_map: Volume | None, shape: LesionShape | None
) -> dict[str, Any]:
    """Write the table of clusters, and give its rows to the page."""
    from bids_lacuna.report import figures

    positive, negative = figures.find_clusters(r_map, shape)

    def rows(clusters: Iterable[Cluster]) -> list[dict[str, Any]]:
        return [
            {
                "place_mm": cluster.place_mm,
                "r": cluster.value,
                "t": t_map.at(cluster.place_mm) if t_map else None,
                "size_mm3": cluster.size_mm3,
            }
            for cluster in clusters
        ]

    tables = {"positive": rows(positive), "negative": rows(negative)}
    lines = ["\t".join(("sign", "x_mm", "y_mm", "z_mm", "r", "t", "size_mm3"))]
    for sign, table in tables.items():
        for row in table:
            t = "n/a" if row["t"] is None or row["t"] != row["t"] else f"{row['t']:.6g}"
            numbers = [*(f"{x:g}" for x in row["place_mm"]), f"{row['r']:.6g}", t, f"{row['size_mm3']:g}"]
            lines.append("\t".join((sign, *numbers)))
    path = pictures.path("clusters.tsv")
    with renamed_when_whole(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {**tables, "path": pictures.relative(path)}


def participants_with_news(output_dir: Path, records: Iterable[LesionRecord]) -> list[str]:
    """List the participants whose page is due: nothing of theirs is pending, and something happened or none is there.

    Who has lesions in two batches gets the page after the second.
    """
    statuses: dict[str, set[str]] = {}
    for record in records:
        statuses.setdefault(record.mask.entities["sub"], set()).add(record.status)
    return [
        label
        for label, happened in statuses.items()
        if "pending" not in happened and (happened != {"skipped"} or not (output_dir / f"sub-{label}.html").exists())
    ]


def choose_n_workers(available_bytes: int, n_threads: int) -> int:
    """Choose in how many processes pages are written: more where memory and processors are plenty, 0 for little.

    One takes a third of the memory at most.
    """
    if available_bytes < 3 * WORKER_BYTES:
        return 0
    return max(1, min(n_threads, MOST_WORKERS, available_bytes // (MEMORY_SHARE * WORKER_BYTES)))


class ReportPool:
    """Writes pages in processes of their own, which give way to all others; a page that fails stops nothing."""

    def __init__(self, output_dir: Path, n_workers: int) -> None:
        """Prepare to write; no process starts before the first page.

        Parameters
        ----------
        output_dir
            The derivative dataset's root.
        n_workers
            Processes.
        """
        self._output_dir = output_dir
        self._n_workers = n_workers
        self._pool: ProcessPoolExecutor | None = None
        self._pages: dict[str, Future[list[str]]] = {}

    def __enter__(self) -> Self:
        """Enter a block at whose end the processes end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes: after an error without the pages that no process has begun."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, labels: Collection[str]) -> None:
        """Have pages of participants written, those that were not submitted before."""
        for label in labels:
            if f"sub-{label}.html" not in self._pages:
                self.write(f"sub-{label}.html", write_report, label)

    def write(self, page: str, writer: Callable[..., list[str]], *arguments: str) -> None:
        """Have a page written: by a function of the output's root, and of the arguments."""
        self._pages[page] = self._begin(writer, *arguments)

    def _begin(self, writer: Callable[..., list[str]], *arguments: str) -> Future[list[str]]:
        try:
            if self._pool is None:
                # Not forked: a fork would share the locks and the memory of the process that maps.
                self._pool = ProcessPoolExecutor(self._n_workers, get_context("spawn"), _prepare_worker)
            return self._pool.submit(writer, self._output_dir, *arguments)
        # No process can be started, or one was killed: as little a reason to stop as a page that fails.
        except Exception as error:
            failed: Future[list[str]] = Future()
            failed.set_exception(error)
            return failed

    def wait(self) -> int:
        """Wait for all pages, warn of those that lack something, and count those that were written."""
        n_written = 0
        for name, page in self._pages.items():
            try:
                for problem in page.result():
                    logger.warning("%s: %s", name, problem)
                n_written += 1
            # The border of a page: the maps are on disk whatever becomes of it.
            except Exception as error:
                logger.warning("%s could not be written (%s: %s)", name, type(error).__name__, error)
                logger.debug("traceback of the failure above", exc_info=True)
        if self._pages:
            logger.info("pages written: %d, in %s", n_written, self._output_dir)
        return n_written


def _prepare_worker() -> None:
    """Make a process that writes pages a good neighbour."""
    prepare_worker(niceness=10)
    # It keeps a cache of fonts, and warns where the user's home cannot be written to.
    os.environ["MPLCONFIGDIR"] = os.environ["NUMBA_CACHE_DIR"]
    warnings.simplefilter("ignore")
