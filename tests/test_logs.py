"""What of a log reaches the terminal, the log file and the crash files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bids_lacuna.runtime.logs import kept_in, kind_of, log_failure, name_some, on_terminal

logger = logging.getLogger("bids_lacuna.test")


@pytest.mark.parametrize("reason", ["{} is a mask of nothing", "{}: it is damaged", "the mask is empty ({})"])
@pytest.mark.parametrize(
    "files",
    [("/data/sub-1/a_mask.nii.gz", "out/sub-2.nii", "../x"), ("a_mask.nii.gz", "b.nii.gz", "c.nii")],
)
def test_failures_that_differ_in_file_names_are_of_one_kind(reason: str, files: tuple[str, ...]) -> None:
    """Paths and names of images do not distinguish failures; other words and numbers do."""
    (kind,) = {kind_of(reason.format(file)) for file in files}
    assert kind != kind_of(reason.format(files[0]) + " too")
    assert kind_of("3 of 4 voxels are outside") != kind_of("3 of 5 voxels are outside")


@pytest.mark.parametrize(
    ("n", "text"),
    [(1, "a"), (2, "a, b"), (3, "a, b, c"), (4, "a, b, c and 1 more"), (6, "a, b, c and 3 more")],
)
def test_the_first_three_names_are_shown(n: int, text: str) -> None:
    """Of many lesions three are named, and the others counted."""
    assert name_some("abcdef"[:n]) == text


def say_everything() -> None:
    """Log failures of two kinds, information and a detail."""
    logger.debug("a detail")
    logger.info("an information")
    for name, reason in (
        ("1", "a/1 is empty"),
        ("2", "a/2 is empty"),
        ("3", "a/3 is damaged"),
        ("4", "a/4 is empty"),
    ):
        log_failure(logger, [name], reason)


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        (-1, ["failed: 1: a/1 is empty", "failed: 3: a/3 is damaged"]),
        (0, ["an information", "failed: 1: a/1 is empty", "failed: 3: a/3 is damaged"]),
        (
            1,
            [
                "a detail",
                "an information",
                "failed: 1: a/1 is empty",
                "failed: 2: a/2 is empty",
                "failed: 3: a/3 is damaged",
                "failed: 4: a/4 is empty",
            ],
        ),
    ],
)
def test_the_terminal_shows_the_first_failure_of_each_kind(
    capsys: pytest.CaptureFixture[str], verbosity: int, expected: list[str]
) -> None:
    """Without -v, a failure that is like an earlier one is not shown again; -v shows all, and details."""
    with on_terminal(verbosity):
        say_everything()
    assert [line.split(" ", 2)[2] for line in capsys.readouterr().err.splitlines()] == expected


def test_each_run_shows_its_own_failures(capsys: pytest.CaptureFixture[str]) -> None:
    """A second run of the same process shows the first failure of each kind again."""
    for _ in range(2):
        with on_terminal(-1):
            say_everything()
    assert capsys.readouterr().err.count("is empty") == 2


def test_the_log_file_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The log file has each failure, and messages from before it was opened; without a traceback no crash file."""
    with on_terminal(-1):
        logger.info("an early message")
        with kept_in(tmp_path / "logs"):
            say_everything()
        logger.info("a late message")
    log = (tmp_path / "logs" / "bids-lacuna.log").read_text()
    assert [log.count(words) for words in ("early", "late", "a detail", "is empty", "is damaged")] == [1, 0, 1, 3, 1]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["bids-lacuna.log"]
    assert "early" not in capsys.readouterr().err


def test_a_crash_file_for_each_kind_of_error(tmp_path: Path) -> None:
    """Errors of one type from one line are of a kind; another type, or another line, is another kind."""

    def fail(number: int) -> None:
        if number == 3:
            raise ValueError(number)
        raise (KeyError if number == 2 else ValueError)(number)

    with on_terminal(-1), kept_in(tmp_path):
        for number in (0, 1, 2, 3, 4):
            try:
                fail(number)
            except (ValueError, KeyError):
                log_failure(logger, [f"lesion {number}"], "a reason")
    crashes = sorted(tmp_path.glob("crash-*.txt"))
    assert [path.stem.rsplit("-", 2)[1:] for path in crashes] == [
        ["1", "ValueError"],
        ["2", "KeyError"],
        ["3", "ValueError"],
    ]
    assert [path.read_text().splitlines()[0] for path in crashes] == [
        f"traceback of the failure of lesion {number}: a reason" for number in (0, 2, 3)
    ]
