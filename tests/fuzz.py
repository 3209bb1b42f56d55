"""Fuzz the readers of NIfTI files and stores: damaged files may raise only our own errors.

`make fuzz` runs it for five minutes. An error is our own if a line of bids_lacuna raises it, with a sentence. Errors
that a library raises are failures, and so is a lack of memory: a header must not decide how much memory is allocated.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack
from tempfile import TemporaryDirectory

import numpy as np
import synthetic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bids_lacuna
from bids_lacuna.connectome.build import build_store
from bids_lacuna.connectome.connectome import Connectome
from bids_lacuna.connectome.importers import hdf5, nifti
from bids_lacuna.grid import Grid
from bids_lacuna.lesion import LesionData, load_lesion

PACKAGE = str(Path(bids_lacuna.__file__).parent)

SPARE_BYTES = 2**30
"""Memory in bytes that reading a damaged file may take; the valid ones take less than a megabyte."""

EXAMPLES = 300
"""Examples of one target before the next one."""

BRAIN = synthetic.make_mask()
GRID = Grid(BRAIN, synthetic.RADIOLOGICAL)

interesting = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
places = st.integers(0, 2**16) | st.integers(0, 400)
floats = st.sampled_from([np.nan, np.inf, -np.inf, 0, -1, 0.5, 1e-30, 1e30, 3e38]).map(lambda x: pack("<f", x))
integers = st.sampled_from([0, -1, 1, 2, 2**15 - 1, -(2**15)]).map(lambda x: pack("<h", x))
changes = st.lists(
    st.tuples(st.just("set"), places, st.lists(interesting, min_size=1, max_size=8).map(bytes))
    | st.tuples(st.just("set"), st.integers(0, 173).map(lambda n: 2 * n), floats | integers)
    | st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=8))
    | st.tuples(st.just("cut"), places, st.just(b""))
    | st.tuples(st.just("drop"), places, st.integers(1, 8).map(bytes)),
    min_size=1,
    max_size=4,
)


def change(content: bytes, made: list[tuple[str, int, bytes]]) -> bytes:
    """Change some bytes of a file."""
    changed = bytearray(content)
    for kind, place, new in made:
        at = place % (len(changed) + 1)
        match kind:
            case "set":
                changed[at : at + len(new)] = new
            case "insert":
                changed[at:at] = new
            case "cut":
                del changed[at:]
            case "drop":
                del changed[at : at + len(new)]
    return bytes(changed)


@contextmanager
def only_own_errors() -> Iterator[None]:
    """Suppress errors that a line of bids_lacuna raised with a sentence; raise all others."""
    try:
        yield
    except (OSError, ValueError) as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if not raised_in.startswith(PACKAGE) or len(str(error)) < 20:
            raise AssertionError(f"not our own: {error!r}, raised in {raised_in}") from error


def fuzz_mask(folder: Path) -> Callable[[list[tuple[str, int, bytes]], bool, float | None], None]:
    """Damage a lesion mask, before or after it is compressed."""
    plain = synthetic.write_mask(folder / "whole.nii", synthetic.box((3, 2, 3))).read_bytes()

    def read(made: list[tuple[str, int, bytes]], compressed: bool, threshold: float | None) -> None:
        for name, content in (
            ("mask.nii", change(plain, made)),
            ("mask.nii.gz", change(gzip.compress(plain), made) if compressed else gzip.compress(change(plain, made))),
        ):
            path = folder / name
            path.write_bytes(content)
            with only_own_errors():
                load_lesion(LesionData.from_nifti(path), GRID, threshold=threshold)

    return given(changes, st.booleans(), st.sampled_from([None, 0.5]))(read)


def fuzz_series(folder: Path) -> Callable[[list[tuple[str, int, bytes]], bool], None]:
    """Damage a 4D series, as importers read them."""
    series = synthetic.make_series(int(BRAIN.sum()), (7,))[0]
    plain = synthetic.write_series(folder / "whole.nii", series, BRAIN).read_bytes()

    def read(made: list[tuple[str, int, bytes]], compressed: bool) -> None:
        path = folder / "series.nii.gz"
        path.write_bytes(change(gzip.compress(plain), made) if compressed else gzip.compress(change(plain, made)))
        with only_own_errors():
            nifti.NiftiRun.open(path, path.name, GRID).read(GRID)

    return given(changes, st.booleans())(read)


def fuzz_store(folder: Path) -> Callable[[str, list[tuple[str, int, bytes]]], None]:
    """Damage one file of a store, and read all of it."""
    source = synthetic.write_connectome_folder(folder / "hdf5", synthetic.make_series(int(BRAIN.sum())), BRAIN)
    whole = folder / "store"
    build_store(hdf5.open_source(source), source, whole, name="GSP5", space=synthetic.SPACE, dtype="int16")
    names = ("connectome.json", "mask.nii.gz", "sub-0002_timeseries.npy", "sub-0003_scale.npy")
    contents = {name: (whole / name).read_bytes() for name in names}

    def read(name: str, made: list[tuple[str, int, bytes]]) -> None:
        try:
            (whole / name).write_bytes(change(contents[name], made))
            with only_own_errors():
                for _ in Connectome.open(whole).subjects():
                    pass
        finally:
            (whole / name).write_bytes(contents[name])

    return given(st.sampled_from(names), changes)(read)


def limit_memory() -> None:
    """Limit the process to little more memory than it has."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + SPARE_BYTES, resource.RLIM_INFINITY))


def main() -> int:
    """Fuzz each reader in turn until the time is over or an error is not our own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5)
    end = time.monotonic() + 60 * parser.parse_args().minutes
    # NumPy warns of invalid numbers; a user sees one more line.
    warnings.simplefilter("ignore")
    # nibabel logs what it corrects in a header, and the program what may be a mistake.
    logging.disable()
    options = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    with TemporaryDirectory() as folder:
        targets = {}
        for make in (fuzz_mask, fuzz_series, fuzz_store):
            place = Path(folder) / make.__name__
            place.mkdir()
            targets[make.__name__] = options(make(place))
        limit_memory()
        n_done = dict.fromkeys(targets, 0)
        while time.monotonic() < end:
            for name, target in targets.items():
                target()
                n_done[name] += EXAMPLES
    sys.stdout.write(f"no error but our own; damaged files, at most: {n_done}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
