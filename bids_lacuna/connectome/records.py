"""Records of the subjects that a build has written, from which the same command resumes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bids_lacuna.connectome.importers.source import Source, SourceSubject
from bids_lacuna.connectome.store import BUILDING, Store, StoredRun, StoredSubject, array_path
from bids_lacuna.files import read_json_object, write_json

logger = logging.getLogger(__name__)


def hash_settings(store: Store) -> str:
    """Hash the settings that all files of a store depend on: dtype, rank and grid."""
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
    """Return names, lengths, sizes and times of a subject's files, so that a repaired file is read again."""
    status = [run.path.stat() for run in subject.runs]
    return [
        [run.origin, run.n_timepoints, file.st_size, file.st_mtime_ns]
        for run, file in zip(subject.runs, status, strict=True)
    ]


def stored_runs(subject: SourceSubject) -> tuple[StoredRun, ...]:
    """Return a subject's BOLD runs as the store describes them."""
    return tuple(StoredRun(run.origin, run.n_timepoints) for run in subject.runs)


def write_record(folder: Path, stored: StoredSubject, signature: list[Any], settings: str) -> None:
    """Record a subject that has been written.

    Parameters
    ----------
    signature
        From `read_signature`, called before the subject was read.
    settings
        From `hash_settings`.
    """
    write_json(
        _record_path(folder, stored.name), {"subject": asdict(stored), "signature": signature, "settings": settings}
    )


def read_records(source: Source, wanted: Store, settings: str) -> dict[str, StoredSubject]:
    """Return the subjects that an earlier build has written and whose sources have not changed since.

    Raises
    ------
    FileExistsError
        The earlier build had other subjects or settings.
    """
    recorded = {}
    subjects = {subject.name: subject for subject in source.subjects}
    for stored, signature, their_settings in _read_all(wanted.path):
        subject = subjects.get(stored.name)
        if their_settings != settings or subject is None:
            raise FileExistsError(_describe_others(wanted.path))
        if signature == read_signature(subject) and _has_files(wanted, stored):
            recorded[stored.name] = stored
    return recorded


def read_all_records(wanted: Store, settings: str) -> dict[str, tuple[StoredSubject, list[Any]]]:
    """Return all subjects that earlier builds have written, with their signatures.

    Raises
    ------
    FileExistsError
        An earlier build had other settings.
    """
    recorded = {}
    for stored, signature, their_settings in _read_all(wanted.path):
        if their_settings != settings:
            raise FileExistsError(_describe_others(wanted.path))
        if _has_files(wanted, stored):
            recorded[stored.name] = stored, signature
    return recorded


def _read_all(folder: Path) -> Iterator[tuple[StoredSubject, list[Any], str]]:
    """Read all records of subjects: the subject, its signature and the settings."""
    for path in sorted((folder / BUILDING).glob("sub-*.json")):
        try:
            record = read_json_object(path)
            runs = tuple(StoredRun(**run) for run in record["subject"]["runs"])
            read = StoredSubject(**{**record["subject"], "runs": runs}), record["signature"], record["settings"]
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not a record of a subject (%r): the subject is written again", path, error)
            continue
        yield read


def _describe_others(folder: Path) -> str:
    return (
        f"{folder} holds an unfinished store of other subjects, another grid, another dtype or another rank: name a "
        "new folder, or remove this one"
    )


def remove_unrecorded(folder: Path, recorded: Collection[str]) -> None:
    """Remove the files of subjects that are not recorded."""
    keep = {array_path(folder, name, kind) for name in recorded for kind in ("timeseries", "scale")}
    for path in set(folder.glob("sub-*.npy")) - keep:
        path.unlink()
    for path in set((folder / BUILDING).glob("sub-*.json")) - {_record_path(folder, name) for name in recorded}:
        path.unlink()


def _has_files(store: Store, subject: StoredSubject) -> bool:
    """Return whether a subject's files exist with the expected sizes."""
    try:
        store.check_files(subject)
    except ValueError:
        return False
    return True


def _record_path(folder: Path, name: str) -> Path:
    return folder / BUILDING / f"sub-{name}.json"
