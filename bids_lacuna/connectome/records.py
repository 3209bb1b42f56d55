"""What a build has written so far: a record of each subject, from which the same command resumes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.connectome.importers.source import Source, SourceSubject
from bids_lacuna.connectome.store import BUILDING, Store, StoredRun, StoredSubject, array_path
from bids_lacuna.files import read_json_object, write_json

logger = logging.getLogger(__name__)


def hash_settings(store: Store) -> str:
    """Hash what all files of the store depend on: dtype, rank and grid."""
    grid = store.grid
    parts = (
        store.series_dtype.encode(),
        f"{store.rank} {store.rank_tolerance}".encode(),
        str(grid.shape).encode(),
        np.packbits(grid.mask),
        grid.affine.astype("<f8"),
    )
    return hashlib.sha256(b"".join(bytes(part) for part in parts)).hexdigest()


def read_signature(subject: SourceSubject) -> list[Any]:
    """Say what a subject is read from, so that a file that was mended is read again."""
    status = [run.path.stat() for run in subject.runs]
    return [
        [run.origin, run.n_timepoints, file.st_size, file.st_mtime_ns]
        for run, file in zip(subject.runs, status, strict=True)
    ]


def stored_runs(subject: SourceSubject) -> tuple[StoredRun, ...]:
    """List a subject's runs as a store describes them."""
    return tuple(StoredRun(run.origin, run.n_timepoints) for run in subject.runs)


def write_record(folder: Path, stored: StoredSubject, signature: list[Any], settings: str) -> None:
    """Record a subject that is written.

    Parameters
    ----------
    signature
        What the subject was read from, as `read_signature` gave it before that.
    settings
        As `hash_settings` gives them.
    """
    write_json(
        _record_path(folder, stored.name), {"subject": asdict(stored), "signature": signature, "settings": settings}
    )


def read_records(source: Source, wanted: Store, settings: str) -> dict[str, StoredSubject]:
    """Read which subjects an earlier build has written, and their sources have not changed since.

    Raises
    ------
    FileExistsError
        It was a build of something else.
    """
    recorded = {}
    subjects = {subject.name: subject for subject in source.subjects}
    for path in sorted((wanted.path / BUILDING).glob("sub-*.json")):
        try:
            record = read_json_object(path)
            runs = tuple(StoredRun(**run) for run in record["subject"]["runs"])
            stored = StoredSubject(**{**record["subject"], "runs": runs})
            their_settings, signature = record["settings"], record["signature"]
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s is no record of a subject (%r): the subject is written again", path, error)
            continue
        subject = subjects.get(stored.name)
        if their_settings != settings or subject is None:
            raise FileExistsError(
                f"{wanted.path} holds an unfinished store of other subjects, another grid, another dtype or another "
                "rank: name a new folder, or remove that one"
            )
        if signature == read_signature(subject) and _has_files(wanted, stored):
            recorded[stored.name] = stored
    return recorded


def remove_unrecorded(folder: Path, recorded: Mapping[str, StoredSubject]) -> None:
    """Remove files of subjects that were not finished."""
    keep = {array_path(folder, name, kind) for name in recorded for kind in ("timeseries", "scale")}
    for path in set(folder.glob("sub-*.npy")) - keep:
        path.unlink()
    for path in set((folder / BUILDING).glob("sub-*.json")) - {_record_path(folder, name) for name in recorded}:
        path.unlink()


def _has_files(store: Store, subject: StoredSubject) -> bool:
    """Tell whether a subject's files are there, in the size that they must have."""
    try:
        store.check_files(subject)
    except ValueError:
        return False
    return True


def _record_path(folder: Path, name: str) -> Path:
    return folder / BUILDING / f"sub-{name}.json"
