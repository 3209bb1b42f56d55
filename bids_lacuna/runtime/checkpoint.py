"""What a run that was ended needs to go on where it was: its batches, and the moments of the one in work.

In a folder of its own lie `batches.json`, the batches that are left, of which the first is in work, and files of
moments, two generations of them: a line of JSON that tells what they are, the arrays' bytes (each lesion's
sum of z, then each one's sum of z², the subjects' counts, and those left out), and the SHA-256 of all that. A run on
a cluster, whose moments are merged in another order, has files of the same kind for slices of the connectome.
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
from typing import IO, Any

import numpy as np

from bids_lacuna.files import read_json_object, remove_unfinished, renamed_when_whole, write_json
from bids_lacuna.statistics import RunningMoments

logger = logging.getLogger(__name__)

Array = np.ndarray

BATCHES = "batches.json"

SUFFIX = ".moments"
"""Of moments of the first connectome subjects."""

SLICE_SUFFIX = ".slice"
"""Of moments of some connectome subjects from any one on."""

GENERATIONS = 2
"""Files of moments that are kept: should the newest turn out to be damaged, the one before it is there."""


@dataclass(frozen=True)
class Saved:
    """One file of moments, as its first line describes it."""

    path: Path
    dependencies: dict[str, str]
    """All that decides the numbers, beside the lesions."""
    lesions: dict[str, str]
    """The key of each row's lesion, in order, with the SHA-256 of its weights."""
    n_voxels: int
    n_subjects: int
    """Connectome subjects that were added."""
    n_left_out: int
    """Of them, those of which `RunningMoments.left_out` tells."""
    generation: int
    """Counted from 1 within one batch."""
    first: int = 0
    """The first of the connectome subjects, counted from 0."""


