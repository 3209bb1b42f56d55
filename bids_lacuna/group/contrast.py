"""A test of a table's column with the maps of patients: design, permutations, and what belongs beside the result."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from bids_lacuna.grid import Grid
from bids_lacuna.group.design import UNEQUAL, VOLUME, BadDesign, Design, Question, Statistic, make_design
from bids_lacuna.group.inference import Inference, Model, count_tiles, infer, make_model, working_bytes
from bids_lacuna.group.outcomes import Outcome, infer_outcomes
from bids_lacuna.group.permutations import Permutations, TooFewPermutations, choose_permutations
from bids_lacuna.group.prediction import Prediction, cross_products, predict
from bids_lacuna.group.stack import COSTLY, CommonVoxels, MapFile, find_common_voxels, read_stack
from bids_lacuna.group.table import BadTable, Key, Table, name_key, name_some, read_table_file, table_of
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.targets import correlate, read_target
from bids_lacuna.text import percent, tell_bytes_apart

logger = logging.getLogger(__name__)

Array = np.ndarray

PREDICTION_PERMUTATIONS = 1000
"""Permutations of the labels for leave-one-out."""

FEW_PERMUTATIONS = 1000
"""Below this number, p is coarse, which is said."""

SMALL_GROUP = 10
"""Number of patients below which the variance of the smaller group is badly known, which is said if it is the larger
one."""

UNEQUAL_VARIANCE = 1.5
"""Ratio of the smaller group's variance to the other's above which the page warns of a small group."""

CONFOUNDED = 0.5
"""Correlation of the tested column with lesion volume above which the page warns."""


@dataclass(frozen=True, eq=False)
class Beside:
    """The same test with lesion volume among the covariates, or without it, whichever was not asked for."""

    word: Literal["with", "without"]
    """Whether this is the test with or without lesion volume."""
    design: Design
    result: Inference


@dataclass(frozen=True, eq=False)
class GroupTest:
    """The result of a test."""

    question: Question
    design: Design
    result: Inference
    """One value for each voxel of `voxels`, in C order."""
    beside: Beside | None
    """The test with or without lesion volume; None if the volumes are not known."""
    prediction: Prediction
    predictors: tuple[str, ...]
    """What the baseline of leave-one-out predicts from; nothing if it has no baseline."""
    voxels: Array
    """Shape (x, y, z), boolean: voxels that are defined in all maps."""
    affine: Array
    """Shape (4, 4): from voxel indices to millimetres."""
    fraction_of_voxels: float
    """Fraction of the voxels defined in any map that are defined in all."""
    warnings: tuple[str, ...]
    """Sentences for the user."""
    outcomes: tuple[Outcome, ...] = ()
    """Tests of the patients' similarity with target networks, and of their damage scores."""

    @property
    def effect(self) -> Array:
        """Shape (n_voxels,): difference between the groups, adjusted, or partial r with the score."""
        return effect_of(self.design, self.result)

    @property
    def n_significant(self) -> int:
        """Number of voxels with p of at most alpha."""
        return count_significant(self.result, self.question.alpha)

    def volume(self, values: Array) -> Array:
        """Put values of voxels into a volume: shape (x, y, z), float32; NaN elsewhere."""
        volume = np.full(self.voxels.shape, np.nan, np.float32)
        volume[self.voxels] = values
        return volume

    def image(self, what: Literal["statistic", "effect", "logp"]) -> nib.Nifti1Image:
        """Return a map of the test: t or z of Welch's v, the effect, or -log10 of the corrected p."""
        values = {"statistic": self.result.statistic, "effect": self.effect, "logp": logp_of(self.result)}[what]
        return nib.Nifti1Image(self.volume(values), self.affine)


def effect_of(design: Design, result: Inference) -> Array:
    """Return the effect of a test: the groups' difference in units of the maps, or the partial r of a score."""
    return result.effect if design.levels else result.partial_r


def logp_of(result: Inference) -> Array:
    """Return -log10 of the corrected p."""
    # Adding 0 turns the -0 of p = 1 into 0.
    return -np.log10(result.p) + 0.0


def count_significant(result: Inference, alpha: float) -> int:
    """Count the voxels with p of at most alpha."""
    return int(np.count_nonzero(result.p <= alpha))


