"""The options of the BIDS App, and the types of their values."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bids_lacuna._version import __version__
from bids_lacuna.app.command import Parser, connectome_name, fraction, label, positive_integer
from bids_lacuna.app.config import FLAG
from bids_lacuna.app.descriptor import PrintDescriptor
from bids_lacuna.app.values import (
    batch_size,
    group_label,
    memory,
    minutes,
    natural_number,
    positive_number,
    target,
    transform,
)
from bids_lacuna.citations import references


def build_parser() -> Parser:
    """Return the parser of the BIDS App's command line."""
    parser = Parser(
        prog="bids-lacuna",
        description="Lesion network mapping: map the brain regions connected to each lesion of a BIDS dataset, "
        "using a normative functional connectome.",
    )
    _add_general(parser)
    _add_connectome(parser)
    _add_lesions(parser)
    _add_seeds(parser)
    _add_maps(parser)
    _add_targets(parser)
    _add_nulls(parser)
    _add_parcels(parser)
    _add_group(parser)
    _add_test(parser)
    _add_reports(parser)
    _add_resources(parser)
    return parser


def _add_general(parser: Parser) -> None:
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="BIDS dataset with the lesion masks")
    parser.add_argument(
        "output_dir",
        type=Path,
        metavar="OUTPUT_DIR",
        help="folder for the maps, for example BIDS_DIR/derivatives/bids-lacuna",
    )
    parser.add_argument(
        "analysis_level",
        metavar="{participant,group}",
        help="participant: map each lesion; group: summarize the maps of all lesions",
    )
    parser.add_argument(
        FLAG,
        type=Path,
        metavar="FILE",
        help="TOML file with options, such as t-threshold = [5]; the command line takes precedence. Each run saves "
        "its options in its log folder",
    )
    parser.add_argument(
        "--bids-exec-spec",
        nargs=0,
        action=PrintDescriptor,
        help="print a Boutiques descriptor of this command line and exit",
    )


def _add_connectome(parser: Parser) -> None:
    group = parser.add_argument_group("connectome")
    group.add_argument(
        "--connectome",
        type=Path,
        metavar="PATH",
        help="normative functional connectome: a store made by bids-lacuna-connectome, an HDF5 file, or a folder of "
        "HDF5 files. Required at the participant level, except with --reports-only",
    )
    group.add_argument(
        "--connectome-space",
        type=label,
        metavar="SPACE",
        help="template space of a connectome that records none; `bids-lacuna-connectome rename-space` corrects a "
        "store's record (default: as recorded, otherwise MNI152NLin6Asym)",
    )
    group.add_argument(
        "--connectome-name",
        type=connectome_name,
        metavar="NAME",
        help="name of the connectome in file names (default: as recorded in the store, otherwise the letters and "
        "digits of PATH's name; at the group level, the name in most lesions' maps)",
    )
    group.add_argument(
        "--connectome-summary",
        type=Path,
        metavar="DIR",
        help="summary of the connectome made by bids-lacuna-connectome summarize --output DIR: maps are compared "
        "with its degree and principal components, and with null lesions (default: that in the store)",
    )


def _add_lesions(parser: Parser) -> None:
    group = parser.add_argument_group("lesion selection")
    group.add_argument(
        "-d",
        "--derivatives",
        nargs="+",
        default=[],
        metavar="PATH|NAME=PATH",
        action="extend",
        help="search these datasets for lesion masks, too, and for fMRIPrep's transforms",
    )
    _add_transforms(group)
    group.add_argument(
        "--participant-label",
        "--participant_label",
        nargs="+",
        default=[],
        metavar="LABEL",
        action="extend",
        help="process only these participants (the sub- prefix may be omitted)",
    )
    group.add_argument(
        "--session-label",
        "--session_label",
        nargs="+",
        default=[],
        metavar="LABEL",
        action="extend",
        help="process only these sessions (the ses- prefix may be omitted)",
    )
    group.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help='JSON file with PyBIDS filters, such as {"lesion": {"label": "tumour"}}; null: without the entity, "*": '
        "with any value",
    )
    group.add_argument(
        "--bids-database-dir",
        type=Path,
        metavar="DIR",
        help="folder for a PyBIDS database, with which later runs on the dataset start faster; created if missing",
    )
    group.add_argument(
        "--skip-bids-validation",
        action="store_true",
        help="accepted for compatibility with BIDS Apps; has no effect: datasets are not validated",
    )


def _add_seeds(parser: Parser) -> None:
    group = parser.add_argument_group("seeds in place of lesions")
    exclusive = group.add_mutually_exclusive_group()
    exclusive.add_argument(
        "--coordinates",
        type=Path,
        metavar="FILE",
        help="map spheres around coordinates: a table (.tsv) with participant_id, label, x, y, z in mm, and "
        "optionally session_id and radius_mm (6 if empty); spheres of one label are one seed",
    )
    exclusive.add_argument(
        "--seed-label",
        type=label,
        nargs="+",
        default=[],
        metavar="LABEL",
        action="extend",
        help="map images with these labels (label-LABEL, suffix mask, roi or probseg), and call them seeds",
    )
    group.add_argument(
        "--coordinates-space",
        type=label,
        metavar="SPACE",
        help="space of the coordinates (default: the connectome's)",
    )


