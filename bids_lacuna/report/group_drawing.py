"""The pictures of a group's page, drawn from the group's maps, its matrix and the lesion masks."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.derivatives import FIGURES, sidecar_path
from bids_lacuna.files import hash_file, read_json_object
from bids_lacuna.report import figures
from bids_lacuna.report.figures import LesionShape
from bids_lacuna.report.figures.charts import draw_distributions, draw_similarity
from bids_lacuna.report.maps_on_disk import MappedLesion
from bids_lacuna.report.nulls import draw_chance, find_chance_maps
from bids_lacuna.report.pages import position
from bids_lacuna.report.pictures import Picture, Pictures
from bids_lacuna.text import decimal, percent

STAMP = (
    "Descriptive: such maps resemble a property of the connectome, whatever the symptom; "
    "only a contrast with other lesions allows an inference."
)
"""Printed on each picture of network maps, and below it."""

OF_LESIONS = "Descriptive: where the lesions of this group are, not what causes their symptoms."
"""Printed on pictures of the lesions themselves, and below them."""

NEARLY_EVERYWHERE = 0.99
"""Fraction of voxels above which an overlap of all lesions is told in a sentence: its picture has one colour."""

SHEET = 50
"""Tiles in one file: thousands of files would be slow on a computing cluster's disk."""


@dataclass(frozen=True)
class Tile:
    """The small picture of a lesion, part of a sheet."""

    sheet: str
    """Path relative to the output's root."""
    top: int
    """Pixels above the tile in its sheet."""
    width: int
    height: int
    alt: str


@dataclass
class Row:
    """The page's data on one lesion."""

    name: str
    participant: str
    page: str
    """Path of the participant's page relative to the folder of the group's page; "" if there is none."""
    anchor: str
    """HTML id of the lesion's section on that page."""
    volume_ml: float
    coverage: float
    side: str
    n_subjects: int
    peaks: Mapping[str, tuple[float, tuple[float, float, float]]]
    """Peak value of r and of t, and its position in mm."""
    r_with_mean: float
    cluster_position: int
    is_outlier: bool
    remarks: tuple[str, ...] = ()
    """What a person should look at in the mask, by the group's table."""
    tile: Tile | None = None
    why_no_tile: str = ""

    @property
    def to_look_at(self) -> list[str]:
        """What a reader should look at, in a few words each."""
        notes = list(self.remarks)
        if self.is_outlier:
            notes.append("outlier")
        if self.why_no_tile:
            notes.append(self.why_no_tile)
        return notes


@dataclass(frozen=True)
class GroupPart:
    """A map or chart of the group on its page."""

    heading: str
    picture: Picture | None
    sentence: str = ""
    """In place of a picture that would have one colour."""


def attempt(problems: list[str], heading: str, draw: Callable[..., Picture | str], *arguments: str) -> GroupPart:
    """Draw a picture, or add a sentence to the problems if it cannot be drawn."""
    try:
        drawn = draw(*arguments)
        return GroupPart(heading, None, drawn) if isinstance(drawn, str) else GroupPart(heading, drawn)
    except (OSError, ValueError) as error:
        problems.append(f"a picture could not be drawn: {error}.")
        return GroupPart(heading, None)
    finally:
        # matplotlib's figures are reference cycles.
        gc.collect()


