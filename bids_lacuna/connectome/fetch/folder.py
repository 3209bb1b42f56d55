"""The folder of a download: which version of which dataset it holds, and which of its files are verified."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from bids_lacuna.connectome.exclusive import NoRoom
from bids_lacuna.connectome.fetch.client import Unexpected
from bids_lacuna.connectome.fetch.dataverse import Dataset, RemoteFile
from bids_lacuna.connectome.fetch.download import part_path
from bids_lacuna.files import read_json_object, write_json
from bids_lacuna.text import tell_bytes_apart

logger = logging.getLogger(__name__)

RECORDS = ".fetch"
"""Folder within the download with its lock, the dataset, and a record of each verified file."""

DATASET = "dataset.json"

STORE = "store.json"


class OtherDataset(FileExistsError):  # noqa: N818  a fact about the folder, not a defect of the program
    """The folder holds another dataset or another version, or a file of the same name that is not the dataset's."""


class Folder:
    """The folder of a download."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_dataset(self, dataset: Dataset) -> bool:
        """Return whether the terms of this dataset were accepted before, for this folder.

        Raises
        ------
        OtherDataset
            The folder holds another dataset, or another version.
        Unexpected
            Files of the dataset would overwrite each other.
        """
        _check_places(dataset)
        record = self._record(DATASET)
        if not record.exists():
            return False
        before = read_json_object(record)
        held = f"{before.get('doi')} of {before.get('server')}"
        if held != f"{dataset.doi} of {dataset.server}":
            raise OtherDataset(
                f"{self.path} holds {held}, not {dataset.doi} of {dataset.server}: name another folder"
            )
        if before != self._describe(dataset):
            raise OtherDataset(
                f"{self.path} was begun with version {before.get('version')} of {dataset.doi}, which has changed: "
                f"the server has version {dataset.version} now: fetch it into another folder"
            )
        return True

    def accept(self, dataset: Dataset) -> None:
        """Record the dataset, whose terms were accepted."""
        write_json(self._record(DATASET), self._describe(dataset))

    def has(self, file: RemoteFile) -> bool:
        """Return whether a file is here and whole; it is read unless it was verified before.

        Raises
        ------
        OtherDataset
            Another file has its name.
        """
        path = self.path / file.path
        if not path.exists():
            return False
        state, record = _state(path), self._record(f"{file.id}.json")
        # A file whose record is damaged is verified again.
        with suppress(FileNotFoundError, ValueError):
            if read_json_object(record) == state:
                return True
        if state["n_bytes"] == file.n_bytes:
            logger.info("reading %s, which is here, to verify it", path)
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, lambda: hashlib.new(file.algorithm, usedforsecurity=False))
            if digest.hexdigest() == file.checksum:
                self.note(file)
                return True
        raise OtherDataset(
            f"{path} is not the dataset's file of that name, which has {file.n_bytes} bytes and the "
            f"{file.algorithm} {file.checksum}: move it away, or name another folder"
        )

    def note(self, file: RemoteFile) -> None:
        """Record a file that is whole."""
        write_json(self._record(f"{file.id}.json"), _state(self.path / file.path))

    def drop(self, file: RemoteFile) -> None:
        """Remove a file that is no longer needed."""
        for path in (self.path / file.path, part_path(self.path / file.path), self._record(f"{file.id}.json")):
            path.unlink(missing_ok=True)

    def check_room(self, n_bytes: int) -> None:
        """Raise NoRoom if this many bytes would fill the disk."""
        free = shutil.disk_usage(self.path).free
        if n_bytes > free:
            needed, available = tell_bytes_apart(n_bytes, free)
            raise NoRoom(
                f"the download needs {needed} more, the disk of {self.path} has {available} free: free some space, "
                "name a folder on another disk, or fetch fewer files with --files"
            )

    def has_built(self, description: Mapping[str, object]) -> bool:
        """Return whether a store of this description was built from the download before."""
        record = self._record(STORE)
        return record.exists() and read_json_object(record) == description

    def note_store(self, description: Mapping[str, object]) -> None:
        """Record a store that was built from the download."""
        write_json(self._record(STORE), description)

    def _record(self, name: str) -> Path:
        return self.path / RECORDS / name

    def _describe(self, dataset: Dataset) -> dict[str, object]:
        return {
            "server": dataset.server,
            "doi": dataset.doi,
            "version": dataset.version,
            "files": [asdict(file) for file in dataset.files],
        }


def select_files(files: Iterable[RemoteFile], patterns: Sequence[str]) -> list[RemoteFile]:
    """Return the files whose path or name matches one of the patterns; all without patterns."""
    return [
        file
        for file in files
        if not patterns
        or any(fnmatchcase(name, each) for each in patterns for name in (file.path, Path(file.path).name))
    ]


def _check_places(dataset: Dataset) -> None:
    """Raise Unexpected for a file that would be written where another one, its part or the records are."""
    places = {RECORDS: "the records of the download"}
    for file in dataset.files:
        for place in (file.path, part_path(Path(file.path)).as_posix()):
            if place in places:
                raise _taken(dataset, file, places[place])
            places[place] = file.path
    for file in dataset.files:
        for parent in PurePosixPath(file.path).parents:
            if str(parent) in places:
                raise _taken(dataset, file, places[str(parent)])


def _taken(dataset: Dataset, file: RemoteFile, other: str) -> Unexpected:
    return Unexpected(
        f"{file.path} of {dataset.doi} would be written where {other} must be: download this dataset in a browser"
    )


def _state(path: Path) -> dict[str, object]:
    status = path.stat()
    return {"n_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