def _add_transforms(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--transform",
        type=transform,
        nargs="+",
        default=[],
        metavar="A:B=FILE",
        action="extend",
        help="ITK transform that resamples images of space A into space B, for masks in A; several are chained; "
        "{sub} and {ses} in FILE stand for a mask's labels (default: fMRIPrep's in the datasets of -d, and "
        "TemplateFlow's)",
    )
    group.add_argument(
        "--no-download",
        action="store_true",
        help="download nothing: use only those of TemplateFlow's transforms that are in TEMPLATEFLOW_HOME",
    )


def _add_maps(parser: Parser) -> None:
    group = parser.add_argument_group("maps")
    group.add_argument(
        "--t-threshold",
        type=positive_number,
        nargs="+",
        default=[],
        metavar="T",
        action="extend",
        help="write a mask of |t| > T for each T; at the group level, write maps of the fraction of lesions with t > "
        "T and with t < -T (default there: the thresholds that all lesions have masks for)",
    )
    group.add_argument("--no-t-map", action="store_true", help="do not write t-maps")
    group.add_argument(
        "--lesion-weighting",
        choices=("volume", "binary"),
        default="volume",
        help="weight of a connectome voxel: the fraction of its volume inside the lesion, or 1 if that is at least "
        "one half, and else 0 (default: %(default)s)",
    )
    group.add_argument(
        "--lesion-threshold",
        type=fraction,
        metavar="T",
        help="accept lesion probability maps: voxels of at least T, with 0 < T <= 1, are weighted by their "
        "probability (default: masks must be binary)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="map lesions again that have maps already; at the group level, replace the files of a group of other "
        "lesions or another connectome",
    )


def _add_targets(parser: Parser) -> None:
    group = parser.add_argument_group("target networks")
    group.add_argument(
        "--target",
        type=target,
        nargs="+",
        default=[],
        metavar="NAME=MAP",
        action="extend",
        help="compare each lesion with a map, such as a published network: spatial correlation with its z-map, and "
        "mean of the map over the lesion. The map's space is that of its name or sidecar, if transforms lead from "
        "there to the connectome's (default: the connectome's)",
    )


def _add_nulls(parser: Parser) -> None:
    group = parser.add_argument_group("null lesions")
    group.add_argument(
        "--null-lesions",
        type=natural_number,
        metavar="N",
        help="compare each lesion, and a group, with the same lesions at N other places of their hemispheres, by the "
        "connectome's summary; 0: do not (default: 1000 if there is a summary)",
    )
    group.add_argument(
        "--tissue-maps",
        type=Path,
        nargs=2,
        metavar=("GM", "WM"),
        help="masks or probability maps of grey and of white matter in the connectome's space, by which places are "
        "alike (default: nilearn's MNI152 masks)",
    )


def _add_parcels(parser: Parser) -> None:
    group = parser.add_argument_group("parcels")
    group.add_argument(
        "--atlas",
        nargs="+",
        default=[],
        metavar="NAME|PATH",
        action="extend",
        help="write tables of each map's means and the lesion's volume by the regions of these atlases, also for "
        "maps that exist: a NIfTI image with a table of labels beside it, a folder atlas-LABEL, or a name in "
        "TemplateFlow such as Schaefer2018:400Parcels7Networks",
    )


def _add_group(parser: Parser) -> None:
    group = parser.add_argument_group("group level")
    group.add_argument(
        "--ignore",
        nargs="+",
        choices=("missing", "mixed"),
        default=[],
        metavar="missing|mixed",
        action="extend",
        help="leave out lesions whose maps are missing or damaged, or were made with another connectome, weighting "
        "or lesion threshold than most (default: stop and name these lesions)",
    )

    group.add_argument(
        "--name",
        type=group_label,
        metavar="LABEL",
        help="name of the group, for several groups in one output folder: its files and its report are in "
        "group_LABEL (default: in the output folder itself)",
    )


def _add_test(parser: Parser) -> None:
    group = parser.add_argument_group("test at the group level")
    group.add_argument(
        "--test",
        metavar="COLUMN",
        help="test where connectivity goes with a column of participants.tsv or sessions.tsv, by permutation: two "
        "values are two groups, the later in sorting order against the earlier (COLUMN=VALUE names the other as the "
        "cases); more numbers are a score",
    )
    group.add_argument(
        "--covariates",
        nargs="+",
        default=[],
        metavar="COLUMN",
        action="extend",
        help="columns of numbers or words to adjust for; lesion_volume (cube root) and coverage need no table",
    )
    group.add_argument(
        "--blocks", metavar="COLUMN", help="exchange patients only within values of this column, such as site"
    )
    group.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="tab-separated table with participant_id, and session_id where there are sessions (default: "
        "participants.tsv and sessions.tsv of BIDS_DIR)",
    )
    group.add_argument(
        "--drop-missing",
        action="store_true",
        help="leave out patients without a value in a column (default: stop and name them)",
    )
    _add_inference(group)