def group_test(
    maps: Mapping[str, MapFile] | Sequence[MapFile],
    table: Any,
    test: str,
    *,
    covariates: Sequence[str] = (),
    blocks: str | None = None,
    statistic: Statistic = "auto",
    n_permutations: int = 10_000,
    random_seed: int = 0,
    alpha: float = 0.05,
    drop_missing: bool = False,
    targets: Mapping[str, Path | str] = {},
    n_threads: int = 1,
    show_progress: bool = True,
) -> GroupTest:
    """Test which voxels' connectivity goes with a column of a table, over patients.

    A general linear model at each voxel, with Freedman and Lane's permutations; p are two-sided and corrected for
    all voxels by the largest |t|, or |z| of Welch's v, of each permutation.

    Parameters
    ----------
    maps
        Unthresholded map of each patient on one grid, for example Fisher z: paths of NIfTI files or images, by
        participant ("sub-01", or "sub-01_ses-1"), or in the order of the table.
    table
        Path of a tab-separated table, a dictionary of columns, or a pandas DataFrame; with `participant_id`, and
        `session_id` where there are sessions.
    test
        Column to test: two values make two groups, the later one in sorting order against the earlier one
        (`column=value` names the other as the cases); more numbers are a score.
    covariates
        Columns of numbers, or of words, which become dummies. If the table has `lesion_volume`, the test is also
        done with it, or without it.
    blocks
        Column within whose values labels are permuted, and which enters as dummies.
    statistic
        "pooled", "welch" (two groups with their own variances), or "auto": Welch's v where one group has more than
        1.5 times the other's size.
    n_permutations
        Permutations; all distinct ones if they are fewer.
    random_seed
        The same seed gives the same permutations.
    alpha
        Level of significance.
    drop_missing
        Leave out patients with missing values instead of refusing them.
    targets
        Target networks by name, in the space of the maps and on any grid: whether the maps' spatial correlation with
        each goes with the column is tested as well (`GroupTest.outcomes`).
    n_threads
        Threads; the result is bit-identical for any number.
    show_progress
        Whether to show a bar if stderr is a terminal.

    Raises
    ------
    ValueError
        The table, the design or the maps cannot be used, or the permutations are too few for alpha; the message
        says what to do.
    OSError
        The table cannot be read.
    """
    question = Question(test, tuple(covariates), blocks, statistic, n_permutations, random_seed, alpha, drop_missing)
    cells = read_table_file(Path(table)) if isinstance(table, str | Path) else table_of(table)
    keys, files = _match(maps, cells)
    return contrast_maps(
        keys, files, cells, question, targets=targets, n_threads=n_threads, show_progress=show_progress
    )


def _match(maps: Mapping[str, MapFile] | Sequence[MapFile], table: Table) -> tuple[list[Key], list[MapFile]]:
    """Return each map's participant and session, and the map."""
    if isinstance(maps, Mapping):
        return [_parse_key(name) for name in maps], list(maps.values())
    if len(maps) != len(table.rows):
        raise BadTable(
            f"there are {len(maps)} maps, and {table.source} has {len(table.rows)} rows: give a dictionary of maps "
            "by participant"
        )
    return list(table.rows), list(maps)


def _parse_key(name: str) -> Key:
    participant, _, session = name.partition("_ses-")
    return participant.removeprefix("sub-"), session


def check_design(
    keys: Sequence[Key], table: Table, question: Question, measures: Mapping[str, Sequence[float]]
) -> Design:
    """Make a design, and check that it has permutations enough; raises what `make_design` and these raise."""
    design = make_design(keys, table, question, measures)
    _choose(design, question)
    return design


