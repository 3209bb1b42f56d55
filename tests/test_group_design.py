"""Designs: which patients and columns, and the sentence for each that makes no test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from bids_lacuna.group.design import BadDesign, Design, Question, column_label, make_design
from bids_lacuna.group.table import BadTable, table_of

N = 16

COLUMNS: dict[str, Sequence[Any]] = {
    "participant_id": [f"sub-{number:02}" for number in range(N)],
    "depressed": ["yes", "no"] * 8,
    "number": [2, 1] * 8,
    "few": ["b"] * 3 + ["a"] * 13,
    "uneven": ["b"] * 5 + ["a"] * 11,
    "nihss": [number**2 % 11 for number in range(N)],
    "age": [50.5 + number % 7 for number in range(N)],
    "age2": [100 + 2 * (number % 7) for number in range(N)],
    "sex": ["m", "m", "f"] * 5 + ["f"],
    "site": ["A"] * 5 + ["B"] * 6 + ["C"] * 5,
    "region": ["north"] * 11 + ["south"] * 5,
    "constant": [7] * N,
    "stage": ["mild", "severe", "none", "mild"] * 4,
    "mixed": [1, 2, 3, "unknown"] * 4,
    "comma": ["1,5", "2,5", "3", "4,25"] * 4,
    "comma and word": ["1,5", "mild", "severe", "mild"] * 4,
    "infinite": [1, 2, 3, float("inf")] * 4,
    "huge": [1, 2, 3, 1e300] * 4,
    "gaps": [1.5, None, 3, 4] * 4,
    "a=b": [1, 0] * 8,
    "coverage": [0.5 + number / 100 for number in range(N)],
}

KEYS = [(f"{number:02}", "") for number in range(N)]

MEASURES = {"lesion_volume": [float(number**3) for number in range(N)], "coverage": [1.0] * N}


def design(
    test: str,
    covariates: Sequence[str] = (),
    blocks: str | None = None,
    columns: Mapping[str, Sequence[Any]] = COLUMNS,
    **options: Any,
) -> Design:
    """Make a design from the table."""
    question = Question(test, tuple(covariates), blocks, **options)
    return make_design(KEYS, table_of(columns, "the table"), question, MEASURES)


@pytest.mark.parametrize(
    ("test", "levels"),
    [
        ("depressed", ("yes", "no")),
        ("depressed=no", ("no", "yes")),
        ("depressed=yes", ("yes", "no")),
        ("number", ("2", "1")),
        ("number=1.0", ("1", "2")),
        ("a=b", ("1", "0")),
        ("a=b=0", ("0", "1")),
    ],
)
def test_which_group_is_against_which(test: str, levels: tuple[str, str]) -> None:
    """The later value in sorting order is against the earlier one, unless the user names the cases."""
    made = design(test)
    assert made.levels == levels
    column = test if test in COLUMNS else test.rpartition("=")[0]
    values = [f"{value:g}" if isinstance(value, int) else value for value in COLUMNS[column]]
    np.testing.assert_array_equal(made.tested, [value == levels[0] for value in values])
    assert f"{levels[0]} (n = 8) against {levels[1]} (n = 8)" in made.direction
    assert made.n_cases == 8


def test_numbers_sort_as_numbers() -> None:
    """10 comes after 9."""
    made = design("dose", columns={**COLUMNS, "dose": ["10", "9.0", "9", "10.0"] * 4})
    assert made.levels == ("10", "9")


def test_score() -> None:
    """More than two numbers are a score."""
    made = design("nihss")
    assert made.levels is None
    np.testing.assert_array_equal(made.tested, COLUMNS["nihss"])
    assert made.statistic == "pooled"
    assert "a score of 16 patients" in made.direction


def test_covariates() -> None:
    """Numbers are columns, words dummies of all values but the first, lesion volume a cube root."""
    made = design("depressed", ["age", "sex", "lesion_volume", "site", "age"])
    assert made.covariates == ("age", "sex=m", "lesion_volume", "site=B", "site=C")
    site = np.array(COLUMNS["site"])
    expected = [COLUMNS["age"], np.array(COLUMNS["sex"]) == "m", np.arange(N), site == "B", site == "C"]
    np.testing.assert_allclose(made.values, np.array(expected, float).T)
    assert made.notes == ()


def test_a_column_of_the_table_has_precedence() -> None:
    """A table's own column is used instead of the measure of its name, which is said."""
    made = design("depressed", ["coverage"])
    np.testing.assert_array_equal(made.values[:, 0], COLUMNS["coverage"])
    assert made.notes == ("coverage is the column of the table, not what the maps were made with",)


def test_blocks() -> None:
    """Patients with the same value are a block."""
    made = design("depressed", blocks="site")
    np.testing.assert_array_equal(made.blocks, np.repeat([0, 1, 2], [5, 6, 5]))
    np.testing.assert_array_equal(design("depressed").blocks, 0)


@pytest.mark.parametrize(
    ("test", "asked", "chosen"),
    [
        ("uneven", "auto", "welch"),
        ("depressed", "auto", "pooled"),
        ("depressed", "welch", "welch"),
        ("uneven", "pooled", "pooled"),
    ],
)
def test_statistic(test: str, asked: Any, chosen: str) -> None:
    """By default, groups of 11 and 5 are compared by Welch's v, and equal ones by the pooled t."""
    assert design(test, statistic=asked).statistic == chosen


