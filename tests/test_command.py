"""Usage errors of both command lines."""

from __future__ import annotations

import shlex

import pytest

from bids_lacuna import cli
from bids_lacuna.app.options import build_parser
from tests.program import capture

ORDER = "put BIDS_DIR OUTPUT_DIR {participant,group} before the options"


@pytest.mark.parametrize(
    ("words", "account"),
    [
        ("--participant-label 01 BIDS OUT participant", "--participant-label took 01 BIDS OUT participant"),
        ("--participant-label BIDS OUT participant", "--participant-label took BIDS OUT participant"),
        ("--connectome C -d X BIDS OUT participant", "-d took X BIDS OUT participant"),
        ("--t-threshold 5 7 9 BIDS OUT participant", "--t-threshold took 5 7 9 BIDS OUT participant"),
        ("--ignore missing BIDS OUT group --dry-run", "--ignore took missing BIDS OUT group"),
        ("BIDS OUT --session-label 1 group", "--session-label took 1 group, BIDS is read as BIDS_DIR"),
        ("-w BIDS OUT participant", "-w took BIDS, OUT is read as BIDS_DIR, participant is read as OUTPUT_DIR"),
        ("-q --connectome BIDS OUT participant", "--connectome took BIDS, OUT is read as BIDS_DIR"),
    ],
)
def test_an_error_names_the_option_that_took_the_folders(words: str, account: str) -> None:
    """The error says which option took what was meant for the folders and the level, and where these go."""
    ended = capture(cli.main, *shlex.split(words))
    last = ended.stderr.splitlines()[-1]
    assert ended.returncode == 64
    assert f": {account}" in last
    assert last.endswith(f"; {ORDER}")


@pytest.mark.parametrize(
    ("words", "end"),
    [
        ("", "required: BIDS_DIR, OUTPUT_DIR, {participant,group}"),
        ("BIDS participant", "{participant,group}: BIDS is read as BIDS_DIR, participant is read as OUTPUT_DIR"),
        ("BIDS OUT participant --t-threshold 5 x", "'x' is not a positive number from 0.000001 to 1000000"),
        ("--nprocs x BIDS OUT participant", "argument --nprocs/--n-cpus: 'x' is not a positive integer"),
        ("BIDS OUT participant --participant-label", "--participant_label: expected at least one argument"),
    ],
)
def test_no_option_is_blamed_for_other_errors(words: str, end: str) -> None:
    """Where no option can have taken a folder, the error ends with its own sentence or with what was read."""
    ended = capture(cli.main, *shlex.split(words))
    assert ended.returncode == 64
    assert ended.stderr.splitlines()[-1].endswith(end)


def test_a_command_s_error_names_the_option_too() -> None:
    """The commands of bids-lacuna-connectome account for their words in the same way."""
    ended = capture(cli.connectome_main, *shlex.split("build --mask A B --space X --name c"))
    assert ended.returncode == 64
    assert "--mask took A, B is read as SOURCE; put SOURCE STORE before the options" in ended.stderr


def test_a_level_before_the_folders() -> None:
    """A level in the place of a folder is noticed."""
    ended = capture(cli.main, "participant", "BIDS", "OUT")
    assert ended.returncode == 17
    assert "there is no OUT level" in ended.stderr
    assert "name the level after BIDS_DIR and OUTPUT_DIR" in ended.stderr


def test_two_spellings_of_an_option_are_no_ambiguity() -> None:
    """An abbreviation may stand for one option with two spellings, not for two options."""
    parser = build_parser()
    places = ["BIDS", "OUT", "participant"]
    arguments = parser.parse_args([*places, "--participant", "01", "02", "--session=a"])
    assert (arguments.participant_label, arguments.session_label) == (["01", "02"], ["a"])
    ended = capture(cli.main, *places, "--lesion", "5")
    assert ended.returncode == 64
    assert "--lesion could match --lesion-weighting, --lesion-threshold, --lesion-batch-size" in ended.stderr
