"""The download of one file: resumed where it stopped, and verified."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import IO

from bids_lacuna.connectome.fetch.client import (
    CHUNK_BYTES,
    N_ATTEMPTS,
    Answer,
    Client,
    Later,
    Patience,
    Stopped,
    Unexpected,
)
from bids_lacuna.connectome.fetch.dataverse import RemoteFile
from bids_lacuna.files import put_in_place

logger = logging.getLogger(__name__)

GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
"""Statuses of a file that is not there, or is shorter than listed."""


class DamagedFile(ValueError):  # noqa: N818  a fact about the server, not a defect of the program
    """The server sends another file than it lists; others may be whole."""


def part_path(target: Path) -> Path:
    """Return the path of the part of a file that has been received."""
    return target.with_name(f"{target.name}.part")


def received_bytes(file: RemoteFile, folder: Path) -> int:
    """Return how many bytes of a file have been received; 0 for a part that is longer than the file."""
    try:
        n_bytes = part_path(folder / file.path).stat().st_size
    except FileNotFoundError:
        return 0
    return n_bytes if n_bytes <= file.n_bytes else 0


class Download:
    """One file on its way: the part on the disk, and the checksum of what it holds."""

    def __init__(
        self, client: Client, file: RemoteFile, folder: Path, advance: Callable[[int], None], stopped: threading.Event
    ) -> None:
        """Describe the download.

        Parameters
        ----------
        folder
            Folder of the dataset.
        advance
            Called with the number of bytes received; with a negative one for bytes that must be received again.
        stopped
            Ends the download when it is set.
        """
        self._client = client
        self._file = file
        self._target = folder / file.path
        self._n_before = received_bytes(file, folder)
        self._advance = advance
        self._stopped = stopped

    def run(self) -> None:
        """Receive the rest of the file, verify it, and give it its name; a damaged one is received once more.

        Raises
        ------
        DamagedFile
            The server sends another file than it lists.
        Unreachable, Refused, Unexpected
            The server cannot be reached, refuses access, or answers something else.
        Stopped
            The download was stopped; the part stays.
        OSError
            The file cannot be written.
        """
        self._target.parent.mkdir(parents=True, exist_ok=True)
        part = part_path(self._target)
        for is_last in (False, True):
            checksum = self._receive(part)
            if checksum == self._file.checksum:
                put_in_place(part, self._target)
                return
            part.unlink()
            self._n_before = 0
            self._advance(-self._file.n_bytes)
            if not is_last:
                logger.warning("%s was received with a wrong checksum: it is fetched once more", self._file.path)
        raise DamagedFile(
            f"{self._file.path} was received twice with another {self._file.algorithm} than the server lists "
            f"({checksum} instead of {self._file.checksum})"
        )

    def _receive(self, part: Path) -> str:
        """Receive the rest of the file, in as many attempts as it takes, and return its checksum."""
        with part.open("r+b" if self._n_before else "wb", buffering=0) as out:
            self._position = 0
            self._digest = hashlib.new(self._file.algorithm, usedforsecurity=False)
            self._read_part(out)
            patience, furthest = Patience(N_ATTEMPTS, self._stopped), self._position
            while self._position < self._file.n_bytes:
                try:
                    self._attempt(out)
                    later = Later("the connection ended early")
                except Later as error:
                    later = error
                if self._position > furthest:
                    furthest = self._position
                    patience.reset()
                if self._position < self._file.n_bytes:
                    patience.wait(later, f"{self._file.path} at {self._position} of {self._file.n_bytes} bytes")
            return self._digest.hexdigest()

    def _read_part(self, out: IO[bytes]) -> None:
        """Add what has been received before to the checksum."""
        while chunk := out.read(CHUNK_BYTES) if self._n_before else b"":
            if self._stopped.is_set():
                raise Stopped
            self._digest.update(chunk)
            self._position += len(chunk)

    def _attempt(self, out: IO[bytes]) -> None:
        """Request the rest of the file, and write what comes of it."""
        query = {"format": "original"} if self._file.is_tabular else {}
        with self._client.get(f"/api/access/datafile/{self._file.id}", query, self._position) as answer:
            self._check(answer)
            if answer.response.status_code == HTTPStatus.OK and self._position:
                logger.info("%s: the server sends the file from its beginning", self._file.path)
                self._start_over(out)
            for chunk in answer.response.iter_content(CHUNK_BYTES):
                if self._stopped.is_set():
                    raise Stopped
                if self._position + len(chunk) > self._file.n_bytes:
                    raise DamagedFile(self._describe_length(f"more than {self._file.n_bytes}"))
                unwritten = memoryview(chunk)
                while unwritten:
                    unwritten = unwritten[out.write(unwritten) :]
                self._digest.update(chunk)
                self._position += len(chunk)
                self._advance(len(chunk))

    def _start_over(self, out: IO[bytes]) -> None:
        out.seek(0)
        out.truncate()
        self._advance(-self._position)
        self._position = 0
        self._digest = hashlib.new(self._file.algorithm, usedforsecurity=False)

    def _check(self, answer: Answer) -> None:
        """Check that an answer is the rest of the file, or the whole file."""
        answer.check_available()
        status, headers = answer.response.status_code, answer.response.headers
        if status in GONE:
            raise DamagedFile(f"{answer.host} does not have {self._file.path} as listed ({status})")
        if answer.is_of_server:
            self._client.check_access(answer, self._file.path)
        elif status >= HTTPStatus.BAD_REQUEST:
            # The signed address has expired: each attempt asks the server for a new one.
            raise Later(f"{answer.host} answers {status} {answer.response.reason}")
        if status == HTTPStatus.PARTIAL_CONTENT:
            self._check_range(headers.get("Content-Range", ""))
            return
        if status != HTTPStatus.OK or (answer.is_page and Path(self._file.path).suffix not in (".htm", ".html")):
            raise Unexpected(self._client.explain_page(answer, self._file.path))
        n_bytes = headers.get("Content-Length", str(self._file.n_bytes))
        if "Content-Encoding" not in headers and n_bytes != str(self._file.n_bytes):
            raise DamagedFile(self._describe_length(n_bytes))

    def _check_range(self, header: str) -> None:
        """Check that an answer with a part of the file begins where the part on the disk ends."""
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", header.strip())
        if match is None or int(match[1]) != self._position:
            raise Unexpected(
                f"the server sends {header or 'a range without a header'} of {self._file.path}, bytes from "
                f"{self._position} are needed: rerun the same command; if this happens again, remove the file's .part"
            )
        if match[3] not in ("*", str(self._file.n_bytes)):
            raise DamagedFile(self._describe_length(match[3]))

    def _describe_length(self, n_bytes: str) -> str:
        return f"the server sends {n_bytes} bytes of {self._file.path}, its list has {self._file.n_bytes}"
