"""Files of a test: maps with sidecars, the design as a table, and a record of the result, which lists the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_lacuna._version import __version__
from bids_lacuna.derivatives import FIGURES, number_label, sidecar_path
from bids_lacuna.files import hash_file, write_json, write_table
from bids_lacuna.group.cohort import GroupLesion, describe_settings
from bids_lacuna.group.contrast import GroupTest, count_significant, effect_of, logp_of
from bids_lacuna.group.design import VOLUME, Design
from bids_lacuna.group.inference import Inference
from bids_lacuna.group.outcomes import Outcome
from bids_lacuna.group.prediction import Accuracy
from bids_lacuna.group.sensitivity import LESIONED, Sensitivity
from bids_lacuna.group.writer import format_cell, save_like
from bids_lacuna.mapping import Summary
from bids_lacuna.provenance import Provenance
from bids_lacuna.targets import Target

Array = np.ndarray

RECORDS = "group_contrast-*_design.json"
"""Pattern of the records; each is also the data dictionary of the table of the same name."""

OUTCOMES = "_targets.tsv"
"""End of the name of the table of outcomes, in place of a record's."""

STATISTICS = {
    "pooled": "Student's t with one variance",
    "welch": "Aspin and Welch's v, each group has its variance; as z, by its degrees of freedom at each voxel",
}

INTERPRETATION = (
    "Where patients' lesions are connected in healthy people, in relation to the tested column; not what is damaged "
    "or altered in the patients"
)


@dataclass(frozen=True)
class TestInput:
    """Where the maps and the table of a test come from."""

    __test__ = False
    maps_dir: Path
    """Root of the dataset with the participants' maps."""
    folder: Path
    """Folder of the group's files."""
    stat: str
    """Statistic of the maps: z or t."""
    table: str
    """Path of the table, relative to the folder."""


def record_path(folder: Path, label: str) -> Path:
    """Return the path of the record of a test, by the tested column's label."""
    return folder / RECORDS.replace("*", label)


def hash_maps(lesions: Sequence[GroupLesion], maps_dir: Path, stat: str) -> str:
    """Return a hash of the files of maps, with the lesions' names; raises OSError if one cannot be read."""
    digest = hashlib.sha256()
    for lesion in lesions:
        digest.update(f"{lesion.name} {hash_file(maps_dir / lesion.maps[stat])}\n".encode())
    return digest.hexdigest()


def hash_design(design: Design) -> str:
    """Return a hash of the patients and values of a design: of the columns that are used, not of a whole table."""
    content = [design.keys, design.levels, design.tested.tolist(), design.covariates, design.values.tolist()]
    return hashlib.sha256(json.dumps([*content, design.block_of, design.statistic]).encode()).hexdigest()


