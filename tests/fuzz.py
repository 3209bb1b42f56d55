"""Fuzz the readers of all kinds of files: damaged ones may raise only our own errors, and damaged caches none.

The files are NIfTI files, stores, compiled kernels, indices of datasets, files of schedulers, JSON and TOML.
`make fuzz` runs it for five minutes. An error is our own if a line of bids_lacuna raises it, with a sentence. Errors
that a library raises are failures, and so is a lack of memory: a header must not decide how much memory is allocated.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import logging
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from struct import pack
from tempfile import TemporaryDirectory

import numba
import numpy as np
import synthetic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bids_lacuna
from bids_lacuna.app.config import add_config_file
from bids_lacuna.app.options import build_parser
from bids_lacuna.bids import find_lesion_masks, read_filter_file
from bids_lacuna.connectome.build import build_store
from bids_lacuna.connectome.connectome import Connectome
from bids_lacuna.connectome.importers import hdf5, nifti
from bids_lacuna.files import read_json_object
from bids_lacuna.grid import Grid
from bids_lacuna.kernels.compiled import cached_njit
from bids_lacuna.lesion import LesionData, load_lesion
from bids_lacuna.runtime.locks import Claims
from bids_lacuna.runtime.memory import memory_budget

PACKAGE = str(Path(bids_lacuna.__file__).parent)

SPARE_BYTES = 2**30
"""Memory in bytes that reading a damaged file may take; the valid ones take less than a megabyte."""

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
    except (OSError, ValueError, LookupError) as error:
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


def fuzz_kernel_cache(folder: Path) -> Callable[[str, list[tuple[str, int, bytes]]], None]:
    """Damage a file of the cache of compiled code: what it is compiled to, or read from there, computes the same."""
    numba.config.CACHE_DIR = str(folder)
    assert cached_njit(nogil=True)(triple)(7) == 21
    (index,), (code,) = folder.rglob("*.nbi"), folder.rglob("*.nbc")
    contents = {path: path.read_bytes() for path in (index, code)}

    def read(kind: str, made: list[tuple[str, int, bytes]]) -> None:
        for path, content in contents.items():
            path.write_bytes(change(content, made) if path.suffix == kind else content)
        assert cached_njit(nogil=True)(triple)(7) == 21
        # What was damaged has been written again.
        assert cached_njit(nogil=True)(triple)(7) == 21

    return given(st.sampled_from([".nbi", ".nbc"]), changes)(read)


def triple(number: int) -> int:
    """Be compiled."""
    return 3 * number


def fuzz_index(folder: Path) -> Callable[[list[tuple[str, int, bytes]]], None]:
    """Damage the index of a dataset: all masks are found."""
    names = [f"sub-{number:02}/anat/sub-{number:02}_label-lesion_mask.nii.gz" for number in range(30)]
    root = synthetic.write_images(folder / "bids", *names)
    expected = find_lesion_masks(root)
    assert find_lesion_masks(root, database_dir=folder / "database") == expected
    (index,) = (folder / "database").rglob("*.sqlite")
    content = index.read_bytes()

    def read(made: list[tuple[str, int, bytes]]) -> None:
        index.write_bytes(change(content, made))
        assert find_lesion_masks(root, database_dir=folder / "database") == expected

    return given(changes)(read)


def fuzz_scheduler(folder: Path) -> Callable[[dict[str, list[tuple[str, int, bytes]]], str], None]:
    """Damage what kernel and scheduler say about memory: a limit remains, and it is not above that of the machine."""
    files = {
        "proc/self/cgroup": b"4:memory:/slurm/job_1\n0::/slurm/job_1\n",
        "proc/self/mountinfo": b"30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw,nsdelegate\n"
        b"31 23 0:27 / /cg1 rw - cgroup cgroup rw,memory\n",
        "sys/fs/cgroup/slurm/job_1/memory.max": b"4294967296\n",
        "sys/fs/cgroup/slurm/job_1/memory.current": b"1048576\n",
        "cg1/slurm/job_1/memory.limit_in_bytes": b"9223372036854771712\n",
        "cg1/slurm/job_1/memory.usage_in_bytes": b"1048576\n",
    }
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)

    def read(made: dict[str, list[tuple[str, int, bytes]]], words: str) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(change(content, made.get(name, [])))
        environ = dict.fromkeys(("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"), words)
        for variables in (environ, dict(list(environ.items())[1:])):
            budget = memory_budget(root=folder, environ=variables)
            assert budget.available_bytes <= budget.limits[0].available_bytes

    numbers = st.text("0123456789kKMGT.-+ eE\u0664\u00b2", max_size=12) | st.text(max_size=4)
    return given(st.dictionaries(st.sampled_from(list(files)), changes, max_size=3), numbers)(read)


def fuzz_json(folder: Path) -> Callable[[str, list[tuple[str, int, bytes]]], None]:
    """Damage a JSON file that a run reads: of the dataset, of a mask, of the filters, or of another run."""
    stem = f"sub-01/anat/sub-01_space-{synthetic.SPACE}_label-lesion_mask"
    root = synthetic.write_images(folder / "bids", f"{stem}.nii.gz")
    claim = {"host": "node", "pid": 7, "pid_namespace": 3, "since": "2026-01-01T12:00:00", "lesions": ["sub-02_mask"]}
    files = {
        root / "dataset_description.json": b'{"Name": "x", "BIDSVersion": "1.10.0", "GeneratedBy": [{"Name": "y"}]}',
        root
        / f"{stem}.json": b'{"SpatialReference": {"index": "MNI152NLin6Asym"}, "Type": "Lesion", "Threshold": 0.5}',
        folder / "filters.json": b'{"lesion": {"space": ["MNI152NLin6Asym", null], "label": "lesion", "run": 1}}',
        folder / "locks" / "run.json": json.dumps(claim).encode(),
    }
    (folder / "locks").mkdir()

    def read(name: str, made: list[tuple[str, int, bytes]]) -> None:
        for path, content in files.items():
            path.write_bytes(change(content, made) if path.name == name else content)
        with only_own_errors():
            read_filter_file(folder / "filters.json")
        with only_own_errors():
            find_lesion_masks(root, filters=read_json_object(folder / "filters.json").get("lesion"))
        # Damage may move the claim to a run of another host, but not to this lesion.
        claims = Claims(folder / "locks", "ours", lambda _: None)
        assert claims.take(["sub-01_mask"]) == {}
        claims.release()

    return given(st.sampled_from([path.name for path in files]), changes)(read)


def fuzz_config(folder: Path) -> Callable[[list[tuple[str, int, bytes]]], None]:
    """Damage a file of options: they are parsed, or the program ends with a sentence."""
    content = (
        b'connectome = "STORE"\nt-threshold = [5, 7.5]\nmem = "2G"\nnprocs = 2\nno-reports = true\n'
        b'participant_label = ["01", "02"]\ncheckpoint-minutes = 2.5\n'
    )
    path = folder / "options.toml"
    parser = build_parser()

    def read(made: list[tuple[str, int, bytes]]) -> None:
        path.write_bytes(change(content, made))
        words = ["bids", "out", "participant", "--config-file", str(path)]
        with redirect_stderr(io.StringIO()) as said, suppress(SystemExit):
            parser.parse_known_args(add_config_file(parser, words))
            return
        assert ": error: " in said.getvalue(), said.getvalue()

    return given(changes)(read)


def limit_memory() -> None:
    """Limit the process to little more memory than it has."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + SPARE_BYTES, resource.RLIM_INFINITY))


