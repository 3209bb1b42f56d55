"""Checkpoints: the batches that are left, and the running sums of the current one.

The folder holds `batches.json`, the batches that are left, the first of which is being mapped; and files of sums, two
generations of them: a line of JSON that describes them, the bytes of the accumulator's blocks, and the SHA-256 of all
that. A pass on a Dask cluster, which merges its sums in another order, has files of the same kind for slices of the
connectome.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from bids_lacuna.files import read_json_object, remove_unfinished, renamed_when_whole, write_json
from bids_lacuna.text import format_bytes

if TYPE_CHECKING:
    from bids_lacuna.mapping.analysis import Accumulator

logger = logging.getLogger(__name__)

Array = np.ndarray
Sums = TypeVar("Sums", bound="Accumulator")

BATCHES = "batches.json"

SUFFIX = ".sums"
"""Suffix of the sums over the first connectome subjects."""

SLICE_SUFFIX = ".slice"
"""Suffix of the sums over a slice of the connectome."""

GENERATIONS = 2
"""Files that are kept: if the newest turns out to be damaged, the one before it is used."""


@dataclass(frozen=True)
class Saved:
    """One file of sums, as its first line describes it."""

    path: Path
    identity: dict[str, str]
    """All that decides the numbers, beside the rows."""
    rows: dict[str, str]
    """The key of each row, in order, with the SHA-256 of its weights."""
    blocks: list[tuple[str, list[int]]]
    """The dtype and the shape of each block."""
    n_subjects: int
    """Connectome subjects that were added."""
    generation: int
    """Counted from 1 within one batch."""
    first: int = 0
    """Index of the first of the connectome subjects."""


@dataclass
class Checkpoints:
    """Saves what a run needs to resume, in a folder that no other run uses."""

    folder: Path
    interval_s: float
    """Seconds after which the sums are saved again."""
    identity: Mapping[str, str]
    """All that decides the numbers, beside the rows: files of another identity are not used."""
    free_bytes: Callable[[], int] | None = None
    """Returns how much may be written; by default the free space of the disk."""
    row_name: str = "lesion"
    """Name of a row in messages."""
    _left: list[list[str]] = field(init=False, default_factory=list)
    _saved_at: float = field(init=False, default=0)
    _generation: int = field(init=False, default=0)
    _warned: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        """Read what an earlier run left behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            journal = read_json_object(self.folder / BATCHES)
        except (OSError, ValueError):
            return
        if journal.get("identity") == dict(self.identity):
            self._left = [list(map(str, batch)) for batch in journal["batches"]]

    @property
    def current_batch(self) -> list[str]:
        """The keys of the batch that an earlier run was mapping when it ended."""
        return self._left[0] if self._left else []

    def divide(self, keys: Sequence[str], batch_size: int) -> list[list[str]]:
        """Divide rows into batches, as an earlier run did if it left batches behind.

        The numbers of a batch are rounded together, so that the same batches give the same bytes. Rows that are
        new, or failed before, come last.
        """
        waiting = dict.fromkeys(keys)
        batches = []
        for old in self._left:
            batch = [key for key in old if key in waiting]
            for key in batch:
                del waiting[key]
            batches.append(batch)
        return subdivide([*batches, list(waiting)], batch_size)

    def begin(self, left: Sequence[Sequence[str]]) -> None:
        """Record the batches that are left, the first of which starts now, and remove the sums of others."""
        self._generation, self._saved_at = 0, time.monotonic()
        keys = {key for batch in left for key in batch}
        with _continuing_without():
            remove_unfinished(self.folder)
            for saved in self._all_saved(SUFFIX, SLICE_SUFFIX):
                if keys.isdisjoint(saved.rows):
                    saved.path.unlink(missing_ok=True)
            write_json(self.folder / BATCHES, {"identity": dict(self.identity), "batches": left})

    def end(self) -> None:
        """Remove all files: the run is over."""
        with _continuing_without():
            for saved in self._all_saved(SUFFIX, SLICE_SUFFIX):
                saved.path.unlink(missing_ok=True)
            (self.folder / BATCHES).unlink(missing_ok=True)

    def resume(self, rows: Mapping[str, str], make_empty: Callable[[], Sums]) -> tuple[Sums, int]:
        """Restore what was saved of the sums of some rows.

        Parameters
        ----------
        rows
            The key of each row with the SHA-256 of its weights.
        make_empty
            Makes an accumulator of no connectome subject.

        Returns
        -------
        accumulator
            With the sums of the first connectome subjects.
        n_subjects
            How many these are.
        """
        accumulator = make_empty()
        for saved in sorted(self._all_saved(SUFFIX), key=lambda saved: saved.n_subjects, reverse=True):
            if not rows.items() <= saved.rows.items():
                if rows.keys() & saved.rows.keys():
                    self._warn_once(f"{saved.path} is of other lesions or of other masks: it is not used, and kept")
                continue
            try:
                _restore(saved, list(rows), accumulator)
            except (OSError, ValueError) as error:
                logger.warning("%s cannot be used (%s)", saved.path, error)
                # Two accumulators may not fit the memory.
                del accumulator
                accumulator = make_empty()
                continue
            self._generation = saved.generation
            logger.info("resuming after connectome subject %d, from %s", saved.n_subjects, saved.path)
            return accumulator, saved.n_subjects
        return accumulator, 0

    def slices(self, rows: Mapping[str, str]) -> dict[tuple[int, int], Path]:
        """Find what was saved of the sums of some rows, by a slice's first subject and the one after its last.

        Parameters
        ----------
        rows
            As for `resume`.
        """
        return {
            (saved.first, saved.first + saved.n_subjects): saved.path
            for saved in self._all_saved(SLICE_SUFFIX)
            if rows.items() <= saved.rows.items()
        }

    def restart_interval(self) -> None:
        """Begin the next interval: what was due is being saved."""
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the whole interval has passed since the sums were saved."""
        return time.monotonic() - self._saved_at >= self.interval_s

    def save(self, rows: Mapping[str, str], accumulator: Accumulator, n_subjects: int) -> None:
        """Save the sums of a batch, whole or not at all; if that fails, the run continues."""
        self._saved_at = time.monotonic()
        self._generation += 1
        header = _describe(self.identity, rows, accumulator, n_subjects, self._generation)
        path = self.folder / f"{_stem(header)}-{self._generation % GENERATIONS}{SUFFIX}"
        with _continuing_without():
            # This is the older one of the two: the newest stays until the next is whole.
            path.unlink(missing_ok=True)
            free_bytes = shutil.disk_usage(self.folder).free if self.free_bytes is None else self.free_bytes()
            _write(path, header, accumulator, free_bytes)
            logger.info("saved the sums of %d %ss after connectome subject %d", len(rows), self.row_name, n_subjects)

    def _all_saved(self, *suffixes: str) -> Iterator[Saved]:
        """Find the files that this run can use; others are left alone."""
        for path in sorted(path for suffix in suffixes for path in self.folder.glob(f"*{suffix}")):
            try:
                saved = _read_header(path)
            except (OSError, ValueError, TypeError) as error:
                self._warn_once(f"{path} cannot be read ({error}): it is not used")
                continue
            if self._fits(path, saved.identity):
                yield saved

    def _fits(self, path: Path, identity: Any) -> bool:
        theirs = identity if isinstance(identity, dict) else {}
        different = [name for name, value in self.identity.items() if theirs.get(name) != value]
        if different:
            self._warn_once(f"{path} was made with another {' and '.join(different)}: it is not used, and kept")
        return not different

    def _warn_once(self, sentence: str) -> None:
        """Warn once about each file: the files are looked at again for each batch."""
        if sentence not in self._warned:
            self._warned.add(sentence)
            logger.warning(sentence)


def subdivide(batches: Sequence[Sequence[str]], size: int) -> list[list[str]]:
    """Divide batches further, into batches of up to that size."""
    return [list(batch[start : start + size]) for batch in batches for start in range(0, len(batch), size or 1)]


@contextmanager
def _continuing_without() -> Iterator[None]:
    """Log what fails about checkpoints: a run can do without them."""
    try:
        yield
    except OSError as error:
        logger.warning("no checkpoint is kept (%s): choose another folder with -w, or --checkpoint-minutes 0", error)


def save_slice(
    folder: Path,
    identity: Mapping[str, str],
    rows: Mapping[str, str],
    accumulator: Accumulator,
    first: int,
    stop: int,
) -> Path:
    """Save the sums over a slice of the connectome, whole or not at all, where `Checkpoints.slices` finds them.

    Parameters
    ----------
    folder, identity
        As for `Checkpoints`, whose batch has begun there.
    rows, accumulator
        As for `Checkpoints.save`.
    first, stop
        Index of the first connectome subject, and of the one after the last.

    Raises
    ------
    OSError
        The folder is not that of the run, as on another machine, or cannot be written to.
    """
    if not (folder / BATCHES).exists():
        raise OSError(f"{folder} on {platform.node()} is not the folder of this run: it must be shared")
    header = _describe(identity, rows, accumulator, stop - first, 1) | {"first": first}
    path = folder / f"{_stem(header)}-{first}-{stop}{SLICE_SUFFIX}"
    _write(path, header, accumulator, shutil.disk_usage(folder).free)
    return path


def read_slice(path: Path, rows: Mapping[str, str], accumulator: Accumulator) -> None:
    """Fill an empty accumulator with what `save_slice` has saved.

    Raises
    ------
    ValueError, OSError
        The file is damaged.
    """
    _restore(_read_header(path), list(rows), accumulator)


def _describe(
    identity: Mapping[str, str], rows: Mapping[str, str], accumulator: Accumulator, n_subjects: int, generation: int
) -> dict[str, Any]:
    return {
        "identity": dict(identity),
        "rows": dict(rows),
        "blocks": [(block.dtype.str, block.shape) for block in accumulator.blocks()],
        "n_subjects": n_subjects,
        "generation": generation,
    }


def _stem(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([header["identity"], header["rows"]]).encode()).hexdigest()[:16]


def _read_header(path: Path) -> Saved:
    with path.open("rb") as file:
        return Saved(path, **json.loads(file.readline()))


def _write(path: Path, header: Mapping[str, Any], accumulator: Accumulator, free_bytes: int) -> None:
    if accumulator.nbytes > free_bytes:
        raise OSError(f"{format_bytes(accumulator.nbytes)} are needed there, {format_bytes(free_bytes)} are free")
    digest = hashlib.sha256()
    with renamed_when_whole(path) as temporary, temporary.open("wb") as file:
        line = np.frombuffer(json.dumps(header, ensure_ascii=True).encode() + b"\n", np.uint8)
        for block in (line, *accumulator.blocks()):
            if block.size:
                view = memoryview(block).cast("B")  # type: ignore[arg-type]
                digest.update(view)
                file.write(view)
        file.write(digest.digest())


class _Reader:
    """Reads the blocks of a file one after another: a `mapping.analysis.ReadBlock`."""

    def __init__(self, file: IO[bytes], blocks: Sequence[tuple[str, Sequence[int]]]) -> None:
        self._file = file
        self.digest = hashlib.sha256(file.readline())
        self.shapes: Sequence[tuple[int, ...]] = [tuple(shape) for _, shape in blocks]

    def __call__(self, array: Array) -> Array:
        """Fill an array with the next numbers."""
        if array.size:
            view = memoryview(array).cast("B")  # type: ignore[arg-type]
            if self._file.readinto(view) != len(view):  # type: ignore[attr-defined]
                raise ValueError("it is cut short")
            self.digest.update(view)
        return array


def _restore(saved: Saved, keys: Sequence[str], accumulator: Accumulator) -> None:
    """Read the sums of some rows; raise ValueError where the file is damaged."""
    rows = [list(saved.rows).index(key) for key in keys]
    with saved.path.open("rb") as file:
        read = _Reader(file, saved.blocks)
        if [dtype for dtype, _ in saved.blocks] != [block.dtype.str for block in accumulator.blocks()]:
            raise ValueError("it holds sums of another kind")
        accumulator.restore(read, rows)
        if file.read() != read.digest.digest():
            raise ValueError("its checksum is wrong")
