"""Atomically written files, JSON objects and BIDS tables."""

from __future__ import annotations

import codecs
import csv
import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bids_lacuna.text import one_line

T = TypeVar("T")

UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.(.+)")
"""Temporary name of a file that is being written; the group is its final name."""

NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM)
"""Errors of file systems that cannot sync a folder or do not let it be opened."""

ADVICE = {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.ENOENT: "make the file available, and check its path",
    errno.EIO: "check the disk or the network, and try again",
    errno.ESTALE: "the file server has replaced it meanwhile; rerun the same command",
    errno.ETIMEDOUT: "rerun the same command once the file server answers",
    errno.EHOSTDOWN: "rerun the same command once the file server answers",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENOMEM: "free some memory",
}
"""What helps against the system's errors of reading, which copying a file does not."""


def advise(error: BaseException, otherwise: str) -> str:
    """Return what helps against an error of reading: by its errno, or else `otherwise`, for damaged content."""
    number = error.errno if isinstance(error, OSError) else None
    return otherwise if number is None else ADVICE.get(number, otherwise)


class ChangedMeanwhile(OSError):  # noqa: N818  a fact about a file, not a defect of the program
    """An input has changed since it was opened: results would be recorded under a hash that is not theirs."""


@dataclass(frozen=True)
class FileState:
    """What distinguishes a file from itself before it was written to, and from one that has replaced it."""

    n_bytes: int
    mtime_ns: int
    """Time of the last change of its content."""
    inode: int
    ctime_ns: int
    """Time of the last change of its content, name or owner."""

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Read the state of a file; raises OSError if there is none."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)

    def difference(self, now: FileState) -> str:
        """Describe how the file differs by now; "" if it is the same."""
        if now.n_bytes != self.n_bytes:
            return f"it has {now.n_bytes} bytes instead of {self.n_bytes}"
        # Some network file systems number files anew now and then, which changes no time.
        if now.inode != self.inode and now.ctime_ns != self.ctime_ns:
            return "it was replaced"
        return "it was written to" if now.mtime_ns != self.mtime_ns else ""


def check_unchanged(states: Mapping[Path, FileState]) -> None:
    """Raise ChangedMeanwhile if a file is no longer in the state that it was in."""
    for path, before in states.items():
        try:
            difference = before.difference(FileState.of(path))
        except FileNotFoundError:
            difference = "it was deleted"
        if difference:
            raise ChangedMeanwhile(
                f"{path} has changed while it was in use ({difference}): leave the input as it is, and rerun the "
                "same command"
            )


def reached_once(items: Iterable[T], path_of: Callable[[T], Path]) -> list[T]:
    """Keep one of the items that are the same file of the same folder, by whatever path the folder is reached.

    Of several paths, one without links is kept, else the shortest one. Files with different names, or in different
    folders, stay apart: they may be links to one file, as git-annex makes them for equal content.
    """
    folders: dict[Path, tuple[object, bool]] = {}
    kept: dict[tuple[object, str], T] = {}
    ranks: dict[tuple[object, str], tuple[bool, int]] = {}
    for item in items:
        path = path_of(item)
        if path.parent not in folders:
            folders[path.parent] = _identity(path.parent), path.parent.resolve() != path.parent
        folder, has_links = folders[path.parent]
        key, rank = (folder, path.name), (has_links, len(path.parts))
        if key not in kept or rank < ranks[key]:
            kept[key], ranks[key] = item, rank
    return list(kept.values())


def _identity(folder: Path) -> tuple[int, int] | Path:
    """Return what identifies a folder: its device and inode."""
    try:
        status = folder.stat()
    except OSError:
        return folder
    return status.st_dev, status.st_ino


FIRST_BYTES = {
    b"/annex/objects/": "it is git-annex's pointer to a file: `datalad get` it",
    b"version https://git-lfs": "it is Git LFS's pointer to a file: `git lfs pull` gets it",
    b"<!DOCTYPE html": "it is a web page, perhaps that of a login: download the file again",
    b"<html": "it is a web page, perhaps that of a login: download the file again",
    b"PK\x03\x04": "it is a zip archive: unpack it",
    b"BZh": "it is compressed by bzip2: decompress it (bunzip2)",
    b"\xfd7zXZ": "it is compressed by xz: decompress it (unxz)",
    b"\x1f\x8b": "it is gzipped: decompress it (gunzip), or give it a name that ends in .gz",
}
"""What a file is whose first bytes are these, where another kind of file is needed."""


