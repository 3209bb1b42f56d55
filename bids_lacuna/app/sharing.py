"""What a run shares with others that write into the same folder: the dataset's own files, and claims of lesions."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bids_lacuna.app.command import Exit, ending
from bids_lacuna.derivatives import (
    DATASET_FILES,
    LesionRecord,
    claim_lesions,
    clean_after,
    prepare_dataset,
    read_description,
)
from bids_lacuna.files import remove_unfinished
from bids_lacuna.runtime import logs
from bids_lacuna.runtime.checkpoint import Checkpoints
from bids_lacuna.runtime.locks import Claims, claiming

if TYPE_CHECKING:
    from bids_lacuna.app.participant import Job

logger = logging.getLogger(__name__)


@contextmanager
def sharing_output(
    output_dir: Path, datasets: Mapping[str, Path], run: str
) -> Iterator[tuple[Claims, dict[str, str]]]:
    """Make the output folder a dataset that several runs share; give this run's claims and the datasets' links."""
    with ending(Exit.CANNOT_CREATE, FileExistsError, ValueError):
        read_description(output_dir)
    with claiming(output_dir / "logs" / "locks", run, partial(clean_after, output_dir)) as claims:
        with claims.exclusive(), ending(Exit.CANNOT_CREATE, FileExistsError, ValueError):
            remove_unfinished(output_dir, of=DATASET_FILES.__contains__)
            links = prepare_dataset(output_dir, datasets)
        yield claims, links


def claim(job: Job, claims: Claims) -> Checkpoints | None:
    """Claim the lesions that this run maps or adds to against other runs; give the checkpoints that only it uses.

    What a lesion with maps lacks is left to the run that holds it.
    """
    pending, lacking = job.pending, [record for record in job.records if job.lacks(record)]
    claimed = [*pending, *lacking]
    n_held = claim_lesions(
        claimed, claims, job.arguments.output_dir, job.provenance, overwrite=job.arguments.overwrite
    )
    # The run that holds some of the lesions may keep its checkpoints in the same folder.
    checkpoints = None if n_held or not job.continues else job.checkpoints
    if checkpoints:
        reopen(job.records, checkpoints.current_batch)
    report_failures(pending)
    for record in lacking:
        if record.held_by:
            record.lack(
                f"nothing is added to its maps, since {record.held_by} holds this lesion: rerun the same command "
                "after that run"
            )
    return checkpoints


def reopen(records: Sequence[LesionRecord], current_batch: Collection[str]) -> None:
    """Map the whole batch again that was being written when an earlier run ended: a part of it rounds differently."""
    batch = [record for record in records if str(record.mask.path.absolute()) in current_batch]
    if any(record.status == "pending" and record.t_map is None for record in batch):
        for record in batch:
            record.t_map = None
            if record.status == "skipped":
                record.status, record.reason = "pending", ""


def report_failures(records: Sequence[LesionRecord]) -> None:
    """Log the lesions that failed before they were read; a reason that many share is logged once."""
    names: dict[str, list[str]] = {}
    for record in records:
        if record.status == "failed":
            names.setdefault(record.reason, []).append(record.mask.path.name)
    for reason, same in names.items():
        logs.log_failure(logger, same, reason)
