"""Options in TOML files, suggestions for mistyped words, and completion by a shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bids_lacuna import cli
from bids_lacuna.app.config import add_config_file, write_config
from bids_lacuna.app.options import build_parser

PLACES = ["bids", "out", "participant"]


def parse(*words: str) -> dict[str, object]:
    """Parse a command line like the program."""
    parser = build_parser()
    return vars(parser.parse_args(add_config_file(parser, [*PLACES, *words])))


def write(folder: Path, text: str) -> str:
    """Write a file of options, and return the option that names it."""
    (folder / "options.toml").write_text(text)
    return f"--config-file={folder / 'options.toml'}"


def test_options_of_a_file_are_those_of_a_command_line(tmp_path: Path) -> None:
    """Strings, numbers, lists and flags in the file equal those of the command line; `_` may replace `-`."""
    text = 'connectome = "GSP"\nt-threshold = [5, 7.5]\nmem = "2G"\nno-reports = true\noverwrite = false\n'
    text += 'participant_label = "01"\nlesion-batch-size = 20\n'
    there = parse(write(tmp_path, text))
    here = parse(*shlex.split("--connectome GSP --t-threshold 5 7.5 --mem 2G --no-reports --participant-label 01"))
    here |= {"lesion_batch_size": 20, "config_file": there["config_file"]}
    assert there == here


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_files_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    """Windows' editors and shells write a byte order mark, or UTF-16: the file means the same."""
    mark = "\ufeff" if encoding.endswith("e") else ""
    (tmp_path / "options.toml").write_bytes(f'{mark}# Läsionen\r\nconnectome = "Größe"\r\n'.encode(encoding))
    arguments = parse(f"--config-file={tmp_path / 'options.toml'}")
    assert arguments["connectome"] == Path("Größe")


def test_a_file_of_another_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not Unicode is an error that says what to do."""
    (tmp_path / "options.toml").write_bytes('connectome = "Größe"'.encode("latin-1"))
    with pytest.raises(SystemExit) as end:
        parse(f"--config-file={tmp_path / 'options.toml'}")
    assert end.value.code == 64
    assert "options.toml is not valid TOML" in (error := capsys.readouterr().err)
    assert "save it as UTF-8" in error


def test_the_command_line_takes_precedence(tmp_path: Path) -> None:
    """An option of the command line, or one that excludes it there, replaces that of the file."""
    config = write(tmp_path, "t-threshold = [5, 7]\nno-reports = true\nnprocs = 3\n")
    arguments = parse("--t-threshold", "4", config, "--reports-only")
    assert arguments["t_threshold"] == [4]
    assert (arguments["no_reports"], arguments["reports_only"]) == (False, True)
    assert arguments["nprocs"] == 3


def test_an_abbreviated_option_and_one_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--config-file may be abbreviated, and is an error without a file. -v overrides quiet in the file."""
    config = write(tmp_path, 'lesion-weighting = "binary"\nquiet = true\n')
    arguments = parse(config.replace("-file=", "="), "-v")
    assert (arguments["lesion_weighting"], arguments["verbose"]) == ("binary", 1)
    with pytest.raises(SystemExit) as end:
        cli.main([*PLACES, "--config-file"])
    assert end.value.code == 64
    assert "--config-file: expected one argument" in capsys.readouterr().err


def test_a_run_s_file_repeats_it(tmp_path: Path) -> None:
    """The file that a run writes gives the same options again, and its first line is the command to do so."""
    parser = build_parser()
    words = shlex.split(
        "--connectome 'my \"own\" GSP' -d more=x --t-threshold 3.5 --no-t-map --mem 1500M -w work --ignore mixed "
        "--session-label a b --lesion-threshold .5 --checkpoint-minutes 0"
    )
    arguments = parser.parse_args([*PLACES, *words])
    write_config(tmp_path / "config.toml", parser, arguments)
    command = (tmp_path / "config.toml").read_text().splitlines()[0].partition("&& bids-lacuna ")[2]
    again = parser.parse_args(add_config_file(parser, shlex.split(command)))
    same = vars(arguments) | {"config_file": again.config_file}
    same |= {name: Path.cwd() / same[name] for name in ("bids_dir", "output_dir")}
    assert vars(again) == same


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("t-treshold = 3", 64, "'t-treshold', which is not an option: did you mean t-threshold?"),
        ("version = true", 64, "'version', which is not an option"),
        ("config-file = 'x'", 64, "'config-file', which is not an option"),
        ("no-t-map = 'yes'", 64, "no-t-map must be true or false, not 'yes'"),
        ("nprocs = [1, 2]", 64, "nprocs must be a string or a number, not [1, 2]"),
        ("t-threshold = [[1]]", 64, "t-threshold must be a string, a number or a list of these, not [[1]]"),
        ("t-threshold = [0]", 64, "argument --t-threshold: '0' is not a positive number"),
        ("nprocs = ", 64, "is not valid TOML (Invalid value"),
        (None, 66, "cannot be read ([Errno 2] No such file"),
    ],
)
def test_mistakes_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, status: int, words: str
) -> None:
    """An error in the file gives a sentence that names the file or the option."""
    config = f"--config-file={tmp_path / 'nothing.toml'}" if text is None else write(tmp_path, text)
    with pytest.raises(SystemExit) as end:
        cli.main([*PLACES, config])
    assert end.value.code == status
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("main", "words", "suggested"),
    [
        (cli.main, [*PLACES, "--conectome", "x"], "--connectome"),
        (cli.main, [*PLACES, "--lesionbatchsize=3"], "--lesion-batch-size"),
        (cli.connectome_main, ["build", "a", "b", "--space", "X", "--name", "y", "--rnk", "3"], "--rank"),
    ],
)
def test_mistyped_options(
    capsys: pytest.CaptureFixture[str], main: type[cli.main], words: list[str], suggested: str
) -> None:
    """The option that is most similar to an unknown one is suggested."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 64
    assert capsys.readouterr().err.rstrip().endswith(f": did you mean {suggested}?")


def test_a_mistyped_level(capsys: pytest.CaptureFixture[str]) -> None:
    """The level that is most similar to an unknown one is suggested."""
    assert cli.main(["bids", "out", "participan"]) == 17
    assert "did you mean participant?" in capsys.readouterr().err


def test_a_shell_completes_words(tmp_path: Path) -> None:
    """A shell with argcomplete gets the options with a prefix, and the choices of an option."""
    found = {}
    for line in ("bids-lacuna --lesion-", "bids-lacuna --lesion-weighting "):
        answer = tmp_path / "answer"
        asking = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
        asking |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "63"}
        subprocess.run([sys.executable, "-m", "bids_lacuna"], env={**os.environ, **asking}, check=True)
        found[line] = sorted(word.strip() for word in answer.read_text().split("\n"))
    assert list(found.values()) == [
        ["--lesion-batch-size", "--lesion-threshold", "--lesion-weighting"],
        ["binary", "volume"],
    ]