def recognize(path: Path) -> str:
    """Describe a file of a wrong kind by its first bytes, and what to do; "" if they are not known."""
    with path.open("rb") as file:
        start = file.read(max(map(len, FIRST_BYTES))).lstrip()
    return next((words for known, words in FIRST_BYTES.items() if start.lower().startswith(known.lower())), "")


def decode_text(content: bytes) -> str:
    """Decode UTF-8, or the Unicode encoding that a byte order mark names, which Windows' editors and shells write.

    Raises
    ------
    ValueError
        The content is something else.
    """
    encodings = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((name for mark, name in encodings.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{error}: save it as UTF-8") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must contain an object.

    Raises
    ------
    ValueError
        The file contains something else; the message names it.
    OSError
        The file cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    # Python's parser recurses into nested brackets.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON, correct it: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains a JSON {type(content).__name__}: an object is needed, {{…}}")  # noqa: TRY004
    return content


def write_json(path: Path, content: Mapping[str, Any], *, sync: bool = True) -> None:
    """Write a JSON file atomically; `sync` as for `renamed_when_whole`."""
    with renamed_when_whole(path, sync=sync) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        # In a C locale, Python decodes a path's UTF-8 to surrogates; bytes that are not UTF-8 are replaced.
        temporary.write_bytes(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode("utf-8"))


class _TSV(csv.Dialect):
    """The tables of BIDS: a double quote is a character like any other."""

    delimiter = "\t"
    lineterminator = "\n"
    quoting = csv.QUOTE_NONE
    quotechar = None


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a BIDS table (TSV) as one dictionary per row, from column names to cells.

    Raises
    ------
    ValueError
        The table is empty or not UTF-8, or a row has more or fewer cells than there are columns.
    OSError
        The file cannot be read.
    """
    with path.open(encoding="utf-8", newline="") as file:
        try:
            columns, *rows = [row for row in csv.reader(file, _TSV) if row]
            return [dict(zip(columns, row, strict=True)) for row in rows]
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f"{path} cannot be read as a table ({error}): tab-separated UTF-8 with one line per row is needed; "
                "restore the file"
            ) from error


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a BIDS table (TSV) atomically.

    Parameters
    ----------
    columns
        Names of the columns.
    rows
        One cell per column, "n/a" where there is no value. White space becomes spaces and unprintable characters
        become escapes, so that a file name with a newline stays in its cell.
    """
    with renamed_when_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, _TSV)
        writer.writerow(map(one_line, columns))
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row of {path.name} has {len(row)} cells, {len(columns)} columns need one each")
            writer.writerow(map(one_line, row))


def is_searchable(folder: Path) -> bool:
    """Return whether permissions allow to list a folder and to open what is in it."""
    try:
        os.scandir(folder).close()
        # pathlib would drop the dot, which needs the permission to search the folder.
        os.stat(f"{folder}/.")  # noqa: PTH116
    except PermissionError:
        return False
    return True


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def renamed_when_whole(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary name in the same folder, and rename that file to `path` if the block succeeds.

    Parameters
    ----------
    path
        Final name; its folder is created if missing.
    sync
        Whether to wait until the new name is on the disk, too. Without, call `sync_folder` after the last of
        several files: a disk takes milliseconds each time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield temporary
        put_in_place(temporary, path, sync=sync)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(temporary: Path, path: Path, *, sync: bool = True) -> None:
    """Give a file that is complete its final name; `sync` as for `renamed_when_whole`."""
    _sync(temporary)
    temporary.replace(path)
    if sync:
        sync_folder(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk: a crash may otherwise keep a rename but not the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def forget(paths: Iterable[Path]) -> None:
    """Advise the system to drop files from its page cache, since they are not read again soon."""
    if hasattr(os, "posix_fadvise"):
        for path in paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remove_unfinished(folder: Path, of: Callable[[str], bool] = lambda _: True) -> None:
    """Remove temporary files that killed programs left behind; no other program may be writing them.

    Parameters
    ----------
    folder
        Folder to clean; it need not exist.
    of
        Whether to remove a file, by its final name.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            if (unfinished := UNFINISHED.fullmatch(path.name)) and of(unfinished[1]):
                path.unlink(missing_ok=True)