def contrast_maps(
    keys: Sequence[Key],
    files: Sequence[MapFile],
    table: Table,
    question: Question,
    measures: Mapping[str, Sequence[float]] = {},
    *,
    degree: Array | None = None,
    targets: Mapping[str, Path | str] = {},
    outcomes: Mapping[tuple[str, str], Array] = {},
    available_bytes: int | None = None,
    n_threads: int = 1,
    show_progress: bool = True,
) -> GroupTest:
    """Test a column with maps.

    Parameters
    ----------
    keys
        Participant and session of each map.
    files
        Maps.
    table, question, measures
        As in `make_design`.
    degree : shape (x, y, z)
        Degree of the connectome's voxels: the correlation of each map with it is then in the baseline of
        leave-one-out.
    targets
        As in `group_test`.
    outcomes
        Numbers of each map that are tested as well, by target network and measure: shape (n_maps,).
    available_bytes
        Memory that the test may occupy.
    n_threads, show_progress
        As in `group_test`.

    Raises
    ------
    ValueError, OSError
        As in `group_test`.
    MemoryError
        The test needs more memory than there is.
    """
    design = check_design(keys, table, question, measures)
    names = [name_key(key) for key in design.keys]
    files = [files[index] for index in design.kept]
    other = _toggle_volume(keys, table, question, measures, design)
    with Progress(2 * len(files), "reading maps", "map", shown=show_progress) as progress:
        voxels = find_common_voxels(files, names, progress)
        _check_memory(voxels.n, [design, *([other] if other else [])], question, n_threads, available_bytes)
        stack = read_stack(files, names, voxels, progress)
    n_tiles = count_tiles(voxels.n)
    with Progress((2 if other else 1) * n_tiles, "testing voxels", "tile", shown=show_progress) as progress:
        result = _infer(stack, design, question, n_threads, progress)
        beside = None
        if other is not None:
            word: Literal["with", "without"] = "with" if VOLUME in other.covariates else "without"
            beside = Beside(word, other, _infer(stack, other, question, n_threads, progress))
    columns = {name: np.asarray(values)[list(design.kept)] for name, values in outcomes.items()}
    columns |= _correlate_with(targets, stack, voxels)
    volume = _find_volume(design, other)
    predictors = _list_predictors(stack, volume, degree, voxels)
    return GroupTest(
        question,
        design,
        result,
        beside,
        _predict(stack, design, question, np.array(list(predictors.values())).T if predictors else None),
        tuple(predictors),
        voxels.mask,
        voxels.affine,
        voxels.fraction,
        (*design.notes, *_warn(design, result, voxels, volume), *_warn_of_unknown(columns, design)),
        infer_outcomes(columns, _make_model(design), result.permutations, question.alpha),
    )


def _check_memory(
    n_voxels: int, designs: Sequence[Design], question: Question, n_threads: int, available_bytes: int | None
) -> None:
    """Raise MemoryError if a test needs more memory than there is."""
    needed = footprint(designs, n_voxels, question.n_permutations, n_threads)
    if available_bytes is not None and needed > available_bytes:
        shown, available = tell_bytes_apart(needed, available_bytes)
        raise MemoryError(
            f"a test of {len(designs[0].tested)} maps with {n_voxels} voxels needs {shown} of memory, and "
            f"{available} is available: raise --mem, or use fewer threads (--nprocs)"
        )


def footprint(designs: Sequence[Design], n_voxels: int, n_permutations: int, n_threads: int) -> int:
    """Return the bytes that the tests of some designs occupy: the maps, all results, and what the largest works with.

    Parameters
    ----------
    designs
        Designs of the same patients, tested one after another.
    n_voxels, n_permutations, n_threads
        Sizes of the test.
    """
    models = [_make_model(each) for each in designs]
    n_patients = len(designs[0].tested)
    tests = [
        working_bytes(n_patients, n_voxels, n_permutations, model.functionals.shape[1], n_threads) for model in models
    ]
    return 4 * n_patients * n_voxels + sum(tests)


def _make_model(design: Design) -> Model:
    return make_model(design.tested, design.values, design.blocks, design.statistic == "welch")


def _choose(design: Design, question: Question) -> Permutations:
    return choose_permutations(
        design.tested,
        design.values,
        design.blocks,
        question.n_permutations,
        question.random_seed,
        question.alpha,
        design.statistic == "welch",
    )


def _infer(stack: Array, design: Design, question: Question, n_threads: int, progress: Progress) -> Inference:
    return infer(
        stack,
        _make_model(design),
        _choose(design, question),
        question.alpha,
        n_threads=n_threads,
        on_tile=progress.update,
    )


def _correlate_with(
    targets: Mapping[str, Path | str], stack: Array, voxels: CommonVoxels
) -> dict[tuple[str, str], Array]:
    """Correlate each map with target networks, over the common voxels: shape (n_patients,) each."""
    columns = {}
    for name, path in targets.items():
        target = read_target(name, Path(path), Grid(voxels.mask, voxels.affine), "of the maps").values
        known = np.isfinite(target)
        columns[name, "r"] = np.array([correlate(row[known], target[known]) for row in stack])
    return columns


def _warn_of_unknown(columns: Mapping[tuple[str, str], Array], design: Design) -> list[str]:
    """List the outcomes that cannot be tested, since they are unknown of a patient, in sentences."""
    warnings = []
    for (target, measure), values in columns.items():
        unknown = [name_key(key) for key, known in zip(design.keys, np.isfinite(values), strict=True) if not known]
        if unknown:
            warnings.append(
                f"target {target}: {measure} is not tested, for it is undefined in {name_some(unknown)}: leave these "
                "patients out to test it"
            )
    return warnings