@dataclass
class Checkpoints:
    """Keeps what a run needs to go on after it was ended, in a folder that no other run uses."""

    folder: Path
    interval_s: float
    """Moments are saved when they were not for so long."""
    dependencies: Mapping[str, str]
    """All that decides the numbers, beside the lesions: what was saved under other ones is not used."""
    free_bytes: Callable[[], int] | None = None
    """Tells how much may be written; by default what the disk has free."""
    _left: list[list[str]] = field(init=False, default_factory=list)
    _saved_at: float = field(init=False, default=0)
    _generation: int = field(init=False, default=0)
    _told: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        """Read what an earlier run left behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            journal = read_json_object(self.folder / BATCHES)
        except (OSError, ValueError):
            return
        if journal.get("dependencies") == dict(self.dependencies):
            self._left = [list(map(str, batch)) for batch in journal["batches"]]

    @property
    def in_work(self) -> list[str]:
        """The keys of the batch that an earlier run had in work when it was ended."""
        return self._left[0] if self._left else []

    def divide(self, keys: Sequence[str], batch_size: int) -> list[list[str]]:
        """Divide lesions into batches, as an earlier run did where it left batches behind.

        A batch's numbers are rounded together, so that the same batches give the same bytes. Lesions that are new,
        or failed before, come last.
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
        """Note the batches that are left, of which the first is in work now; what was saved of others is removed."""
        self._generation, self._saved_at = 0, time.monotonic()
        keys = {key for batch in left for key in batch}
        with _going_on_without():
            remove_unfinished(self.folder)
            for saved in self._all_saved(SUFFIX, SLICE_SUFFIX):
                if keys.isdisjoint(saved.lesions):
                    saved.path.unlink(missing_ok=True)
            write_json(self.folder / BATCHES, {"dependencies": dict(self.dependencies), "batches": left})

    def end(self) -> None:
        """Remove what this run has left: it is over."""
        with _going_on_without():
            for saved in self._all_saved(SUFFIX, SLICE_SUFFIX):
                saved.path.unlink(missing_ok=True)
            (self.folder / BATCHES).unlink(missing_ok=True)

    def resume(self, lesions: Mapping[str, str], moments: RunningMoments) -> int:
        """Fill in what was saved of these lesions' moments, and tell how many connectome subjects are in it.

        Parameters
        ----------
        lesions
            Of each row, its lesion's key and the SHA-256 of its weights.
        moments
            Of no subject yet.
        """
        for saved in sorted(self._all_saved(SUFFIX), key=lambda saved: saved.n_subjects, reverse=True):
            if not lesions.items() <= saved.lesions.items():
                if lesions.keys() & saved.lesions.keys():
                    self._tell(f"{saved.path} is of other lesions or of other masks: it is not used, and left alone")
                continue
            try:
                _read_moments(saved, list(lesions), moments)
            except (OSError, ValueError) as error:
                logger.warning("%s cannot be used (%s)", saved.path, error)
                moments.clear()
                continue
            self._generation = saved.generation
            logger.info("going on after connectome subject %d, from %s", saved.n_subjects, saved.path)
            return saved.n_subjects
        return 0

    def slices(self, lesions: Mapping[str, str]) -> dict[tuple[int, int], Path]:
        """Find what was saved of these lesions' moments, by the slice's first subject and the one after its last.

        Parameters
        ----------
        lesions
            As for `resume`.
        """
        return {
            (saved.first, saved.first + saved.n_subjects): saved.path
            for saved in self._all_saved(SLICE_SUFFIX)
            if lesions.items() <= saved.lesions.items()
        }

    def wait_again(self) -> None:
        """Begin the next interval: what was due is being saved."""
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether moments have not been saved for the whole interval."""
        return time.monotonic() - self._saved_at >= self.interval_s

    def save(self, lesions: Mapping[str, str], moments: RunningMoments, n_subjects: int) -> None:
        """Save the moments of a batch, whole or not at all; without success, the run goes on."""
        self._saved_at = time.monotonic()
        self._generation += 1
        header = {
            "dependencies": dict(self.dependencies),
            "lesions": dict(lesions),
            "n_voxels": moments.n_voxels,
            "n_subjects": n_subjects,
            "n_left_out": len(moments.left_out),
            "generation": self._generation,
        }
        path = self.folder / f"{_name_of(header)}-{self._generation % GENERATIONS}{SUFFIX}"
        with _going_on_without():
            # This is the older one of the two: the newest stays until the next is whole.
            path.unlink(missing_ok=True)
            free_bytes = shutil.disk_usage(self.folder).free if self.free_bytes is None else self.free_bytes()
            _check_room(moments, free_bytes)
            with renamed_when_whole(path) as temporary, temporary.open("wb") as file:
                _write_moments(file, header, moments)
            logger.info("saved the moments of %d lesions after connectome subject %d", len(lesions), n_subjects)

    def _all_saved(self, *suffixes: str) -> Iterator[Saved]:
        """Find the moments that fit this run; what doesn't fit is left alone."""
        for path in sorted(path for suffix in suffixes for path in self.folder.glob(f"*{suffix}")):
            try:
                saved = _read_header(path)
            except (OSError, ValueError, TypeError) as error:
                self._tell(f"{path} cannot be read ({error}): it is not used")
                continue
            if self._fits(path, saved.dependencies):
                yield saved

    def _fits(self, path: Path, dependencies: Any) -> bool:
        theirs = dependencies if isinstance(dependencies, dict) else {}
        different = [name for name, value in self.dependencies.items() if theirs.get(name) != value]
        if different:
            self._tell(f"{path} was made with another {' and '.join(different)}: it is not used, and left alone")
        return not different

    def _tell(self, sentence: str) -> None:
        """Warn once of each thing: saved moments are looked at again for each batch."""
        if sentence not in self._told:
            self._told.add(sentence)
            logger.warning(sentence)


def subdivide(batches: Sequence[Sequence[str]], size: int) -> list[list[str]]:
    """Divide batches further, into some of up to that size."""
    return [list(batch[start : start + size]) for batch in batches for start in range(0, len(batch), size or 1)]


@contextmanager
def _going_on_without() -> Iterator[None]:
    """Log what goes wrong with checkpoints: a run can do without them."""
    try:
        yield
    except OSError as error:
        logger.warning("no checkpoint is kept (%s): choose another folder with -w, or --checkpoint-minutes 0", error)