TARGETS = {
    fuzz_mask: 300,
    fuzz_series: 300,
    fuzz_store: 300,
    fuzz_kernel_cache: 100,
    fuzz_scheduler: 100,
    fuzz_json: 50,
    fuzz_config: 300,
    fuzz_index: 20,
}
"""The numbers of examples of each target before the next one has its turn; slow ones have fewer."""


def main() -> int:
    """Fuzz each reader in turn until the time is over or an error is not our own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5)
    end = time.monotonic() + 60 * parser.parse_args().minutes
    # NumPy warns of invalid numbers; a user sees one more line.
    warnings.simplefilter("ignore")
    # nibabel logs what it corrects in a header, and the program what may be a mistake.
    logging.disable()
    with TemporaryDirectory() as folder:
        targets = {}
        for make, n_examples in TARGETS.items():
            place = Path(folder) / make.__name__
            place.mkdir()
            options = settings(
                max_examples=n_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
            )
            targets[make] = options(make(place))
        limit_memory()
        n_done = dict.fromkeys((make.__name__ for make in TARGETS), 0)
        while time.monotonic() < end:
            for make, target in targets.items():
                target()
                n_done[make.__name__] += TARGETS[make]
    sys.stdout.write(f"no error but our own; damaged files, at most: {n_done}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