def _toggle_volume(
    keys: Sequence[Key], table: Table, question: Question, measures: Mapping[str, Sequence[float]], design: Design
) -> Design | None:
    """Return the design of the same patients with lesion volume, or without it; None where that makes no test."""
    if design.column == VOLUME or not (VOLUME in measures or VOLUME in table.columns):
        return None
    covariates = [name for name in question.covariates if name != VOLUME]
    if VOLUME not in question.covariates:
        covariates.append(VOLUME)
    changed = replace(question, covariates=tuple(covariates))
    try:
        of_kept = {name: [values[index] for index in design.kept] for name, values in measures.items()}
        other = make_design(
            [keys[index] for index in design.kept], table, replace(changed, drop_missing=False), of_kept
        )
        _choose(other, question)
    except (BadDesign, TooFewPermutations) as error:
        word = "without" if VOLUME in question.covariates else "with"
        logger.warning("there is no test %s lesion volume: %s", word, error)
        return None
    return other


def _find_volume(*designs: Design | None) -> Array | None:
    """Return each patient's cube root of the lesion volume, shape (n_patients,), from the design that has it."""
    for design in designs:
        if design and VOLUME in design.covariates:
            return design.values[:, design.covariates.index(VOLUME)]
    return None


def _list_predictors(
    stack: Array, volume: Array | None, degree: Array | None, voxels: CommonVoxels
) -> dict[str, Array]:
    """Return what is known of each patient without an effect map: lesion volume, and its map's r with degree."""
    columns = {} if volume is None else {"lesion volume": volume}
    if degree is not None:
        of_voxels = degree[voxels.mask]
        known = np.isfinite(of_voxels)
        r = [np.corrcoef(row[known], of_voxels[known])[0, 1] for row in stack]
        columns["the map's r with degree"] = np.array(r)
    return columns


def _predict(stack: Array, design: Design, question: Question, predictors: Array | None) -> Prediction:
    permutations = choose_permutations(
        design.tested,
        design.values[:, :0],
        design.blocks,
        PREDICTION_PERMUTATIONS,
        question.random_seed,
        # A p that is coarse is shown with its number of permutations; the test has been refused if it is too coarse.
        alpha=1,
    )
    return predict(
        cross_products(stack),
        design.tested,
        make_model(design.tested, design.values, design.blocks).nuisance,
        permutations,
        "AUC" if design.levels else "r",
        predictors,
    )


def _warn(design: Design, result: Inference, voxels: CommonVoxels, volume: Array | None) -> list[str]:
    """List what a reader should know about a test, in sentences."""
    warnings = []
    permutations = result.permutations
    n = len(permutations.orders)
    if n < FEW_PERMUTATIONS:
        which = f"all {n} distinct permutations" if permutations.exhaustive else f"{n} permutations"
        warnings.append(f"p is coarse: with {which}, it cannot be below {permutations.smallest_p:.2g}")
    n_others = len(design.tested) - design.n_cases
    sizes = sorted((design.n_cases, n_others))
    if design.levels and design.statistic == "pooled" and sizes[1] > UNEQUAL * sizes[0]:
        warnings.append(
            f"groups of {design.n_cases} and {n_others} are compared by the pooled t, whose p is wrong if the "
            "smaller group varies more: use Welch's v (--statistic welch)"
        )
    if result.variance_ratio and sizes[0] < SMALL_GROUP:
        ratio = result.variance_ratio if design.n_cases == sizes[0] else 1 / result.variance_ratio
        if ratio > UNEQUAL_VARIANCE:
            warnings.append(
                f"the smaller group has {sizes[0]} patients and {ratio:.1f} times the other's variance, which so few "
                "patients estimate badly: p may be too small; collect more, or compare groups of similar size"
            )
    if volume is not None and np.ptp(volume) > 0:
        r = np.corrcoef(volume, design.tested)[0, 1]
        if abs(r) > CONFOUNDED:
            warnings.append(
                f"{design.column} and lesion volume are correlated (r = {r:.2f}): compare the results with and "
                "without lesion volume"
            )
    costly = [
        f"{name_key(key)} ({percent(lacking)})"
        for key, lacking in zip(design.keys, voxels.lacking, strict=True)
        if lacking > COSTLY
    ]
    if costly:
        warnings.append(
            f"only {percent(voxels.fraction)} of the voxels are tested: the maps of {name_some(costly)} lack more "
            f"than {percent(COSTLY)} of them; leave these patients out to test more"
        )
    return warnings
