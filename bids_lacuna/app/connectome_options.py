"""The options of bids-lacuna-connectome, the command line of connectomes."""

from __future__ import annotations

import argparse
from pathlib import Path

from bids_lacuna.app.command import Parser, connectome_name, fraction, label, positive_integer

PROGRAM = "bids-lacuna-connectome"

INTERRUPTED = "interrupted: finished subjects are on disk; rerun the same command to resume"


def build_parser() -> Parser:
    """Describe the command line; a command's name says which function of `app.connectome` runs it."""
    parser = Parser(
        prog=PROGRAM,
        description="Make a store of a normative functional connectome, from which bids-lacuna reads it at the speed "
        "of the disk.",
    )
    commands = parser.add_subparsers(required=True, metavar="{build,info,verify}")
    build = commands.add_parser("build", help="make a store", description="Make a store of a connectome.")
    info = commands.add_parser("info", help="tell what a store holds", description="Tell what a store holds.")
    verify = commands.add_parser(
        "verify",
        help="check a store",
        description="Read all of a store: checksums, shapes, scales, voxels without a signal, and whether the "
        "hemispheres mirror each other, which scrambled or shifted voxels do not.",
    )
    for name, command in {"build": build, "info": info, "verify": verify}.items():
        command.set_defaults(command=name, parser=command)
    for command in (info, verify):
        command.add_argument("store", type=Path, metavar="STORE", help="folder that `build` made")
    _add_source(build)
    _add_numbers(build)
    return parser


def _add_source(build: argparse.ArgumentParser) -> None:
    """Add what says which connectome is read, and from where."""
    build.add_argument(
        "source", type=Path, metavar="SOURCE", help="what you have: a file, or the folder of the files"
    )
    build.add_argument("store", type=Path, metavar="STORE", help="a new folder, or that of a build that was stopped")
    build.add_argument(
        "--space",
        type=label,
        required=True,
        metavar="SPACE",
        help="template that the connectome is in, as BIDS names it: MNI152NLin6Asym is that of FSL and of GSP1000",
    )
    build.add_argument(
        "--name", type=connectome_name, required=True, metavar="NAME", help="part of the maps' names: GSP1000"
    )
    build.add_argument(
        "--format",
        choices=("auto", "hdf5", "nifti", "bids", "leaddbs", "npy"),
        default="auto",
        help="layout of SOURCE: Lacuna's HDF5; 4D NIfTI files; derivatives of fMRIPrep or XCP-D; Lead-DBS's folder; "
        "NumPy arrays (timepoints, voxels) (default: what it looks like)",
    )
    build.add_argument(
        "--pattern",
        metavar="GLOB",
        help="nifti, npy: the series' paths below SOURCE (default for nifti: "
        "sub-*/func/*_rest_*_finalmask.nii.gz, for npy: *.npy)",
    )
    build.add_argument(
        "--mask",
        type=Path,
        metavar="MASK.nii.gz",
        help="brain mask on the series' grid; nifti and npy need it, bids takes it instead of the runs' own masks",
    )
    build.add_argument(
        "--mask-fraction",
        type=fraction,
        metavar="F",
        help="bids: voxels that at least this share of the runs' brain masks has (default: 0.95)",
    )
    build.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help='bids: JSON with the runs\' entities, {"bold": {"task": "movie"}}; null: absent, "*": any',
    )


def _add_numbers(build: argparse.ArgumentParser) -> None:
    """Add what says in which numbers it is stored, and how many subjects are read at once."""
    build.add_argument(
        "--dtype",
        choices=("int16", "float32"),
        default="int16",
        help="numbers of the store: int16 is off by less than 1e-4 in one subject's r, and half as large "
        "(default: %(default)s)",
    )
    build.add_argument(
        "--rank",
        type=rank,
        default="full",
        metavar="{full,auto,K}",
        help="components that a subject's series are stored in: one for each timepoint; as few as the tolerance "
        "allows, which saves space and time where series are filtered; or K (default: %(default)s)",
    )
    build.add_argument(
        "--rank-tolerance",
        type=tolerance,
        metavar="R",
        help="auto: largest bound on the error in r; K: a warning where it is above (default: 1e-5)",
    )
    build.add_argument(
        "--nprocs",
        "--n-cpus",
        type=positive_integer,
        metavar="N",
        help="subjects to read at once (default: all processors that may be used)",
    )


def rank(text: str) -> str | int:
    """Read how many components are kept."""
    if text in ("auto", "full"):
        return text
    try:
        return positive_integer(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither full nor auto nor a whole number above 0") from error


def tolerance(text: str) -> float:
    """Read by how much a correlation may be off."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a difference in r above 0 and below 1")
    return number
