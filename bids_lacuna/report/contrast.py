"""The page of a test, made from its record, its maps and its design on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bids_lacuna.citations import references
from bids_lacuna.derivatives import FIGURES, sidecar_path
from bids_lacuna.derivatives.dataset import DESCRIPTION
from bids_lacuna.files import read_json_object, read_table
from bids_lacuna.report import figures
from bids_lacuna.report.figures import Cluster, Volume
from bids_lacuna.report.figures.charts import draw_design, draw_prediction, draw_tested
from bids_lacuna.report.group_drawing import attempt
from bids_lacuna.report.methods import describe_test_methods
from bids_lacuna.report.pages import position, write_page
from bids_lacuna.report.parcels import read_region_names
from bids_lacuna.report.pictures import Picture, Pictures
from bids_lacuna.text import decimal, percent

RECORDS = "group_contrast-*_design.json"
"""Pattern of the records of tests in a group's folder."""

STAMP = (
    "Corrected for all voxels by permutation. It shows where lesions are connected in healthy people, in relation to "
    "the tested column, not what is damaged in the patients."
)
"""Printed on each picture of a test, and below it."""

MEASURES = {
    "r": "spatial correlation",
    "r_outside": "spatial correlation outside the lesion",
    "damage": "network damage score",
}
"""Names of the measures of a target network."""

LESIONED = 0.1
"""As in `group.sensitivity`."""


@dataclass(frozen=True)
class TestLink:
    """A test's page, for the page of its group."""

    __test__ = False
    page: str
    """Path relative to the group's folder."""
    contrast: str
    """What is compared with what."""
    n_significant: int


@dataclass(frozen=True)
class TestOutcome:
    """Numbers of the test with the covariates asked for, or of that with or without lesion volume."""

    __test__ = False
    name: str
    threshold: float
    n_significant: int


def page_name(record: Path) -> str:
    """Return the name of the page of a test, by the path of its record."""
    return record.name.replace("_design.json", ".html")


def link_tests(folder: Path) -> list[TestLink]:
    """List the tests in a group's folder; those with a damaged record are left out."""
    links = []
    for path in sorted(folder.glob(RECORDS)):
        try:
            record = read_json_object(path)
            links.append(TestLink(page_name(path), record["Contrast"], record["NumberOfSignificantVoxels"]))
        except (ValueError, KeyError):
            continue
    return links


def write_test_reports(folder: Path) -> list[str]:
    """Write the page of each test in a group's folder; return a sentence for each picture that could not be drawn."""
    problems = []
    for path in sorted(folder.glob(RECORDS)):
        drawing = TestDrawing(folder, read_json_object(path))
        problems += drawing.write(folder / page_name(path))
    return problems