def test_missing_values() -> None:
    """They are an error that lists the participants, or left out on demand, with a note."""
    with pytest.raises(BadDesign, match=r"4 of 16 patients .* sub-01 \(gaps\), sub-05 \(gaps\).*--drop-missing"):
        design("depressed", ["gaps"])
    made = design("nihss", ["gaps"], drop_missing=True)
    assert made.dropped == ("sub-01", "sub-05", "sub-09", "sub-13")
    assert made.kept == tuple(number for number in range(N) if number % 4 != 1)
    assert made.keys == tuple(KEYS[number] for number in made.kept)
    np.testing.assert_array_equal(made.tested, np.array(COLUMNS["nihss"])[list(made.kept)])
    assert "4 patients with missing values are left out: sub-01" in made.notes[0]


def test_participants_without_row_or_map() -> None:
    """A map without a row has missing values; a row without a map is noted."""
    shorter = {name: values[2:] for name, values in COLUMNS.items()}
    with pytest.raises(BadDesign, match=r"2 of 16 patients .* sub-00 \(nihss, age\), sub-01 \(nihss, age\)"):
        design("nihss", ["age"], columns=shorter)
    question = Question("nihss")
    made = make_design(KEYS[3:], table_of(COLUMNS), question)
    assert made.notes == ("3 participants of the table have no map in the group: sub-00, sub-01, sub-02",)
    with pytest.raises(BadDesign, match="no patient with maps has all values"):
        make_design([("x", "")], table_of(COLUMNS), Question("nihss", drop_missing=True))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "constant": ({"test": "constant"}, "constant is 7 for all 16 patients: a column with two groups, or a score"),
    "words": ({"test": "stage"}, r"stage has 3 different words: mild \(8\), none \(4\), severe \(4\)"),
    "comma and word": ({"test": "comma and word"}, r"has 3 different words: 1,5 \(4\), mild \(8\), severe \(4\)"),
    "mixed": ({"test": "mixed"}, "mixed has 12 numbers and 4 words, such as unknown"),
    "comma": ({"test": "comma"}, "numbers with a comma, such as 1,5: write decimals with a point"),
    "infinite": ({"test": "infinite"}, "infinite has the number inf, and numbers from"),
    "huge": ({"test": "nihss", "covariates": ("huge",)}, "huge has the number 1e\\+300"),
    "three patients": ({"test": "few"}, "few has 13 with a and 3 with b: at least 5"),
    "no such value": ({"test": "depressed=yess"}, "never yess: its values are no and yes: did you mean yes"),
    "group of a score": ({"test": "nihss=4"}, "it is a score, and =4 chooses no group"),
    "score and Welch": ({"test": "nihss", "statistic": "welch"}, "Welch's v needs two groups"),
    "tested twice": ({"test": "nihss", "covariates": ["nihss"]}, "nihss is tested and a covariate at the same time"),
    "tested and blocks": ({"test": "site", "blocks": "site"}, "tested and has the blocks at the same time"),
    "blocks and covariate": (
        {"test": "nihss", "covariates": ["site"], "blocks": "site"},
        "site is the blocks' and a covariate",
    ),
    "constant covariate": ({"test": "nihss", "covariates": ["constant"]}, "constant is the same for all 16"),
    "mixed covariate": ({"test": "nihss", "covariates": ["mixed"]}, "mixed has 12 numbers and 4 words"),
    "multiples": ({"test": "nihss", "covariates": ["age", "age2"]}, "age2 follows from age, so that their effects"),
    "same as another": ({"test": "depressed", "covariates": ["number"]}, "depressed follows from number"),
    "the same within blocks": (
        {"test": "nihss", "covariates": ["region"], "blocks": "site"},
        "region=south follows from site=C",
    ),
    "too many": ({"test": "nihss", "covariates": ["participant"]}, "the model has 17 columns"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_makes_no_test(kind: str) -> None:
    """Each has a sentence with what was found, and what is needed or to do."""
    asked, words = BAD[kind]
    columns = {**COLUMNS, "participant": [f"p{number}" for number in range(N)]}
    with pytest.raises(BadDesign, match=words):
        design(**asked, columns=columns)


def test_unknown_column() -> None:
    """The near miss is named, also before =."""
    for test in ("depresed", "depresed=yes"):
        with pytest.raises(BadTable, match=r"no column depresed: did you mean depressed\?"):
            design(test)
    with pytest.raises(BadTable, match="no column lesionvolume: did you mean lesion_volume"):
        design("nihss", ["lesionvolume"])


@pytest.mark.parametrize(
    "options", [{"statistic": "t"}, {"n_permutations": 0}, {"alpha": 1.0}, {"alpha": 0.0}, {"random_seed": -1}]
)
def test_options_that_are_not_allowed(options: dict[str, Any]) -> None:
    """The sentence names the option."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Question("nihss", **options)


def test_labels() -> None:
    """A column's label has letters and digits only."""
    assert [column_label(name) for name in ("nihss", "lesion_side", "NIHSS day-7", "Größe", "年")] == [
        "nihss",
        "lesionSide",
        "NIHSSDay7",
        "Grosse",
        "tested",
    ]