def remove_test(folder: Path, label: str) -> None:
    """Remove the files of a test and its page; its record goes first, so that none lists a file that is gone."""
    record_path(folder, label).unlink(missing_ok=True)
    patterns = (f"group_contrast-{label}.html", f"group_contrast-{label}_*", f"space-*_contrast-{label}_*")
    for pattern in (*patterns, f"{FIGURES}/contrast-{label}_*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


class ContrastWriter:
    """Writes the files of one test to the folder of its group."""

    def __init__(
        self, test: GroupTest, lesions: Sequence[GroupLesion], provenance: Provenance, source: TestInput
    ) -> None:
        """Collect what all files say.

        Parameters
        ----------
        test
            Result.
        lesions
            Lesions of the design's patients, in its order.
        provenance
            Settings of their maps.
        source
            Where maps and table come from.
        """
        self._test = test
        self._lesions = lesions
        self._provenance = provenance
        self._source = source
        self._maps: dict[str, str] = {}
        self._common = describe_test(test, lesions, provenance, source)

    def write(
        self,
        sensitivities: Sequence[Sensitivity],
        lesioned: Array,
        summary: Summary | None = None,
        targets: Sequence[Target] = (),
    ) -> Path:
        """Write all files, and return the path of the record.

        Parameters
        ----------
        sensitivities
            Sensitivity of the cases for each threshold; none for a score.
        lesioned : shape (n_voxels,)
            Fraction of the patients who are lesioned in each voxel.
        summary
            Summary of the connectome, with whose degree and components the effect is compared.
        targets
            Target networks of the test's outcomes.
        """
        test = self._test
        remove_test(self._source.folder, test.design.label)
        similarity = self._write_result("", test.design, test.result, lesioned, summary)
        if test.beside:
            self._write_result(f"{test.beside.word}Volume", test.beside.design, test.beside.result, lesioned, summary)
        for each in sensitivities:
            self._write_sensitivity(each)
        self._write_map(
            "lesioned",
            "share",
            "lesions",
            lesioned,
            f"Fraction of the patients of the test who are lesioned; above {LESIONED:g}, a lesion's correlation with "
            "itself and its neighbours may be what differs",
        )
        self._write_design()
        record = record_path(self._source.folder, test.design.label)
        write_outcomes(record.with_name(record.name.replace("_design.json", OUTCOMES)), test, self._common, targets)
        write_json(record, self._describe_record(similarity, lesioned))
        return record

    def _write_result(
        self, word: str, design: Design, result: Inference, lesioned: Array, summary: Summary | None
    ) -> dict[str, Any]:
        """Write the maps of one test; `word` tells that with or without lesion volume from the main one."""
        key = f"{word}_" if word else ""
        alpha = self._test.question.alpha
        significant = result.p <= alpha
        more: dict[str, Any] = {
            "Model": describe_model(design),
            "Statistic": STATISTICS[design.statistic],
            "Threshold": result.threshold,
            **({"VarianceRatio": result.variance_ratio} if result.variance_ratio else {}),
            "NumberOfSignificantVoxels": int(significant.sum()),
            "NumberOfSignificantLesionedVoxels": int((significant & (lesioned >= LESIONED)).sum()),
        }
        images = {"effect": effect_of(design, result), "logp": logp_of(result)}
        if summary is not None:
            # In a summary's grid, voxels that are not tested are undefined.
            for name, values in images.items():
                volume = nib.Nifti1Image(self._test.volume(values), self._test.affine)
                found = summary.similarity(volume)
                numbers = {**found.correlations, "r_squared": found.r_squared}
                more[f"{name.capitalize()}Similarity"] = {
                    of: r if np.isfinite(r) else None for of, r in numbers.items()
                }
        unit = f"difference in {self._source.stat}" if design.levels else "partial r"
        stat = design.stat
        self._write_map(f"{key}{stat}", stat, word, result.statistic, STATISTICS[design.statistic], **more)
        self._write_map(f"{key}effect", "effect", word, images["effect"], f"Effect: {unit}", **more)
        self._write_map(
            f"{key}logp",
            "logp",
            f"{word}FWE",
            images["logp"],
            f"-log10 of the two-sided p, corrected for all voxels by the largest |{stat}| of each permutation",
            **more,
        )
        return more

    def _write_sensitivity(self, sensitivity: Sensitivity) -> None:
        threshold = sensitivity.threshold
        cases = self._test.design.levels[0] if self._test.design.levels else ""
        what = f"T{number_label(threshold)}"
        for word, values, sign in (("above", sensitivity.above, ""), ("below", sensitivity.below, "-")):
            self._write_map(
                f"sensitivity_{what}{word}",
                "share",
                f"{what}{word}",
                values,
                f"Sensitivity: fraction of the patients with {cases} whose t is {word} {sign}{threshold:g}",
                TThreshold=float(f"{sign}{threshold}"),
            )
        self._write_map(
            f"conjunction_{what}",
            "share",
            f"{what}conjunction",
            sensitivity.conjunction,
            f"Sensitivity of at least {sensitivity.smallest:g} where the test is significant with the same sign: the "
            "share, negative for t below the threshold, and 0 elsewhere. Its error rate is that of the test",
            TThreshold=threshold,
            SmallestSensitivity=sensitivity.smallest,
            NumberOfConjunctionVoxels=int(np.count_nonzero(sensitivity.conjunction)),
        )

    def _write_map(self, key: str, stat: str, what: str, values: Array, description: str, **more: Any) -> None:
        label, provenance, folder = self._test.design.label, self._provenance, self._source.folder
        desc = f"{provenance.connectome_name}{what}"
        stem = f"space-{provenance.space}_contrast-{label}_stat-{stat}_desc-{desc}_statmap"
        like = self._source.maps_dir / self._lesions[0].maps["r"]
        save_like(like, self._test.volume(values), folder / f"{stem}.nii.gz")
        write_json(folder / f"{stem}.json", {"Description": description, **self._common, **more, **self._sources()})
        self._maps[key] = f"{stem}.nii.gz"

    def _sources(self) -> dict[str, list[str]]:
        return {"Sources": [f"bids::{lesion.maps[self._source.stat]}" for lesion in self._lesions]}

    def _write_design(self) -> None:
        """Write the model as a matrix, with each patient's similarity from leave-one-out."""
        design, path = self._test.design, record_path(self._source.folder, self._test.design.label)
        columns: dict[str, Sequence[object]] = {
            "participant_id": [f"sub-{key[0]}" for key in design.keys],
            "session_id": [f"ses-{key[1]}" if key[1] else "n/a" for key in design.keys],
            "tested": design.tested.tolist(),
            **{name or "constant": values.tolist() for name, values in design.constants.items()},
            **{name: values.tolist() for name, values in zip(design.covariates, design.values.T, strict=True)},
            "similarity": self._test.prediction.similarity.tolist(),
        }
        rows = [list(map(format_cell, row)) for row in zip(*columns.values(), strict=True)]
        write_table(path.with_suffix(".tsv"), list(columns), rows)

    def _describe_record(self, result: Mapping[str, Any], lesioned: Array) -> dict[str, Any]:
        test = self._test
        prediction = test.prediction
        return {
            # First: a covariate's name may be one of the keys below.
            **describe_columns(test.design),
            "Description": "Model matrix of a test: one row for each patient; and the result of the test",
            **self._common,
            **result,
            "Question": asdict(test.question),
            "Table": self._source.table,
            "Label": test.design.label,
            "Levels": list(test.design.levels or ()),
            "NumberOfLesionedVoxels": int((lesioned >= LESIONED).sum()),
            "Dropped": list(test.design.dropped),
            "Beside": test.beside
            and {
                "Word": test.beside.word,
                "Threshold": test.beside.result.threshold,
                "NumberOfSignificantVoxels": count_significant(test.beside.result, test.question.alpha),
            },
            "LeaveOneOut": {
                "Measure": prediction.measure,
                "NumberOfPermutations": prediction.n_permutations,
                "Predictors": list(test.predictors),
                "Maps": _describe_accuracy(prediction.maps),
                "Baseline": _describe_accuracy(prediction.baseline),
                "Difference": _describe_accuracy(prediction.difference),
            },
            "Targets": [{key: _none_if_nan(value) for key, value in asdict(each).items()} for each in test.outcomes],
            "Warnings": list(test.warnings),
            "Maps": self._maps,
            **self._sources(),
        }


def write_outcomes(path: Path, test: GroupTest, common: Mapping[str, Any], targets: Sequence[Target]) -> None:
    """Write the tests of similarity and damage as a table with its data dictionary; nothing if there are none."""
    if not test.outcomes:
        return
    stat = test.design.stat
    names = [field.name for field in fields(Outcome)]
    rows = [[format_cell(getattr(outcome, name)) for name in names] for outcome in test.outcomes]
    write_table(path, [stat if name == "statistic" else name for name in names], rows)
    columns = {
        "target": "Target network",
        "measure": "Column target_<target>_<measure> of group_lesions.tsv",
        "effect": "Coefficient of the tested column; of two groups, the difference of their means, adjusted",
        "partial_r": "Partial correlation of the tested column with the measure",
        stat: STATISTICS[test.design.statistic],
        "p": "Two-sided p of this measure alone, by permutation",
        "p_corrected": f"Two-sided p, corrected for all rows by the largest |{stat}| of each permutation",
    }
    content = {
        **{name: {"Description": description} for name, description in columns.items()},
        "Description": "Test of each patient's similarity with target networks, and of the network damage score",
        **common,
        "TargetNetworks": {target.name: target.describe() for target in targets},
    }
    write_json(sidecar_path(path), content)


def describe_test(
    test: GroupTest, lesions: Sequence[GroupLesion], provenance: Provenance, source: TestInput
) -> dict[str, Any]:
    """Return what the sidecar of each file of a test says."""
    design, question, permutations = test.design, test.question, test.result.permutations
    return {
        "Descriptive": False,
        "Interpretation": INTERPRETATION,
        "Contrast": design.direction,
        "Column": design.column,
        "Design": record_path(Path(), design.label).with_suffix(".tsv").name,
        "NumberOfPatients": len(design.tested),
        **({"NumberOfCases": design.n_cases} if design.levels else {}),
        "NumberOfPermutations": len(permutations.orders),
        "DistinctPermutations": _json_number(permutations.n_distinct),
        "AllPermutations": permutations.exhaustive,
        "SmallestP": permutations.smallest_p,
        "RandomSeed": question.random_seed,
        "Alpha": question.alpha,
        "InputStatistic": source.stat,
        "NumberOfVoxels": int(np.isfinite(test.result.statistic).sum()),
        "FractionOfVoxels": test.fraction_of_voxels,
        **describe_settings(provenance),
        "MapsHash": hash_maps(lesions, source.maps_dir, source.stat),
        "TableHash": hash_design(design),
        "SoftwareVersion": __version__,
    }


def describe_model(design: Design) -> str:
    """Write the model in words."""
    terms = [design.column, *(_name_covariate(name) for name in design.covariates)]
    constant = f"a constant for each {design.block_column}" if design.block_column else "a constant"
    within = f" within each {design.block_column}" if design.block_column else ""
    units = ", in units of each group's standard deviation" if design.statistic == "welch" else ""
    return (
        f"map = {' + '.join(terms)} + {constant}, by least squares at each voxel; residuals of the nuisance permuted"
        f"{within}{units} (Freedman and Lane)"
    )


def describe_columns(design: Design) -> dict[str, dict[str, Any]]:
    """Return the data dictionary of a design's table."""
    tested = {"Description": design.direction}
    if design.levels:
        tested |= {"Levels": {"1": design.levels[0], "0": design.levels[1]}}  # type: ignore[dict-item]
    return {
        "participant_id": {"Description": "Participant"},
        "session_id": {"Description": "Session of the map; n/a where it has none"},
        "tested": tested,
        **{name or "constant": {"Description": "Constant"} for name in design.constants},
        **{name: {"Description": f"Covariate: {_name_covariate(name)}"} for name in design.covariates},
        "similarity": {
            "Description": "Spatial correlation of the patient's map with the effect map fitted without this patient"
        },
    }


def _name_covariate(name: str) -> str:
    return f"{name} (cube root)" if name == VOLUME else name


def _describe_accuracy(accuracy: Accuracy | None) -> dict[str, float] | None:
    if accuracy is None:
        return None
    return {"Value": accuracy.value, "Chance": accuracy.chance, "P": accuracy.p}


def _none_if_nan(value: str | float) -> str | float | None:
    return None if value != value else value


def _json_number(number: int) -> int | float | str:
    """Return a number that JSON's readers can read: the orders of 200 rows are more than a float can be."""
    if number < 2**53:
        return number
    return f"about 10^{len(str(number)) - 1}"