class TestDrawing:
    """Draws the pictures of a test and writes its page; `problems` has a sentence for each that cannot be drawn."""

    __test__ = False

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.problems: list[str] = []
        self._folder = folder
        self._record = record
        # Not group_…: those are removed with the group's own page.
        self._pictures = Pictures(folder, folder / FIGURES / f"contrast-{record['Label']}")
        self._rows = read_table(folder / record["Design"])
        output_dir = folder if (folder / DESCRIPTION).exists() else folder.parent
        self._atlases = read_region_names(output_dir, record)
        self._stat = "z" if "z" in record["Maps"] else "t"
        (folder / FIGURES).mkdir(exist_ok=True)

    def write(self, path: Path) -> list[str]:
        """Write the page, and return the problems."""
        record = self._record
        methods = describe_test_methods(record)
        maps = [attempt(self.problems, "With the covariates asked for", self._draw_result, "")]
        beside = record["Beside"]
        if beside:
            maps.append(
                attempt(
                    self.problems,
                    f"The same {beside['Word']} lesion volume",
                    self._draw_result,
                    f"{beside['Word']}Volume_",
                )
            )
        write_page(
            path,
            "contrast.html.jinja",
            written=f"{datetime.now():%Y-%m-%d %H:%M}",
            record=record,
            stat=self._stat,
            measures=MEASURES,
            outcomes=self._list_outcomes(),
            maps=maps,
            clusters=self._find_clusters(),
            atlases=self._atlases,
            lesioned=attempt(self.problems, "Where patients are lesioned", self._draw_lesioned),
            conjunctions=self._list_conjunctions(),
            prediction=attempt(self.problems, "Leave-one-out", self._draw_prediction),
            accuracies=self._list_accuracies(),
            tested=attempt(self.problems, record["Column"], self._draw_tested),
            design=attempt(self.problems, "Design", self._draw_design),
            facts=_describe_origin(record),
            files=self._list_files(),
            problems=self.problems,
            methods=[methods],
            references=references(methods, str(record["SoftwareVersion"])),
        )
        return self.problems

    def _read(self, key: str) -> Volume:
        return figures.read_map(self._folder / self._record["Maps"][key])

    def _threshold(self, key: str) -> float:
        return float(self._record["Beside"]["Threshold"] if key else self._record["Threshold"])

    def _draw_result(self, key: str) -> Picture | str:
        """Draw t or z where it is significant; or else the strongest tenth, which says that nothing is."""
        stat = self._stat
        volume, threshold = self._read(f"{key}{stat}"), self._threshold(key)
        facts = figures.measure_map(volume, threshold)
        extremes = (
            f"Lowest {stat} {decimal(facts.minimum)} at {position(facts.minimum_mm)} mm, highest "
            f"{decimal(facts.maximum)} at {position(facts.maximum_mm)} mm; |{stat}| above {decimal(threshold)} is "
            "significant"
        )
        stamp = STAMP
        if facts.n_above + facts.n_below:
            title = f"{stat} of {self._record['Column']}, where |{stat}| > {decimal(threshold)}: p "
            title += f"\N{LESS-THAN OR EQUAL TO} {self._record['Alpha']:g}, corrected"
        else:
            threshold = figures.strongest_tenth_threshold(volume)
            title = f"{stat} of {self._record['Column']}: NO voxel is significant. The strongest tenth is shown"
            stamp = "None of what is shown is significant: it may be chance."
        lesioned = self._read("lesioned")
        region = Volume(lesioned.values >= LESIONED, lesioned.affine)
        outlined = ""
        if region.values.any():
            outlined = f" Outlined in green: at least {percent(LESIONED)} of the patients are lesioned."
        path = self._pictures.path(f"{key}{stat}.png")
        figures.draw_map(path, volume, threshold, stat, (title, stamp + outlined), region)
        what = f"{title}; red is positive, blue negative. {extremes}. {stamp}{outlined}"
        return self._pictures.add_slices(stat, path, what)

    def _draw_lesioned(self) -> Picture | str:
        volume = self._read("lesioned")
        facts = figures.measure_map(volume, 0)
        if not facts.maximum >= LESIONED:
            return f"Nowhere are {percent(LESIONED)} of the patients lesioned: at most {percent(facts.maximum)}."
        path = self._pictures.path("lesioned.png")
        title = f"Fraction of the {self._record['NumberOfPatients']} patients who are lesioned"
        sentence = (
            f"Where it is {percent(LESIONED)} or more, a lesion's correlation with itself and its neighbours may be "
            "what differs between patients."
        )
        ticks = [0, LESIONED, *(tick for tick in (0.25, 0.5, 1) if tick <= facts.maximum), facts.maximum]
        figures.draw_overlap(path, volume, sorted(set(ticks)), "fraction", percent, (title, sentence))
        what = f"{title}: at most {percent(facts.maximum)}, at {position(facts.maximum_mm)} mm. {sentence}"
        return self._pictures.add_slices("Lesions", path, what)

    def _column(self, name: str) -> list[float]:
        return [float(row[name]) for row in self._rows]

    def _draw_prediction(self) -> Picture:
        record = self._record
        path = self._pictures.path("prediction.png")
        title = "Similarity of each patient's map with the effect map of all others"
        sentence = "Each patient is left out once; above 0, the map resembles the effect."
        labels = record["Column"], "spatial correlation"
        draw_prediction(
            path, self._column("similarity"), self._column("tested"), record["Levels"], labels, (title, sentence)
        )
        lines = ", with each group's median" if record["Levels"] else ""
        return self._pictures.add("Leave-one-out", path, f"Chart. {title}{lines}.", f"{title}{lines}. {sentence}")

    def _draw_tested(self) -> Picture:
        record = self._record
        path = self._pictures.path("tested.png")
        title = f"Patients by {record['Column']}"
        draw_tested(path, self._column("tested"), record["Levels"], record["Column"], (title, ""))
        return self._pictures.add("Patients", path, f"Histogram. {title}.", f"{title}.")

    def _draw_design(self) -> Picture:
        names = [name for name in self._rows[0] if name not in ("participant_id", "session_id", "similarity")]
        columns = {self._record["Column"] if name == "tested" else name: self._column(name) for name in names}
        path = self._pictures.path("design.png")
        title = f"Design: {len(self._rows)} patients, {len(columns)} columns"
        draw_design(path, columns, (title, "Each column from its smallest (black) to its largest value (white)."))
        what = f"{title}: {', '.join(columns)}. Each column from its smallest (black) to its largest value (white)."
        return self._pictures.add("Design", path, f"Matrix. {what}", what)

    def _find_clusters(self) -> dict[str, list[Cluster]]:
        """Find the clusters of significant voxels by sign."""
        try:
            positive, negative = figures.find_clusters_beyond(self._read(self._stat), self._threshold(""))
        except (OSError, ValueError) as error:
            self.problems.append(f"clusters could not be found: {error}.")
            return {}
        return {"Positive": positive, "Negative": negative}

    def _list_outcomes(self) -> list[TestOutcome]:
        record, beside = self._record, self._record["Beside"]
        found = [
            TestOutcome("with the covariates asked for", record["Threshold"], record["NumberOfSignificantVoxels"])
        ]
        if beside:
            name = f"the same {beside['Word']} lesion volume"
            found.append(TestOutcome(name, beside["Threshold"], beside["NumberOfSignificantVoxels"]))
        return found

    def _list_conjunctions(self) -> list[tuple[float, float, int]]:
        """Return threshold of t, smallest sensitivity and number of voxels of each conjunction with the test."""
        found = []
        for key, name in self._record["Maps"].items():
            if key.startswith("conjunction_"):
                sidecar = read_json_object(sidecar_path(self._folder / name))
                keys = ("TThreshold", "SmallestSensitivity", "NumberOfConjunctionVoxels")
                threshold, smallest, n = (sidecar[key] for key in keys)
                found.append((float(threshold), float(smallest), int(n)))
        return found

    def _list_files(self) -> list[str]:
        design = self._record["Design"]
        tables = [design, design.replace("_design.tsv", "_targets.tsv")] if self._record.get("Targets") else [design]
        return [name for table in tables for name in (table, sidecar_path(Path(table)).name)] + [
            *self._record["Maps"].values()
        ]

    def _list_accuracies(self) -> Sequence[tuple[str, Mapping[str, float]]]:
        found = self._record["LeaveOneOut"]
        alone = " and ".join(found["Predictors"]) + " alone"
        names = {"Maps": "the effect map", "Baseline": alone, "Difference": "difference"}
        return [(words, found[name]) for name, words in names.items() if found[name]]


