"""Suggestions for unknown options."""

from __future__ import annotations

import pytest

from bids_lacuna import cli
from bids_lacuna.app.options import build_parser
from bids_lacuna.app.suggestions import SAME_MEANING, suggest_option
from tests.program import capture

FLAGS = [flag for action in build_parser()._actions for flag in action.option_strings]


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("--subjects", "--participant-label"),
        ("--omp-nthreads", "--nprocs"),
        ("--mem_mb", "--mem"),
        ("--force", "--overwrite"),
        ("--batch-size", "--lesion-batch-size"),
        ("--weighting", "--lesion-weighting"),
        ("--t-treshold", "--t-threshold"),
        ("--lesionbatchsize", "--lesion-batch-size"),
        ("--overwite", "--overwrite"),
        ("--n-perm", "--permutations"),
        ("--confounds", "--covariates"),
        ("--Participant-Labels", "--participant-label"),
    ],
)
def test_an_option_of_the_same_meaning_is_suggested(unknown: str, meant: str) -> None:
    """Other programs' names, parts of a name and typing errors lead to the option."""
    assert suggest_option(unknown, FLAGS) == f": did you mean {meant}?"


@pytest.mark.parametrize(
    "unknown",
    [
        "--regressors", "--contrast", "--output-spaces", "--lesions", "--lesion-label", "--task-label", "--design",
        "--p-threshold", "--z-threshold", "--threshold",
        "--no-z-map", "--t-map", "--parcellation", "--fs-license-file", "--label", "--smoothing",
    ],
)  # fmt: skip
def test_an_option_that_merely_has_letters_in_common_is_not_suggested(unknown: str) -> None:
    """A wrong suggestion is worse than none."""
    assert suggest_option(unknown, FLAGS) == ""


def test_a_suggestion_is_an_option_and_an_error_has_it() -> None:
    """An unknown option with a value is an error, with or without a suggestion."""
    ended = capture(cli.main, "BIDS", "OUT", "group", "--regressors", "NIHSS")
    assert ended.returncode == 64
    assert ended.stderr.splitlines()[-1].endswith("unrecognized arguments: --regressors NIHSS")
    assert {f"--{name}" for name in SAME_MEANING} <= {*FLAGS, "--space", "--name"}
    assert not {f"--{other}" for others in SAME_MEANING.values() for other in others} & {
        flag for flag in FLAGS if not flag.startswith("--connectome-")
    }
