"""A test at the group level: the options, the table, and the order of the work."""

from __future__ import annotations

import argparse
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.app.command import Exit, Stop, ending
from bids_lacuna.files import read_json_object
from bids_lacuna.group import Group
from bids_lacuna.group.cohort import GroupLesion
from bids_lacuna.group.contrast import GroupTest, check_design, contrast_maps
from bids_lacuna.group.contrast_files import ContrastWriter, TestInput, record_path
from bids_lacuna.group.design import VOLUME, BadDesign, Design, Question
from bids_lacuna.group.inference import estimate_seconds, make_model
from bids_lacuna.group.outcomes import list_columns
from bids_lacuna.group.permutations import TooFewPermutations
from bids_lacuna.group.sensitivity import measure_lesioned, measure_sensitivity
from bids_lacuna.group.stack import BadMaps
from bids_lacuna.group.stale import list_keys, list_measures
from bids_lacuna.group.table import BadTable, Table, read_bids_tables, read_table_file
from bids_lacuna.images import open_image, read_volume
from bids_lacuna.mapping import Summary
from bids_lacuna.provenance import Provenance
from bids_lacuna.runtime.memory import resident_bytes
from bids_lacuna.runtime.plan import Resources
from bids_lacuna.targets import Target
from bids_lacuna.text import format_seconds

logger = logging.getLogger(__name__)

OF_TESTS = ("table", "covariates", "blocks", "drop_missing")
"""Options without a meaning where nothing is tested."""

BIDS_TABLES = "participants.tsv"
"""What a record calls the tables of the BIDS dataset itself."""


@dataclass(frozen=True)
class Asked:
    """A test that was asked for, with its table: checked before anything is written."""

    question: Question
    design: Design
    table: Table
    table_name: str
    """Path of the table in records: `BIDS_TABLES`, or that of --table, relative to the output."""


def read_question(arguments: argparse.Namespace, group: Group) -> Asked | None:
    """Read the test that the arguments ask for, if any, and check its design with the group's lesions."""
    if arguments.test is None:
        if needless := [name for name in OF_TESTS if getattr(arguments, name)]:
            raise Stop(Exit.USAGE, f"--{needless[0].replace('_', '-')} is for a test: name a column with --test")
        return None
    with ending(Exit.USAGE, ValueError):
        question = Question(
            arguments.test,
            tuple(arguments.covariates),
            arguments.blocks,
            arguments.statistic,
            arguments.permutations,
            arguments.random_seed,
            arguments.alpha,
            arguments.drop_missing,
        )
    _refuse_several(group.lesions)
    with ending(Exit.NO_INPUT, OSError), ending(Exit.BAD_DATA, BadTable):
        if arguments.table is None:
            name, table = BIDS_TABLES, read_named_table(BIDS_TABLES, arguments, group.lesions)
        else:
            name = Path(os.path.relpath(arguments.table.resolve(), arguments.output_dir.resolve())).as_posix()
            table = read_table_file(arguments.table)
    with ending(Exit.BAD_DATA, BadTable, BadDesign, TooFewPermutations):
        design = check_design(list_keys(group.lesions), table, question, list_measures(group.lesions))
    logger.info("test of %s", design.direction)
    return Asked(question, design, table, name)


def keep_other_test(folder: Path, design: Design, overwrite: bool) -> None:
    """Raise Stop if the folder has a test of another column whose files have the same names."""
    try:
        other = read_json_object(record_path(folder, design.label)).get("Column")
    except (OSError, ValueError):
        return
    if other != design.column and not overwrite:
        raise Stop(
            Exit.CANNOT_CREATE,
            f"{folder} has a test of {other}, whose files have the same names as those of {design.column}: rename "
            "one of the columns, give the group another name (--name LABEL), or replace the test with --overwrite",
        )


def read_named_table(name: str, arguments: argparse.Namespace, lesions: Sequence[GroupLesion]) -> Table:
    """Read a table by its name in records."""
    if name != BIDS_TABLES:
        return read_table_file(arguments.output_dir.resolve() / name)
    return read_bids_tables(arguments.bids_dir, sorted({lesion.mask.entities["sub"] for lesion in lesions}))


