"""Command line of bids-lacuna-connectome: its commands and options."""

from __future__ import annotations

import argparse
from pathlib import Path

from bids_lacuna.app.command import Parser, connectome_name, fraction, label, positive_integer
from bids_lacuna.app.values import memory, positive_number

PROGRAM = "bids-lacuna-connectome"

KEY_VARIABLE = "BIDS_LACUNA_DATAVERSE_TOKEN"
"""Environment variable with the token of a Dataverse server."""

INTERRUPTED = "interrupted: finished subjects and received bytes are on disk; rerun the same command to resume"
"""Message after Ctrl-C or SIGTERM."""


def build_parser() -> Parser:
    """Build the argument parser; `command` in its result is the command's name."""
    parser = Parser(
        prog=PROGRAM,
        description="Fetch normative functional connectomes, and build and check stores of them, which bids-lacuna "
        "reads at the speed of the disk.",
    )
    commands = parser.add_subparsers(required=True, metavar="{fetch,build,summarize,info,verify,rename-space}")
    fetch = commands.add_parser(
        "fetch",
        help="fetch a connectome",
        description="Fetch the files of a connectome from a Dataverse server, and verify their checksums. If the "
        "download is interrupted, rerun the same command to resume: received bytes are not fetched again.",
    )
    build = commands.add_parser("build", help="build a store", description="Build a store of a connectome.")
    summarize = commands.add_parser(
        "summarize",
        help="summarize a store",
        description="Summarize a store in one pass over its subjects: covariances of cubes with all voxels, "
        "degree and principal components. With a summary, bids-lacuna compares each map with degree and null "
        "lesions.",
    )
    info = commands.add_parser("info", help="describe a store", description="Describe the contents of a store.")
    verify = commands.add_parser(
        "verify",
        help="check a store",
        description="Read a whole store and check its checksums, shapes and scales, voxels without a signal, and the "
        "mirror symmetry of the hemispheres, which scrambled or shifted voxels lack.",
    )
    rename = commands.add_parser(
        "rename-space",
        help="correct the space of a store",
        description="Correct the name of the template space that a store records. The series and the grid stay as "
        "they are, and the store keeps the former name as well: nothing is transformed.",
    )
    for name, command in commands.choices.items():
        command.set_defaults(command=name, parser=command)
    for command in (summarize, info, verify, rename):
        command.add_argument("store", type=Path, metavar="STORE", help="folder of a store")
    for command in (info, verify):
        command.add_argument(
            "--connectome-summary",
            type=Path,
            metavar="DIR",
            help="folder of the store's summary (default: summary in STORE)",
        )
    rename.add_argument("space", type=label, metavar="SPACE", help="BIDS name of the template space")
    _add_download(fetch)
    _add_store(fetch)
    _add_summary(summarize)
    _add_source(build)
    _add_numbers(build)
    _add_numbers(fetch)
    return parser


def _add_download(fetch: argparse.ArgumentParser) -> None:
    """Add the options of a download."""
    fetch.add_argument(
        "dataset",
        metavar="DATASET",
        help="gsp1000, or the DOI of another dataset, as in doi:10.7910/… or https://doi.org/10.7910/…",
    )
    fetch.add_argument("folder", type=Path, metavar="DIR", help="a new folder, or that of an unfinished download")
    fetch.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file that holds your token of the server, which it shows under API Token (default: the environment "
        f"variable {KEY_VARIABLE})",
    )
    fetch.add_argument(
        "--files",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="names or paths of the files to fetch, with * for any characters (default: all)",
    )
    fetch.add_argument(
        "--server",
        default="https://dataverse.harvard.edu",
        metavar="URL",
        help="address of the Dataverse server (default: %(default)s)",
    )
    fetch.add_argument(
        "--jobs",
        type=positive_integer,
        default=4,
        metavar="N",
        help="number of files to fetch at the same time (default: %(default)s)",
    )
    fetch.add_argument(
        "--accept-terms",
        action="store_true",
        help="accept the dataset's terms of use, which are printed, without being asked",
    )


def _add_store(fetch: argparse.ArgumentParser) -> None:
    """Add the options of a store that is built from the download."""
    fetch.add_argument(
        "--build",
        type=Path,
        metavar="STORE",
        help="build a store of the NIfTI files in the tar archives: each archive is converted and removed once it is "
        "fetched. The options below are those of the command build",
    )
    fetch.add_argument(
        "--space", type=label, metavar="SPACE", help="template space of the connectome; for gsp1000 it is known"
    )
    fetch.add_argument(
        "--name", type=connectome_name, metavar="NAME", help="name of the connectome; for gsp1000: GSP1000"
    )
    fetch.add_argument(
        "--mask",
        type=Path,
        metavar="MASK.nii.gz",
        help="brain mask on the grid of the series, a file of yours or of the dataset; required with --build",
    )
    fetch.add_argument(
        "--pattern",
        metavar="GLOB",
        help="paths of the series in the archives (default: sub-*/func/*_rest_*_finalmask.nii.gz)",
    )


