"""The command lines: arguments, the level that they choose, and failures as exit statuses."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from bids_lacuna.app import connectome_options
from bids_lacuna.app.command import Exit, Stop, complete_words, make_cache_folder, run_command, tolerate_lost_output
from bids_lacuna.app.config import add_config_file
from bids_lacuna.app.folders import name_all_datasets
from bids_lacuna.app.options import build_parser
from bids_lacuna.runtime.numba_cache import keep_in
from bids_lacuna.text import suggest

logger = logging.getLogger(__name__)

INTERRUPTED = "interrupted: what is finished is on disk; rerun the same command to resume"

LEVELS = ("participant", "group")

WITHOUT_EFFECT = {"participant": ("test", "covariates", "blocks", "table", "drop_missing"), "group": ("atlas",)}
"""Options that only the other level uses. A file of options may serve both, so that they are no errors."""


@tolerate_lost_output("bids-lacuna")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the BIDS App.

    Parameters
    ----------
    argv
        Command-line arguments; by default those of this process.

    Returns
    -------
    int
        The exit status: 0 when no lesion failed.
    """
    parser = build_parser()
    complete_words(parser)
    return run_command(parser, add_config_file(parser, argv), run_level, INTERRUPTED)


def run_level(arguments: argparse.Namespace) -> Exit:
    """Run the level that the arguments choose. --help and --version need not wait for what it imports."""
    level = arguments.analysis_level
    if level not in LEVELS:
        misplaced = {str(arguments.bids_dir), str(arguments.output_dir)} & set(LEVELS)
        raise Stop(
            Exit.UNKNOWN_LEVEL,
            f"there is no {level} level: participant maps each lesion, group describes all maps"
            + (": name the level after BIDS_DIR and OUTPUT_DIR" if misplaced else suggest(level, LEVELS)),
        )
    for option in WITHOUT_EFFECT[level]:
        if getattr(arguments, option):
            flag, other = f"--{option.replace('_', '-')}", next(each for each in LEVELS if each != level)
            logger.warning("%s has no effect at the %s level: give it to the %s level", flag, level, other)
    if arguments.reports_only:
        from bids_lacuna.app import reports

        return reports.run_group(arguments) if level == "group" else reports.run_participant(arguments)
    if level == "participant" and not arguments.connectome:
        raise Stop(Exit.USAGE, "the participant level needs a connectome: --connectome PATH")
    datasets = name_all_datasets(arguments)
    if level == "group":
        from bids_lacuna.app import group

        return group.run(arguments, datasets)
    if arguments.work_dir and not arguments.dry_run:
        # numba reads the folder of its cache once, when it is imported.
        folder = arguments.work_dir.absolute() / "numba"
        if make_cache_folder(folder):
            keep_in(folder)
        else:
            logger.warning("compiled kernels are not kept in %s, which cannot be written to", folder)
    from bids_lacuna.app import participant

    return participant.run(arguments, datasets)


@tolerate_lost_output("bids-lacuna-connectome")
def connectome_main(argv: Sequence[str] | None = None) -> int:
    """Run bids-lacuna-connectome.

    Parameters
    ----------
    argv
        Command-line arguments; by default those of this process.

    Returns
    -------
    int
        The exit status.
    """

    def run(arguments: argparse.Namespace) -> Exit:
        # Not at the top: --help and --version need not wait for numba and scipy.
        from bids_lacuna.app import connectome, fetch, summaries

        commands = {
            "fetch": fetch.run_fetch,
            "build": connectome.run_build,
            "summarize": summaries.run_summarize,
            "info": connectome.run_info,
            "rename-space": connectome.run_rename_space,
            "verify": connectome.run_verify,
        }
        return commands[arguments.command](arguments)

    parser = connectome_options.build_parser()
    complete_words(parser)
    return run_command(parser, argv, run, connectome_options.INTERRUPTED)
