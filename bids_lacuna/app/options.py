"""The command line of the BIDS App: its arguments, and what text they are read from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bids_lacuna._version import __version__
from bids_lacuna.app.command import Parser, connectome_name, fraction, label, positive_integer
from bids_lacuna.app.config import FLAG
from bids_lacuna.app.descriptor import PrintDescriptor
from bids_lacuna.citations import references
from bids_lacuna.text import parse_bytes


def build_parser() -> Parser:
    """Describe the command line."""
    parser = Parser(
        prog="bids-lacuna",
        description="Lesion network mapping: which brain regions are connected to each lesion of a BIDS dataset, "
        "in a normative functional connectome.",
    )
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="dataset with the lesion masks")
    parser.add_argument(
        "output_dir", type=Path, metavar="OUTPUT_DIR", help="where the maps go, e.g. BIDS_DIR/derivatives/bids-lacuna"
    )
    parser.add_argument(
        "analysis_level",
        metavar="{participant,group}",
        help="participant: map each lesion; group: describe the maps of all",
    )

    parser.add_argument(
        FLAG,
        type=Path,
        metavar="FILE",
        help="TOML with options, as in t-threshold = [5]; those of the command line win. Each run leaves one in its "
        "folder of logs that repeats it",
    )
    parser.add_argument(
        "--bids-exec-spec", nargs=0, action=PrintDescriptor, help="print a Boutiques descriptor of this command line"
    )

    connectome = parser.add_argument_group("connectome")
    connectome.add_argument(
        "--connectome",
        type=Path,
        metavar="PATH",
        help="needed at the participant level, unless --reports-only: store of a normative functional connectome, "
        "as bids-lacuna-connectome makes it; or an HDF5 file, or a folder of them",
    )
    connectome.add_argument(
        "--connectome-space",
        type=label,
        metavar="SPACE",
        help="template that it is in (default: what it records itself, else MNI152NLin6Asym)",
    )
    connectome.add_argument(
        "--connectome-name",
        type=connectome_name,
        metavar="NAME",
        help="its name in the maps' names (default: the store's own, or the letters and digits of PATH's name; "
        "at the group level that of most lesions' maps)",
    )

    lesions = parser.add_argument_group("which lesions")
    lesions.add_argument(
        "-d",
        "--derivatives",
        nargs="+",
        default=[],
        metavar="PATH|NAME=PATH",
        action="extend",
        help="more datasets to look for masks in",
    )
    lesions.add_argument(
        "--participant-label",
        "--participant_label",
        nargs="+",
        default=[],
        metavar="LABEL",
        action="extend",
        help="only these participants, with or without sub-",
    )
    lesions.add_argument(
        "--session-label",
        "--session_label",
        nargs="+",
        default=[],
        metavar="LABEL",
        action="extend",
        help="only these sessions, with or without ses-",
    )
    lesions.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help='JSON with the masks\' entities, {"lesion": {"label": "tumour"}}; null: absent, "*": any',
    )
    lesions.add_argument(
        "--bids-database-dir",
        type=Path,
        metavar="DIR",
        help="keep pybids' index there; a later run on the same dataset starts faster",
    )
    lesions.add_argument(
        "--skip-bids-validation",
        action="store_true",
        help="accepted for BIDS Apps' sake: masks are found in datasets that do not validate, too",
    )

    maps = parser.add_argument_group("maps")
    maps.add_argument(
        "--t-threshold",
        type=positive_number,
        nargs="+",
        default=[],
        metavar="T",
        action="extend",
        help="write a mask of |t| > T for each T; at the group level, the shares of lesions with t > T and t < -T "
        "(default there: the masks' own)",
    )
    maps.add_argument("--no-t-map", action="store_true", help="write no t-maps")
    maps.add_argument(
        "--lesion-weighting",
        choices=("volume", "binary"),
        default="volume",
        help="a connectome voxel counts by the share of it that the lesion covers, or fully from a half "
        "on (default: %(default)s)",
    )
    maps.add_argument(
        "--lesion-threshold",
        type=fraction,
        metavar="T",
        help="masks may be probability maps: voxels of at least T, above 0 and at most 1, count as much as their "
        "probability (default: masks must be binary)",
    )
    maps.add_argument("--overwrite", action="store_true", help="map lesions again whose maps are there")

    group = parser.add_argument_group("group level")
    group.add_argument(
        "--ignore",
        nargs="+",
        choices=("missing", "mixed"),
        default=[],
        metavar="missing|mixed",
        action="extend",
        help="leave lesions out whose maps are missing or damaged, or were made with another connectome, weighting "
        "or threshold than most (default: refuse, and name them)",
    )

    reports = parser.add_argument_group("reports")
    which = reports.add_mutually_exclusive_group()
    which.add_argument("--no-reports", action="store_true", help="write no pages")
    which.add_argument(
        "--reports-only", action="store_true", help="map nothing: write the pages anew from what is in OUTPUT_DIR"
    )

    reports.add_argument(
        "--md-only-boilerplate",
        action="store_true",
        help="write logs/CITATION.md, the methods text, without its .bib",
    )
    reports.add_argument("--citation", action=ShowCitation, nargs=0, help="print what to cite as BibTeX, and exit")

    resources = parser.add_argument_group("resources")
    resources.add_argument(
        "--lesion-batch-size",
        type=batch_size,
        default="auto",
        metavar="auto|N",
        help="lesions in one pass over the connectome (default: as many as the memory holds)",
    )
    resources.add_argument(
        "--mem",
        type=memory,
        metavar="SIZE",
        help="memory to use at most, e.g. 8G or 500M; a bare number is in MB (default: what the "
        "machine, the container or the scheduler leaves)",
    )
    resources.add_argument(
        "--nprocs",
        "--n-cpus",
        type=positive_integer,
        metavar="N",
        help="threads to use (default: all processors that may be used)",
    )
    cluster = resources.add_mutually_exclusive_group()
    cluster.add_argument(
        "--dask-workers",
        type=positive_integer,
        metavar="N",
        help="map in N processes of this machine, which share the threads and the memory (needs "
        "bids-lacuna[distributed])",
    )
    cluster.add_argument(
        "--dask-scheduler",
        metavar="ADDRESS|FILE",
        help="map on the workers of a Dask cluster, each with the threads that it was started with (--nprocs at "
        "most): tcp://host:8786, or its scheduler file",
    )
    resources.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="folder for checkpoints, and for compiled code, which makes the next start faster (default: for "
        "checkpoints, one in the system's temporary folder)",
    )
    resources.add_argument(
        "--checkpoint-minutes",
        type=minutes,
        default=10,
        metavar="MINUTES",
        help="how often the batch in work is saved, beside on SIGTERM, SIGINT and SIGUSR1, so that the same command "
        "goes on from there; 0: never (default: %(default)s)",
    )
    resources.add_argument(
        "--stop-on-first-crash",
        action="store_true",
        help="begin nothing new once a lesion has failed (default: go on with the others)",
    )
    resources.add_argument("--dry-run", action="store_true", help="print the lesions and the plan, and write nothing")
    resources.add_argument(
        "--notrack", action="store_true", help="accepted for BIDS Apps' sake: nothing is ever sent anywhere"
    )
    return parser


class ShowCitation(argparse.Action):
    """Print what to cite, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the program's and the method's reference."""
        sys.stdout.write(references("@bids_lacuna @boes2015", __version__))
        parser.exit()


def positive_number(text: str) -> float:
    """Read a number above 0 that may become part of file names."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1e-6 <= number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, from 0.000001 to 1000000")
    return number


def minutes(text: str) -> float:
    """Read a number of minutes, or 0."""
    return 0 if text.strip() == "0" else positive_number(text)


def batch_size(text: str) -> int | str:
    """Read `auto` or a whole number above 0."""
    return text if text == "auto" else positive_integer(text)


def memory(text: str) -> int:
    """Read a size of memory, in bytes."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