def _add_source(build: argparse.ArgumentParser) -> None:
    """Add the options of the source: where it is, what it is, and which part of it to read."""
    build.add_argument(
        "source", type=Path, metavar="SOURCE", help="the connectome to convert: a file, or a folder of files"
    )
    build.add_argument("store", type=Path, metavar="STORE", help="a new folder, or the folder of an unfinished build")
    build.add_argument(
        "--space",
        type=label,
        required=True,
        metavar="SPACE",
        help="BIDS name of the connectome's template space; MNI152NLin6Asym is that of FSL and of GSP1000",
    )
    build.add_argument(
        "--name",
        type=connectome_name,
        required=True,
        metavar="NAME",
        help="name of the connectome, part of the maps' file names, such as GSP1000",
    )
    build.add_argument(
        "--format",
        choices=("auto", "hdf5", "nifti", "bids", "leaddbs", "npy"),
        default="auto",
        help="layout of SOURCE: Lacuna's HDF5; 4D NIfTI files; derivatives of fMRIPrep or XCP-D; a folder of "
        "Lead-DBS; NumPy arrays (timepoints, voxels) (default: detected from the file names)",
    )
    build.add_argument(
        "--pattern",
        metavar="GLOB",
        help="nifti, npy: paths of the series relative to SOURCE (default for nifti: "
        "sub-*/func/*_rest_*_finalmask.nii.gz, for npy: *.npy)",
    )
    build.add_argument(
        "--mask",
        type=Path,
        metavar="MASK.nii.gz",
        help="brain mask on the grid of the series; required for nifti and npy, for bids instead of the runs' masks",
    )
    build.add_argument(
        "--mask-fraction",
        type=fraction,
        metavar="F",
        help="bids: smallest fraction of the runs' brain masks that a voxel must be in (default: 0.95)",
    )
    build.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help='bids: JSON file with entities of the BOLD runs, {"bold": {"task": "movie"}}; null: absent, "*": any',
    )


def _add_numbers(build: argparse.ArgumentParser) -> None:
    """Add the options of the stored numbers and of the processes."""
    build.add_argument(
        "--dtype",
        choices=("int16", "float32"),
        default="int16",
        help="data type of the store; int16 has errors below 1e-4 in one subject's r and takes half the space "
        "(default: %(default)s)",
    )
    build.add_argument(
        "--rank",
        type=rank,
        metavar="{auto,full,K}",
        help="number of components stored per subject: as few as the tolerance allows where that saves a tenth, as "
        "for filtered series (auto), one per timepoint (full), or at most K (default: auto, or that of the finished "
        "store)",
    )
    build.add_argument(
        "--rank-tolerance",
        type=tolerance,
        metavar="R",
        help="auto: largest bound on the error in r; K: bound above which a warning is logged (default: 1e-5)",
    )
    build.add_argument(
        "--nprocs",
        "--n-cpus",
        type=positive_integer,
        metavar="N",
        help="number of subjects to read at the same time (default: all available processors)",
    )
    build.add_argument(
        "--summarize",
        action="store_true",
        help="summarize the store once it is built, as the command summarize does",
    )


def _add_summary(summarize: argparse.ArgumentParser) -> None:
    """Add the options of a summary."""
    summarize.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the summary, if STORE is read-only; name it to bids-lacuna with --connectome-summary "
        "(default: summary in STORE)",
    )
    summarize.add_argument(
        "--cell-size-mm",
        type=positive_number,
        default=8,
        metavar="MM",
        help="edge of the cubes; smaller ones approximate maps more closely, and take more time and space (default: "
        "%(default)s)",
    )
    summarize.add_argument(
        "--mem",
        type=memory,
        metavar="SIZE",
        help="upper bound of memory use, for example 8G; where the covariances of all cubes do not fit, there are "
        "several passes (default: the memory that the machine, the container or the scheduler leaves)",
    )
    summarize.add_argument(
        "--nprocs",
        "--n-cpus",
        type=positive_integer,
        metavar="N",
        help="maximum number of threads (default: all available processors)",
    )


def rank(text: str) -> str | int:
    """Parse a rank: full, auto or a positive whole number."""
    if text in ("auto", "full"):
        return text
    try:
        return positive_integer(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither full nor auto nor a whole number above 0") from error


def tolerance(text: str) -> float:
    """Parse a difference in r, above 0 and below 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a difference in r above 0 and below 1")
    return number
