"""The design of a test: which patients, which columns, and what is compared with what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from unicodedata import combining, normalize

import numpy as np

from bids_lacuna.group.table import Cell, Key, Table, name_key, name_some
from bids_lacuna.text import one_line, suggest

Array = np.ndarray

Statistic = Literal["auto", "pooled", "welch"]

VOLUME = "lesion_volume"
"""Covariate of the masks' volume, as its cube root, unless the table has a column of this name."""

COVERAGE = "coverage"
"""Covariate of the fraction of each lesion that the connectome covers, unless the table has such a column."""

SMALLEST_GROUP = 5
"""Fewest patients in a group, or with a score."""

UNEQUAL = 1.5
"""Ratio of the groups' sizes above which `auto` chooses Welch's v."""

DEPENDENT = 1e-9
"""Fraction of a column's norm that must be left without the other columns."""

LARGEST = 1e100
"""Largest number of a column, so that sums of squares are finite."""

DECIMAL_COMMA = re.compile(r"-?\d+,\d+")


class BadDesign(ValueError):  # noqa: N818  a fact about the input, not a defect of the program
    """The columns give no test; the message has the counts found, what was needed and what to do."""


@dataclass(frozen=True)
class Question:
    """What a user asks of a group.

    Raises
    ------
    ValueError
        A value is not one of those allowed.
    """

    test: str
    """Column, or column=value: the value of the cases."""
    covariates: tuple[str, ...] = ()
    blocks: str | None = None
    """Column within whose values labels are permuted."""
    statistic: Statistic = "auto"
    n_permutations: int = 10_000
    random_seed: int = 0
    alpha: float = 0.05
    drop_missing: bool = False
    """Whether patients with missing values are left out."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.statistic not in ("auto", "pooled", "welch"):
            raise ValueError(f"statistic is {self.statistic!r}: it must be 'auto', 'pooled' or 'welch'")
        if self.n_permutations < 1:
            raise ValueError(f"n_permutations is {self.n_permutations}: at least one is needed")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}: it must be above 0 and below 1")
        if self.random_seed < 0:
            raise ValueError(f"random_seed is {self.random_seed}: it must be 0 or above")


@dataclass(frozen=True, eq=False)
class Design:
    """The patients and columns of a test."""

    column: str
    """Column that is tested."""
    levels: tuple[str, str] | None
    """Values of the cases and of the others; None for a score."""
    tested: Array
    """Shape (n_patients,): 1 for cases and 0 for others, or the score."""
    covariates: tuple[str, ...]
    """Columns of `values`; `sex=m` is 1 where sex is m."""
    values: Array
    """Shape (n_patients, n_covariates)."""
    block_column: str | None
    block_of: tuple[str, ...]
    """Each patient's block; empty texts where there are none."""
    statistic: Literal["pooled", "welch"]
    keys: tuple[Key, ...]
    """Participant and session of each patient in the design."""
    kept: tuple[int, ...]
    """Their indices among all patients with maps."""
    dropped: tuple[str, ...]
    """Patients left out because of missing values."""
    notes: tuple[str, ...]
    """Sentences for the user."""

    @property
    def blocks(self) -> Array:
        """Shape (n_patients,), int: the block of each patient."""
        return np.unique(self.block_of, return_inverse=True)[1].reshape(-1)

    @property
    def constants(self) -> dict[str, Array]:
        """Constants of the model, each of shape (n_patients,): one for each block, or one without a name."""
        if not self.block_column:
            return {"": np.ones(len(self.tested))}
        block_of = np.array(self.block_of)
        return {f"{self.block_column}={block}": (block_of == block).astype(float) for block in np.unique(block_of)}

    @property
    def stat(self) -> Literal["t", "z"]:
        """Name of the statistic at each voxel: t, or z of Welch's v."""
        return "z" if self.statistic == "welch" else "t"

    @property
    def n_cases(self) -> int:
        """Number of cases; with a score, of all patients."""
        return int(self.tested.sum()) if self.levels else len(self.tested)

    @property
    def direction(self) -> str:
        """What is compared with what, in words."""
        if self.levels is None:
            n = len(self.tested)
            return f"{self.column}, a score of {n} patients: positive where connectivity rises with it"
        cases, others = self.levels
        n = self.n_cases
        return (
            f"{self.column}: {cases} (n = {n}) against {others} (n = {len(self.tested) - n}): positive where "
            f"connectivity is higher with {cases}"
        )

    @property
    def label(self) -> str:
        """The column's name as a BIDS label."""
        return column_label(self.column)