class GroupDrawing:
    """Draws the pictures of a group; `problems` has a sentence for each that cannot be drawn."""

    def __init__(self, output_dir: Path, group: Mapping[str, Any], rows: Sequence[Row]) -> None:
        self.problems: list[str] = []
        self._output_dir = output_dir
        self._group = group
        self._rows = rows
        self.kind = "seed" if group.get("Seeds") else "lesion"
        self._lesions = f"{len(rows)} {self.kind}" + ("" if len(rows) == 1 else "s")
        self._stamp = OF_LESIONS.replace("lesion", self.kind)
        self.pictures = Pictures(output_dir, output_dir / FIGURES / "group")
        self._thresholds = self._read_thresholds()
        (output_dir / FIGURES).mkdir(exist_ok=True)

    @property
    def thresholds(self) -> list[float]:
        """Thresholds of the network overlaps, lowest first."""
        return sorted({abs(threshold) for threshold in self._thresholds.values()})

    def _read_thresholds(self) -> dict[str, float]:
        """Read the signed threshold of each network overlap, by the map's key."""
        thresholds = {}
        for key, name in self._group["Maps"].items():
            if key.startswith("network") and key.endswith("_share"):
                sidecar = read_json_object(sidecar_path(self._output_dir / name))
                thresholds[key] = float(sidecar["Threshold"])
        return thresholds

    def draw_maps(self) -> list[GroupPart]:
        """Draw slices of the maps: of the overlap of lesions, of the mean, and of each network overlap."""
        maps = [
            attempt(self.problems, f"{self.kind.capitalize()} overlap", self._draw_lesions),
            attempt(self.problems, "Mean r", self._draw_mean),
        ]
        for key, threshold in sorted(self._thresholds.items(), key=lambda item: (abs(item[1]), -item[1])):
            beyond = f"t {'>' if threshold > 0 else '<'} {decimal(threshold)}"
            maps.append(attempt(self.problems, f"Network overlap, {beyond}", self._draw_network, key, beyond))
        if chance := find_chance_maps(self._output_dir, self._group):
            draw = partial(draw_chance, self.pictures, chance)
            maps.append(attempt(self.problems, "Against lesions at chance places", draw))
        return maps

    def _draw_lesions(self) -> Picture:
        n = len(self._rows)
        volume = figures.read_map(self._output_dir / self._group["Maps"]["lesions_n"])
        facts = figures.measure_map(volume, 0)
        path = self.pictures.path("lesions.png")
        title = f"Number of {self.kind}s out of {n}, and percentage"

        def write(count: float) -> str:
            return f"{count:.0f}\n({percent(count / n)})"

        figures.draw_overlap(path, volume, whole_ticks(facts.maximum), f"{self.kind}s", write, (title, self._stamp))
        what = f"{title}: at most {decimal(facts.maximum)} ({percent(facts.maximum / n)})"
        what = f"{what} at {position(facts.maximum_mm)} mm. {self._describe_counting()}"
        return self.pictures.add_slices(f"{self.kind.capitalize()} overlap", path, f"{what} {self._stamp}")

    def _describe_counting(self) -> str:
        """Describe how much a lesion counts in a voxel: the number of lesions need not be whole."""
        if self._group.get("LesionWeighting") == "binary":
            return f"A {self.kind} counts as 1 in each voxel of which it covers at least half."
        fraction = "the fraction of the voxel that it covers"
        if self._group.get("LesionThreshold") is not None:
            fraction = "its mean probability there"
        return f"In each voxel, a {self.kind} counts as {fraction}, so the number need not be whole."

    def _draw_mean(self) -> Picture:
        volume = figures.read_map(self._output_dir / self._group["Maps"]["mean_r"])
        threshold = figures.strongest_tenth_threshold(volume)
        facts = figures.measure_map(volume, threshold)
        path = self.pictures.path("mean-r.png")
        above = f"|mean r| > {decimal(threshold)}, about the strongest tenth of all voxels"
        title = f"Mean r of {self._lesions}, where {above}"
        figures.draw_map(path, volume, threshold, "r", title=(title, STAMP))
        what = (
            f"{title}; red is positive, blue negative. Lowest {decimal(facts.minimum)} at "
            f"{position(facts.minimum_mm)} mm, highest {decimal(facts.maximum)} at {position(facts.maximum_mm)} mm. "
            f"A picture of the mean Fisher z, the map for statistics, would look the same: "
            f"{self._group['Maps']['mean_z']}"
        )
        return self.pictures.add_slices("Mean r", path, f"{what}. {STAMP}")

    def _draw_network(self, key: str, beyond: str) -> Picture | str:
        volume = figures.read_map(self._output_dir / self._group["Maps"][key])
        everywhere = np.mean(volume.values[np.isfinite(volume.values)] == 1)
        in_all = f"all {self._lesions} have {beyond} in {percent(everywhere)} of the voxels"
        if everywhere >= NEARLY_EVERYWHERE:
            return f"Not drawn, since {in_all}."
        facts = figures.measure_map(volume, 0)
        if not facts.n_above:
            return f"Not drawn, since no {self.kind} has {beyond} in any voxel."
        path = self.pictures.path(f"{key.removesuffix('_share')}.png")
        title = f"Fraction of the {self._lesions} with {beyond}"
        figures.draw_overlap(path, volume, (0, 0.25, 0.5, 0.75, 1), "fraction", percent, (title, STAMP))
        most = in_all if everywhere else f"at most {percent(facts.maximum)}, at {position(facts.maximum_mm)} mm"
        what = f"{title}: {most}. In each voxel, {self.kind}s whose t is undefined there are left out. {STAMP}"
        return self.pictures.add_slices(f"Network overlap, {beyond}", path, what)

    def draw_similarity(self) -> GroupPart:
        """Draw the matrix of correlations between r-maps, in clustering order."""
        return attempt(self.problems, "Similarity of the maps", self._draw_similarity)

    def _draw_similarity(self) -> Picture:
        n = len(self._rows)
        matrix = np.loadtxt(
            self._output_dir / self._group["SimilarityMatrix"],
            np.float32,
            comments=None,
            delimiter="\t",
            skiprows=1,
            usecols=range(1, n + 1),
            ndmin=2,
        )
        order = np.argsort([row.cluster_position for row in self._rows])
        path = self.pictures.path("similarity.png")
        title = f"Spatial correlation between the r-maps of {self._lesions}, in clustering order"
        names = [self._rows[number].name for number in order]
        draw_similarity(path, matrix[np.ix_(order, order)], names, (title, STAMP))
        pairs = matrix[np.triu(np.ones((n, n), bool), 1)]
        between = f"; r between two {self.kind}s is {describe_range(pairs)}" if pairs.size else ""
        what = f"{title}{between}. {self._group['Clustering']}. {STAMP}"
        return self.pictures.add("Similarity of the maps", path, f"Matrix. {what}", what)

    def draw_distributions(self) -> GroupPart:
        """Draw histograms of volume and coverage."""
        return attempt(self.problems, "Volume and coverage", self._draw_distributions)

    def _draw_distributions(self) -> Picture:
        volumes_ml = [row.volume_ml for row in self._rows]
        coverages = [row.coverage for row in self._rows]
        path = self.pictures.path("distributions.png")
        title = f"Volume and coverage of {self._lesions}"
        draw_distributions(path, volumes_ml, [100 * coverage for coverage in coverages], (title, self._stamp))
        of_coverage = describe_range(coverages, percent)
        what = f"Volume is {describe_range(volumes_ml)} mL, coverage by the connectome {of_coverage}."
        caption = f"{what} The volume axis is logarithmic. {self._stamp}"
        return self.pictures.add(title, path, f"Histograms. {what} {self._stamp}", caption)

    def draw_tiles(self, lesions: Sequence[MappedLesion | None]) -> None:
        """Draw a small picture of each lesion, many per file, and set each row's `tile`."""
        for start in range(0, len(lesions), SHEET):
            self._draw_sheet(start // SHEET + 1, self._rows[start : start + SHEET], lesions[start : start + SHEET])
        missing = [row for row in self._rows if not row.tile]
        if missing:
            self.problems.append(
                f"{len(missing)} of the {self._lesions} could not be drawn, for example {missing[0].name}: "
                f"{missing[0].why_no_tile}."
            )

    def _draw_sheet(self, number: int, rows: Sequence[Row], lesions: Sequence[MappedLesion | None]) -> None:
        shapes: list[tuple[Row, LesionShape]] = []
        for row, lesion in zip(rows, lesions, strict=True):
            try:
                shapes.append((row, _read_shape(lesion)))
            except (OSError, ValueError) as error:
                row.why_no_tile = str(error)
        if not shapes:
            return
        path = self.pictures.path(f"tiles-{number:03d}.png")
        width, height = figures.draw_tiles(path, [shape for _, shape in shapes])
        for row_in_sheet, (row, shape) in enumerate(shapes):
            where = position(shape.centre_mm)
            alt = f"Three slices of the MNI template through {where} mm, with the {self.kind} in red"
            row.tile = Tile(self.pictures.relative(path), row_in_sheet * height, width, height, alt)


def whole_ticks(maximum: float) -> list[int]:
    """Return up to five whole numbers from 0 for a colour bar, the last of them not below the maximum."""
    return sorted({round(tick) for tick in np.linspace(0, max(1, ceil(maximum - 1e-6)), 5).tolist()})


def describe_range(numbers: Sequence[float] | np.ndarray, write: Callable[[float], str] = decimal) -> str:
    """Describe numbers for people by the lowest, the highest and the median."""
    low, middle, high = np.quantile(numbers, (0, 0.5, 1))
    return f"{write(low)} to {write(high)} (median {write(middle)})"


def _read_shape(lesion: MappedLesion | None) -> LesionShape:
    """Read a lesion's mask, provided that it has not changed since it was mapped."""
    if lesion is None:
        raise FileNotFoundError("the sidecar of its r-map is missing or damaged")
    if hash_file(lesion.mask) != lesion.sidecar.get("LesionHash"):
        raise ValueError("its mask has changed since it was mapped")
    return figures.read_lesion(*lesion.shown_lesion, lesion.kind)
