"""Tar archives of 4D NIfTI files, whose subjects are unpacked one at a time."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from bids_lacuna.connectome.importers.source import natural_order, subject_name

SUFFIX = ".tar"

COMPRESSED = (".tgz", ".zip", ".7z", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Ends of the names of archives from which no single file can be taken quickly."""

UNPACKED = "unpacked-"
"""First letters of the folder of an unpacked subject."""

COPIED_BYTES = 2**20
"""Bytes that are copied at a time."""


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    path: str
    """Relative to the folder that directly holds the subjects."""
    offset: int
    """Position of its first byte in the archive."""
    n_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class PackedSubject:
    """A subject in an archive."""

    archive: Path
    pattern: str
    """Glob pattern of the files' paths."""
    name: str
    members: tuple[Member, ...]
    """BOLD runs in the order in which they are joined."""

    @property
    def n_bytes(self) -> int:
        """Size of the subject's files."""
        return sum(member.n_bytes for member in self.members)

    @contextmanager
    def unpacked(self, beside: Path) -> Iterator[Path]:
        """Unpack the subject into a new folder within another one, and remove it when the block ends."""
        with TemporaryDirectory(prefix=UNPACKED, dir=beside) as folder:
            for member in self.members:
                self._unpack(member, Path(folder) / member.path)
            yield Path(folder)

    def _unpack(self, member: Member, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        left = member.n_bytes
        with self.archive.open("rb") as archive, path.open("wb") as file:
            archive.seek(member.offset)
            while left and (chunk := archive.read(min(left, COPIED_BYTES))):
                file.write(chunk)
                left -= len(chunk)
        os.utime(path, ns=(member.mtime_ns, member.mtime_ns))


def open_archive(path: Path, pattern: str) -> list[PackedSubject]:
    """List the subjects of an archive; series are not read.

    The pattern is relative to the archive, or to the first of its folders, from above, that holds matching files: the
    folder that one would name to `build` after unpacking the archive.

    Raises
    ------
    ValueError
        The archive is damaged, or holds files that cannot be unpacked one by one.
    OSError
        The archive cannot be read.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            # As in unpacking, the last one of several files with the same path stays.
            entries = {PurePosixPath(entry.name).parts: entry for entry in archive if not entry.isdir()}
    except tarfile.TarError as error:
        raise ValueError(f"{path} cannot be read as a tar archive ({error}): unpack it, and use build") from error
    wanted = PurePosixPath(pattern).parts
    matching: list[tuple[str, tarfile.TarInfo]] = []
    for depth in range(max(map(len, entries), default=0)):
        if matching := [
            ("/".join(parts[depth:]), entries[parts]) for parts in entries if _matches(parts[depth:], wanted)
        ]:
            break
    subjects: dict[str, list[Member]] = {}
    for relative, entry in sorted(matching, key=lambda found: natural_order(Path(found[0]))):
        if not entry.isreg() or entry.issparse() or ".." in relative.split("/") or not relative.isprintable():
            raise ValueError(f"{relative!r} in {path} is not a plain file: unpack the archive, and use build")
        member = Member(relative, entry.offset_data, entry.size, int(entry.mtime * 1e9))
        subjects.setdefault(subject_name(Path(relative)), []).append(member)
    return [PackedSubject(path, pattern, name, tuple(members)) for name, members in subjects.items()]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path matches a pattern as in `Path.glob`; hidden files do not."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (len(parts) > 1 and _matches(parts[1:], pattern))
    if len(parts) == 1 and parts[0].startswith("."):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