def column_label(column: str) -> str:
    """Return a column's name as a BIDS label, of letters and digits: lesion_side is lesionSide, Größe is Grosse."""
    plain = "".join(letter for letter in normalize("NFKD", column) if not combining(letter))
    first, *others = re.findall(r"[A-Za-z0-9]+", plain.replace("ß", "ss")) or ["tested"]
    return first + "".join(word[:1].upper() + word[1:] for word in others)


def make_design(
    keys: Sequence[Key], table: Table, question: Question, measures: Mapping[str, Sequence[float]] = {}
) -> Design:
    """Read the columns of a test, and check that they make one.

    Parameters
    ----------
    keys
        Participant and session of each map.
    table
        Table with the columns.
    question
        Columns and options.
    measures
        Values of each map that need no table, such as `lesion_volume`; a column of the table has precedence.

    Raises
    ------
    BadTable
        A column does not exist.
    BadDesign
        Values are missing or of a wrong kind, a group is too small, or columns follow from others.
    """
    column, case = _split_test(question.test, table, measures)
    names = list(dict.fromkeys((column, *question.covariates, *filter(None, [question.blocks]))))
    for name in names:
        table.check_column(name, measures)
    for name in question.covariates:
        if name in (column, question.blocks):
            role = "tested" if name == column else "the blocks'"
            raise BadDesign(f"{name} is {role} and a covariate at the same time: leave it out of the covariates")
    if column == question.blocks:
        raise BadDesign(f"{column} is tested and has the blocks at the same time: choose another column for one")
    cells = {name: _read_column(name, keys, table, measures) for name in names}
    kept, dropped = _find_missing(keys, cells, question.drop_missing, table.source)
    cells = {name: [values[index] for index in kept] for name, values in cells.items()}
    tested, levels = _read_tested(column, case, cells[column])
    covariates = _read_covariates(question.covariates, cells, table)
    block_of = cells[question.blocks] if question.blocks else [""] * len(kept)
    design = Design(
        column=column,
        levels=levels,
        tested=tested,
        covariates=tuple(covariates),
        values=np.array(list(covariates.values())).reshape(len(covariates), len(kept)).T,
        block_column=question.blocks,
        block_of=tuple(str(block) for block in block_of),
        statistic=_choose_statistic(question.statistic, tested, levels, column),
        keys=tuple(keys[index] for index in kept),
        kept=tuple(kept),
        dropped=dropped,
        notes=_list_notes(question, keys, table, measures, dropped),
    )
    _check_rank(design)
    return design


def _split_test(test: str, table: Table, measures: Mapping[str, Sequence[float]]) -> tuple[str, str | None]:
    """Split `column=value`; a column's own name may have an equals sign."""
    if test in table.columns or test in measures or "=" not in test:
        return test, None
    column, _, case = test.rpartition("=")
    return column, case


def _read_column(name: str, keys: Sequence[Key], table: Table, measures: Mapping[str, Sequence[float]]) -> list[Cell]:
    if name in table.columns:
        rows = [table.find(key) for key in keys]
        return [None if row is None else row.get(name) for row in rows]
    values = [np.cbrt(value) if name == VOLUME else value for value in measures[name]]
    return [repr(float(value)) if np.isfinite(value) else None for value in values]