def _add_inference(group: argparse._ArgumentGroup) -> None:
    """Add the options about statistics of a test."""
    group.add_argument(
        "--statistic",
        choices=("auto", "pooled", "welch"),
        default="auto",
        help="pooled: Student's t; welch: two groups with their own variances; auto: welch where one group has more "
        "than 1.5 times the other's size (default: %(default)s)",
    )
    group.add_argument(
        "--permutations",
        type=positive_integer,
        default=10_000,
        metavar="N",
        help="number of permutations; all distinct ones if there are fewer (default: %(default)s)",
    )
    group.add_argument(
        "--random-seed",
        type=natural_number,
        default=0,
        metavar="N",
        help="seed of the permutations and of the places of null lesions: the same seed gives the same result "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--alpha",
        type=fraction,
        default=0.05,
        metavar="P",
        help="level of significance, corrected for all voxels (default: %(default)s)",
    )
    group.add_argument("--input", choices=("z", "t"), default="z", help="maps that are tested (default: %(default)s)")
    group.add_argument(
        "--sensitivity",
        type=fraction,
        default=0.75,
        metavar="SHARE",
        help="smallest fraction of the cases with |t| above --t-threshold in the conjunction with the test (default: "
        "%(default)s)",
    )


def _add_reports(parser: Parser) -> None:
    group = parser.add_argument_group("reports")
    exclusive = group.add_mutually_exclusive_group()
    exclusive.add_argument("--no-reports", action="store_true", help="do not write reports")
    exclusive.add_argument(
        "--reports-only", action="store_true", help="only write reports, from the maps in OUTPUT_DIR"
    )
    group.add_argument(
        "--md-only-boilerplate",
        action="store_true",
        help="write the methods text, logs/CITATION.md, without its bibliography, logs/CITATION.bib",
    )
    group.add_argument("--citation", action=ShowCitation, nargs=0, help="print BibTeX of what to cite and exit")


def _add_resources(parser: Parser) -> None:
    group = parser.add_argument_group("resources")
    group.add_argument(
        "--lesion-batch-size",
        type=batch_size,
        default="auto",
        metavar="auto|N",
        help="maximum number of lesions in one pass over the connectome (default: as many as fit in memory)",
    )
    group.add_argument(
        "--mem",
        type=memory,
        metavar="SIZE",
        help="upper bound of memory use, for example 8G or 500M; a number without a unit is in MB (default: the "
        "memory that the machine, the container or the scheduler leaves)",
    )
    group.add_argument(
        "--nprocs",
        "--n-cpus",
        type=positive_integer,
        metavar="N",
        help="maximum number of threads (default: all available processors)",
    )
    _add_dask(group)
    group.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="folder for checkpoints, and for compiled code, which later runs reuse to start faster (default: "
        "checkpoints are in the system's temporary folder, compiled code is in the user's cache)",
    )
    group.add_argument(
        "--checkpoint-minutes",
        type=minutes,
        default=10,
        metavar="MINUTES",
        help="interval between checkpoints, from which rerunning the same command resumes; they are also saved on "
        "signals that end the program, and on SIGUSR1. 0: no checkpoints (default: %(default)s)",
    )
    group.add_argument(
        "--stop-on-first-crash",
        action="store_true",
        help="start no further lesions after one has failed (default: map the others)",
    )
    group.add_argument("--dry-run", action="store_true", help="print the lesions and the plan, and write nothing")
    group.add_argument(
        "--notrack",
        action="store_true",
        help="accepted for compatibility with BIDS Apps; has no effect: nothing is ever tracked",
    )


def _add_dask(group: argparse._ArgumentGroup) -> None:
    exclusive = group.add_mutually_exclusive_group()
    exclusive.add_argument(
        "--dask-workers",
        type=positive_integer,
        metavar="N",
        help="map in N Dask workers on this machine, which share the threads and the memory (requires "
        "bids-lacuna[distributed])",
    )
    exclusive.add_argument(
        "--dask-scheduler",
        metavar="ADDRESS|FILE",
        help="map on the workers of a Dask cluster: the address of its scheduler, such as tcp://host:8786, or its "
        "scheduler file. Each worker uses the threads that it was started with, up to --nprocs",
    )


class ShowCitation(argparse.Action):
    """Print BibTeX of what to cite, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the references of the program and of the method."""
        sys.stdout.write(references("@bids_lacuna @boes2015", __version__))
        parser.exit()