def _describe_origin(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of what the test was made with."""
    n = f"{record['NumberOfPermutations']}{', all that are distinct' if record['AllPermutations'] else ''}"
    facts = [
        ("Model", record["Model"]),
        ("Statistic", record["Statistic"]),
        *(
            [("Variance", f"{record['Levels'][0]} relative to {record['Levels'][1]}: {decimal(ratio)}")]
            if (ratio := record.get("VarianceRatio"))
            else []
        ),
        ("Patients", str(record["NumberOfPatients"])),
        ("Permutations", f"{n}; random seed {record['RandomSeed']}"),
        (
            "Voxels",
            f"{record['NumberOfVoxels']}, {percent(record['FractionOfVoxels'])} of those that any map has",
        ),
        ("Maps", f"{record['InputStatistic']}, in {record['SpatialReference']}"),
        ("Connectome", record["ConnectomeName"]),
        ("Left out", ", ".join(record["Dropped"]) or "nobody"),
        ("Tested by bids-lacuna", str(record["SoftwareVersion"])),
    ]
    for key, name in {"EffectSimilarity": "effect", "LogpSimilarity": "\N{MINUS SIGN}log10 p"}.items():
        if key in record:
            listed = ", ".join(f"{of.replace('_', ' ')} {decimal(r)}" for of, r in record[key].items())
            facts.append((f"Spatial r of the {name} with the connectome", listed))
    return facts