def _find_missing(
    keys: Sequence[Key], cells: Mapping[str, Sequence[Cell]], drop: bool, source: str
) -> tuple[list[int], tuple[str, ...]]:
    """Return the indices of patients with all values, and the names of the others."""
    lacking = {
        index: [name for name, values in cells.items() if values[index] is None]
        for index in range(len(keys))
        if any(values[index] is None for values in cells.values())
    }
    if lacking and not drop:
        named = [f"{name_key(keys[index])} ({', '.join(names)})" for index, names in lacking.items()]
        raise BadDesign(
            f"{len(lacking)} of {len(keys)} patients with maps have no value in {source}: {name_some(named)}: fill "
            "them in, or leave these patients out with --drop-missing"
        )
    kept = [index for index in range(len(keys)) if index not in lacking]
    if not kept:
        raise BadDesign(f"no patient with maps has all values in {source}: check its participant_id")
    return kept, tuple(name_key(keys[index]) for index in lacking)


def _number(cell: Cell) -> float | None:
    try:
        return float(str(cell))
    except ValueError:
        return None


def _number_or_word(cell: Cell) -> float | str:
    number = _number(cell)
    return str(cell) if number is None else number


def _read_numbers(name: str, cells: Sequence[Cell]) -> Array | None:
    """Read a column of numbers; None if it has only words.

    Raises
    ------
    BadDesign
        It has both, or a number that is not finite or above `LARGEST`.
    """
    numbers = [_number(cell) for cell in cells]
    words = [str(cell) for cell, number in zip(cells, numbers, strict=True) if number is None]
    if all(DECIMAL_COMMA.fullmatch(word) for word in words) and words:
        raise BadDesign(f"{name} has numbers with a comma, such as {words[0]}: write decimals with a point")
    if len(words) == len(cells):
        return None
    if words:
        raise BadDesign(
            f"{name} has {len(cells) - len(words)} numbers and {len(words)} words, such as {one_line(words[0])}: "
            "write numbers only, and n/a where there is no value"
        )
    values = np.array(numbers, float)
    if not (np.abs(values) <= LARGEST).all():
        beyond = values[~(np.abs(values) <= LARGEST)][0]
        raise BadDesign(
            f"{name} has the number {beyond:g}, and numbers from -{LARGEST:g} to {LARGEST:g} are needed: correct it, "
            "or write n/a"
        )
    return values


def _read_tested(column: str, case: str | None, cells: Sequence[Cell]) -> tuple[Array, tuple[str, str] | None]:
    """Return the tested column, and the values of both groups if there are two."""
    read = [_number_or_word(cell) for cell in cells]
    counts = Counter(read)
    if len(counts) == 1:
        raise BadDesign(
            f"{column} is {cells[0]} for all {len(cells)} patients: a column with two groups, or a score, is needed"
        )
    if len(counts) > 2:
        return _read_score(column, case, cells), None
    # Numbers sort before words.
    ordered = sorted(counts, key=lambda value: (isinstance(value, str), value))
    names = [value if isinstance(value, str) else f"{value:g}" for value in ordered]
    if case is not None:
        wanted = _number_or_word(case)
        if wanted not in counts:
            raise BadDesign(
                f"{column} is never {one_line(case)}: its values are {' and '.join(names)}{suggest(case, names)}"
            )
        if wanted == ordered[0]:
            ordered, names = ordered[::-1], names[::-1]
    small = [name for name, value in zip(names, ordered, strict=True) if counts[value] < SMALLEST_GROUP]
    if small:
        found = " and ".join(f"{counts[value]} with {name}" for name, value in zip(names, ordered, strict=True))
        raise BadDesign(
            f"{column} has {found}: at least {SMALLEST_GROUP} patients in each of the two groups are needed"
        )
    return np.array([value == ordered[1] for value in read], float), (names[1], names[0])