def save_slice(
    folder: Path,
    dependencies: Mapping[str, str],
    lesions: Mapping[str, str],
    moments: RunningMoments,
    first: int,
    stop: int,
) -> Path:
    """Save the moments of some connectome subjects, whole or not at all, where `Checkpoints.slices` finds them.

    Parameters
    ----------
    folder, dependencies
        As for `Checkpoints`, which has begun a batch there.
    lesions, moments
        As for `Checkpoints.resume`.
    first, stop
        The first connectome subject, counted from 0, and the one after the last.

    Raises
    ------
    OSError
        The folder is not the one where the batch was begun, as on another machine, or cannot be written to.
    """
    if not (folder / BATCHES).exists():
        raise OSError(f"{folder} on {platform.node()} is not the folder of this run: it must be shared")
    header = {
        "dependencies": dict(dependencies),
        "lesions": dict(lesions),
        "n_voxels": moments.n_voxels,
        "n_subjects": stop - first,
        "n_left_out": len(moments.left_out),
        "generation": 1,
        "first": first,
    }
    path = folder / f"{_name_of(header)}-{first}-{stop}{SLICE_SUFFIX}"
    _check_room(moments, shutil.disk_usage(folder).free)
    with renamed_when_whole(path) as temporary, temporary.open("wb") as file:
        _write_moments(file, header, moments)
    return path


def read_slice(path: Path, lesions: Mapping[str, str], moments: RunningMoments) -> None:
    """Fill in what `save_slice` has saved; raises ValueError or OSError where the file is damaged."""
    _read_moments(_read_header(path), list(lesions), moments)


def _name_of(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([header["dependencies"], header["lesions"]]).encode()).hexdigest()[:16]


def _check_room(moments: RunningMoments, free_bytes: int) -> None:
    n_bytes = moments.total.nbytes + moments.total_of_squares.nbytes
    if n_bytes > free_bytes:
        raise OSError(f"{n_bytes / 2**30:.1f} GiB are needed there, {free_bytes / 2**30:.1f} GiB are free")


def _read_header(path: Path) -> Saved:
    with path.open("rb") as file:
        return Saved(path, **json.loads(file.readline()))


def _write_moments(file: IO[bytes], header: Mapping[str, Any], moments: RunningMoments) -> None:
    digest = hashlib.sha256()
    parts = [
        json.dumps(header, ensure_ascii=True).encode() + b"\n",
        *moments.total,
        *moments.total_of_squares,
        moments.n_by_voxel,
        *(array for left_out in moments.left_out for array in left_out),
    ]
    for part in parts:
        view = memoryview(part).cast("B")
        digest.update(view)
        file.write(view)
    file.write(digest.digest())


def _read_moments(saved: Saved, keys: Sequence[str], moments: RunningMoments) -> None:
    """Read some lesions' rows; raises ValueError where the file is damaged."""
    rows = [list(saved.lesions).index(key) for key in keys]
    row_of = {row: place for place, row in enumerate(rows)}
    digest = hashlib.sha256()
    with saved.path.open("rb") as file:
        digest.update(file.readline())

        def fill(array: Array) -> Array:
            view = memoryview(array).cast("B")  # type: ignore[arg-type]
            if file.readinto(view) != len(view):
                raise ValueError("it is cut short")
            digest.update(view)
            return array

        beside = np.empty(saved.n_voxels)
        for sums in (moments.total, moments.total_of_squares):
            for row in range(len(saved.lesions)):
                fill(sums[row_of[row]] if row in row_of else beside)
        fill(moments.n_by_voxel)
        for _ in range(saved.n_left_out):
            lesions = fill(np.empty(len(saved.lesions), np.bool_))
            voxels = fill(np.empty((saved.n_voxels + 7) // 8, np.uint8))
            if lesions[rows].any():
                moments.left_out.append((lesions[rows], voxels))
        if file.read() != digest.digest():
            raise ValueError("its checksum is wrong")