def _refuse_several(lesions: Sequence[GroupLesion]) -> None:
    """Stop if a participant has several lesions: patients are exchanged, and each has one map."""
    by_participant: Mapping[str, list[str]] = defaultdict(list)
    for lesion in lesions:
        by_participant[lesion.mask.entities["sub"]].append(lesion.name)
    several = [names for names in by_participant.values() if len(names) > 1]
    if several:
        lines = [f"{len(several)} participants have several lesions or sessions, and a test needs one map of each:"]
        lines += [f"  {', '.join(names)}" for names in several]
        lines.append("choose with --session-label or --bids-filter-file")
        raise Stop(Exit.BAD_DATA, "\n".join(lines))


def run_test(
    arguments: argparse.Namespace,
    asked: Asked,
    lesions: Sequence[GroupLesion],
    provenance: Provenance,
    folder: Path,
    resources: Resources,
    summary: Summary | None,
    targets: Sequence[Target],
    relations: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> GroupTest:
    """Test, and write the files of the test to the group's folder.

    Parameters
    ----------
    summary
        Summary of the connectome, if there is one: the effect is compared with its degree and components.
    targets
        Target networks: similarity with them, and damage scores, are tested as well.
    relations
        Relation of each lesion to them, from `GroupSummary`.
    """
    out, stat = arguments.output_dir, arguments.input
    names = [target.name for target in targets]
    with ending(Exit.BAD_DATA, BadTable, BadDesign, BadMaps, TooFewPermutations), ending(Exit.FAILED, MemoryError):
        test = contrast_maps(
            list_keys(lesions),
            [out / lesion.maps[stat] for lesion in lesions],
            asked.table,
            asked.question,
            list_measures(lesions),
            degree=None if summary is None else summary.grid.volume(summary.arrays.degree),
            outcomes=list_columns(names, [relations[lesion.name] for lesion in lesions]),
            available_bytes=resources.available_bytes - resident_bytes(),
            n_threads=resources.n_threads,
            show_progress=not arguments.quiet,
        )
    test = replace(test, warnings=(*test.warnings, *_warn_of_own_targets(targets, out)))
    for warning in test.warnings:
        logger.warning("%s", warning)
    tested = [lesions[index] for index in test.design.kept]
    sensitivities = measure_sensitivity(
        test, tested, provenance, out, provenance.options.t_thresholds, arguments.sensitivity
    )
    writer = ContrastWriter(test, tested, provenance, TestInput(out, folder, stat, asked.table_name))
    record = writer.write(sensitivities, measure_lesioned(test, tested, provenance, out), summary, targets)
    logger.info(
        "test of %s: %d of %d voxels are significant at %g, |%s| above %.3g; its record is %s",
        test.design.direction,
        test.n_significant,
        int(test.voxels.sum()),
        asked.question.alpha,
        test.design.stat,
        test.result.threshold,
        record,
    )
    return test


def describe_test_time(asked: Asked, first_map: Path, n_threads: int) -> str:
    """Say how long a test takes, with or without lesion volume, beside reading its maps; raises OSError.

    Parameters
    ----------
    first_map
        Map of one of the patients, for the number of voxels.
    """
    design, n_permutations = asked.design, asked.question.n_permutations
    n_voxels = int(np.count_nonzero(np.isfinite(read_volume(open_image(first_map, "map"), "map"))))
    model = make_model(design.tested, design.values, design.blocks, design.statistic == "welch")
    # The test is done with lesion volume and without it.
    n_tests = 1 if design.column == VOLUME else 2
    seconds = n_tests * estimate_seconds(model, n_voxels, n_permutations, n_threads)
    return f"about {format_seconds(seconds)} for {n_voxels} voxels and {n_permutations} permutations"


def _warn_of_own_targets(targets: Sequence[Target], out: Path) -> list[str]:
    """Warn of target networks that lie among the outputs, and may have been made from the same patients."""
    return [
        f"target {target.name}: {target.file.name} lies in the output folder; if it was made from these patients, "
        "similarity and damage score follow from that, and their p mean nothing: test with other patients' network"
        for target in targets
        if target.file.resolve().is_relative_to(out.resolve())
    ]
