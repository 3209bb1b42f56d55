"""The Boutiques descriptor describes the command line."""

import json
import subprocess
import sys
from pathlib import Path

from bids_lacuna.app import options
from bids_lacuna.app.command import Exit

ROOT = Path(__file__).parents[1]


def test_boutiques_json_is_up_to_date() -> None:
    """boutiques.json is the output of --bids-exec-spec; otherwise, run `make recorded`."""
    printed = subprocess.run(
        [sys.executable, ROOT / "run.py", "--bids-exec-spec"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == (ROOT / "boutiques.json").read_text()


def test_a_command_line_from_its_template_can_be_parsed() -> None:
    """Values that are inserted into the template, positional ones first, are parsed to the same values."""
    descriptor = json.loads((ROOT / "boutiques.json").read_text())
    values = {
        "InputDataset": "/data",
        "OutputLocation": "/out",
        "AnalysisLevel": "participant",
        "Connectome": "/store",
        "SubjectLabel": ["01", "02"],
        "TThreshold": ["7", "9.5"],
        "LesionWeighting": "binary",
        "Nprocs": "3",
        "DryRun": True,
    }
    command = descriptor["command-line"]
    for each in descriptor["inputs"]:
        value = values.pop(each["id"], None)
        words = [each["command-line-flag"]] if value is not None and "command-line-flag" in each else []
        if isinstance(value, list):
            assert each["list"]
            words += value
        elif isinstance(value, str):
            assert each["type"] in {"File", "String", "Number"}
            words.append(value)
        command = command.replace(each["value-key"], " ".join(words))
    assert not values
    program, *words = command.split()
    arguments = options.build_parser().parse_args(words)
    assert program == "bids-lacuna"
    assert (arguments.bids_dir, arguments.output_dir) == (Path("/data"), Path("/out"))
    assert arguments.participant_label == ["01", "02"]
    assert arguments.t_threshold == [7, 9.5]
    assert (arguments.lesion_weighting, arguments.nprocs, arguments.dry_run) == ("binary", 3, True)


def test_required_arguments_and_choices() -> None:
    """Only arguments of all levels are required, with the names of BEP027; the weighting has choices."""
    inputs = {each["id"]: each for each in json.loads((ROOT / "boutiques.json").read_text())["inputs"]}
    required = {name for name, each in inputs.items() if not each["optional"]}
    assert required == {"InputDataset", "OutputLocation", "AnalysisLevel"}
    assert {"Help", "ToolVersion", "SubjectLabel", "SessionLabel"} <= inputs.keys()
    assert inputs["LesionWeighting"]["value-choices"] == ["volume", "binary"]
    assert inputs["ToolVersion"] | {"description": ""} == {
        "id": "ToolVersion",
        "name": "version",
        "description": "",
        "type": "Flag",
        "value-key": "[TOOLVERSION]",
        "optional": True,
        "command-line-flag": "--version",
    }


def test_every_failure_is_described() -> None:
    """Each exit status except 0 has a description."""
    codes = {each["code"] for each in json.loads((ROOT / "boutiques.json").read_text())["error-codes"]}
    assert codes == {int(status) for status in Exit} - {0}