def _read_score(column: str, case: str | None, cells: Sequence[Cell]) -> Array:
    values = _read_numbers(column, cells)
    if values is None:
        counts = Counter(one_line(str(cell)) for cell in cells)
        found = name_some([f"{word} ({n})" for word, n in sorted(counts.items())])
        raise BadDesign(
            f"{column} has {len(counts)} different words: {found}: two groups, or numbers, are needed. Write n/a for "
            "the patients of the other groups, and use --drop-missing"
        )
    if case is not None:
        raise BadDesign(
            f"{column} has {len(np.unique(values))} different numbers, so it is a score, and ={case} chooses no "
            "group: leave it out, or make a column with two values"
        )
    if len(cells) < SMALLEST_GROUP:
        raise BadDesign(f"{column} is known of {len(cells)} patients: at least {SMALLEST_GROUP} are needed")
    return values


def _read_covariates(names: Sequence[str], cells: Mapping[str, Sequence[Cell]], table: Table) -> dict[str, Array]:
    """Return the columns of all covariates: a number's own, and one for each word but the first."""
    columns: dict[str, Array] = {}
    for name in dict.fromkeys(names):
        values = _read_numbers(name, cells[name])
        if values is not None:
            columns[name] = values
            continue
        words = sorted({str(cell) for cell in cells[name]})
        if len(words) == 1:
            columns[name] = np.ones(len(cells[name]))
        for word in words[1:]:
            columns[f"{name}={word}"] = np.array([cell == word for cell in cells[name]], float)
    for name, values in columns.items():
        if np.ptp(values) == 0:
            raise BadDesign(
                f"{name} is the same for all {len(values)} patients in {table.source}: leave it out of the covariates"
            )
    return columns


def _choose_statistic(
    asked: Statistic, tested: Array, levels: tuple[str, str] | None, column: str
) -> Literal["pooled", "welch"]:
    if levels is None:
        if asked == "welch":
            raise BadDesign(f"Welch's v needs two groups, and {column} is a score: use the pooled statistic")
        return "pooled"
    if asked != "auto":
        return asked
    sizes = sorted((tested.sum(), len(tested) - tested.sum()))
    return "welch" if sizes[1] > UNEQUAL * sizes[0] else "pooled"


def _list_notes(
    question: Question,
    keys: Sequence[Key],
    table: Table,
    measures: Mapping[str, Sequence[float]],
    dropped: Sequence[str],
) -> tuple[str, ...]:
    notes = [
        f"{name} is the column of {table.source}, not what the maps were made with"
        for name in question.covariates
        if name in measures and name in table.columns
    ]
    mapped = {key[0] for key in keys}
    if unmapped := sorted({key[0] for key in table.rows} - mapped):
        notes.append(
            f"{len(unmapped)} participants of {table.source} have no map in the group: "
            f"{name_some([f'sub-{label}' for label in unmapped])}"
        )
    if dropped:
        notes.append(f"{len(dropped)} patients with missing values are left out: {name_some(dropped)}")
    return tuple(notes)


def _check_rank(design: Design) -> None:
    """Raise BadDesign if a column follows from others; the message names them."""
    n = len(design.tested)
    known = design.constants
    later = {**dict(zip(design.covariates, design.values.T, strict=True)), design.column: design.tested}
    if (n_columns := len(known) + len(later)) >= n:
        names = [name or "a constant" for name in (*known, *later)]
        raise BadDesign(
            f"the model has {n_columns} columns ({name_some(names)}) for {n} patients: leave out covariates or blocks"
        )
    for name, values in later.items():
        columns = np.array(list(known.values())).T
        columns /= np.linalg.norm(columns, axis=0)
        coefficients, *_ = np.linalg.lstsq(columns, values, rcond=None)
        if np.linalg.norm(values - columns @ coefficients) <= DEPENDENT * np.linalg.norm(values - values.mean()):
            involved = [
                other
                for other, coefficient in zip(known, coefficients, strict=True)
                if other and abs(coefficient) > 1e-6 * np.linalg.norm(values)
            ]
            raise BadDesign(
                f"{name} follows from {' and '.join(involved)}, so that their effects cannot be told apart: leave "
                "one of them out"
            )
        known[name] = values
