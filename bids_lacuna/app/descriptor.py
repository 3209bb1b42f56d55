"""A Boutiques descriptor of the command line, generated from its parser."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bids_lacuna._version import __version__
from bids_lacuna.app.command import Exit, positive_integer

REPOSITORY = "https://github.com/bids-lacuna/bids_lacuna"

IDENTIFIERS = {
    "bids_dir": "InputDataset",
    "output_dir": "OutputLocation",
    "participant_label": "SubjectLabel",
    "version": "ToolVersion",
}
"""Names of arguments in the draft of the BIDS execution specification (BEP027), where they differ from ours."""

ERRORS = {
    Exit.FAILED: "A lesion failed, no lesion could be mapped, or the memory is too small",
    Exit.NOT_BIDS: "Not a BIDS dataset",
    Exit.UNKNOWN_LEVEL: "Unknown analysis level",
    Exit.NO_FILES_SELECTED: "The filters select no lesion masks",
    Exit.USAGE: "Wrong usage",
    Exit.BAD_DATA: "Unusable connectome or group",
    Exit.NO_INPUT: "An input is missing",
    Exit.CANNOT_CREATE: "The output folder cannot be used",
    Exit.INPUT_OUTPUT: "The output could not be written",
    Exit.TEMPORARY: "The Dask cluster cannot be reached; rerunning the same command resumes",
    Exit.INTERRUPTED: "Interrupted",
    Exit.BROKEN_PIPE: "The output could not be written, since its reader has ended",
    Exit.TERMINATED: "Terminated by SIGTERM, SIGHUP, SIGUSR2 or SIGXCPU",
}


class PrintDescriptor(argparse.Action):
    """Print the descriptor of the parser, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the descriptor of the parser, and exit."""
        print(json.dumps(describe(parser), indent=2))  # noqa: T201
        parser.exit()


def describe(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the Boutiques descriptor (https://boutiques.github.io) of a command line, with BEP027's argument names.

    Returns
    -------
    dict
        Descriptor that can be written as JSON. Positional arguments come first, in order.
    """
    actions = [action for action in parser._actions if not isinstance(action, PrintDescriptor)]
    inputs = [_input(action) for action in sorted(actions, key=lambda action: bool(action.option_strings))]
    return {
        "name": parser.prog,
        "description": parser.description,
        "tool-version": __version__,
        "schema-version": "0.5",
        "url": REPOSITORY,
        "descriptor-url": f"{REPOSITORY}/blob/main/boutiques.json",
        "container-image": {
            "type": "docker",
            "index": "docker://ghcr.io",
            "image": f"bids-lacuna/bids_lacuna:{__version__}",
            "entrypoint": True,
        },
        "command-line": " ".join([parser.prog, *(each["value-key"] for each in inputs)]),
        "inputs": inputs,
        "output-files": [
            {"id": "Maps", "name": "Maps, as a BIDS derivative dataset", "path-template": "[OUTPUTLOCATION]"}
        ],
        "error-codes": [{"code": int(status), "description": words} for status, words in ERRORS.items()],
        "custom": {"BIDSAppSpecVersion": "BEP027, draft"},
    }


def _input(action: argparse.Action) -> dict[str, Any]:
    identifier = IDENTIFIERS.get(action.dest) or "".join(word.capitalize() for word in action.dest.split("_"))
    words = (action.help or "") % {"default": action.default, "prog": ""}
    described: dict[str, Any] = {
        "id": identifier,
        "name": action.dest.replace("_", " "),
        "description": words,
        "type": _type(action),
        "value-key": f"[{identifier.upper()}]",
        "optional": not action.required,
    }
    if action.option_strings:
        described["command-line-flag"] = next(flag for flag in action.option_strings if flag.startswith("--"))
    if action.nargs == "+":
        described["list"] = True
    if action.choices:
        described["value-choices"] = list(action.choices)
    return described


def _type(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "Flag"
    return {Path: "File", positive_integer: "Number"}.get(action.type, "String")
