"""Many lesions in batches: order, isolation of what fails, callbacks, what is kept and what is let go."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import chain
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import threadpoolctl
from synthetic import (
    RADIOLOGICAL,
    SPACE,
    box,
    make_mask,
    make_series,
    write_connectome,
    write_connectome_folder,
    write_mask,
)

from bids_lacuna import FunctionalNetworkMapping, LesionData, batch
from bids_lacuna.batch import batch_process, process_batches
from bids_lacuna.mapping.analysis import Accumulator
from bids_lacuna.mapping.local import LocalPass
from bids_lacuna.runtime.plan import BatchPlan, Resources
from bids_lacuna.weights import Rows

Array = np.ndarray

MASK = make_mask()
SERIES = make_series(int(MASK.sum()))
NAME = "FunctionalNetworkMapping"

CORNERS = [(0, 0, 0), (1, 2, 3), (2, 4, 6), (3, 5, 9), (0, 5, 1), (3, 0, 8), (1, 3, 7)]
"""Of seven lesions, no two alike."""


@pytest.fixture(scope="module")
def connectome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a connectome of five subjects of unequal length in four files."""
    return write_connectome_folder(tmp_path_factory.mktemp("connectome") / "study", SERIES, MASK)


@pytest.fixture
def analysis(connectome: Path) -> FunctionalNetworkMapping:
    """Set up an analysis with a t-map and a binary map."""
    return FunctionalNetworkMapping(connectome, t_threshold=3)


@pytest.fixture
def lesions() -> list[LesionData]:
    """Make the seven lesions, in memory."""
    return [make_lesion(box(corner), number) for number, corner in enumerate(CORNERS)]


def make_lesion(voxels: Array, number: int = 0) -> LesionData:
    """Make a lesion in memory."""
    image = nib.Nifti1Image(np.asarray(voxels, np.uint8), RADIOLOGICAL)
    return LesionData.from_nifti(image, {"subject_id": f"sub-{number}", "space": SPACE})


def maps(results: Sequence[LesionData], key: str) -> Array:
    """Stack one map of every lesion, the voxels of the brain mask."""
    return np.array([result.results[NAME][key].get_fdata()[MASK] for result in results])


def names(results: Sequence[LesionData]) -> list[str]:
    """List the lesions."""
    return [result.metadata["subject_id"] for result in results]


ALL_NAMES = [f"sub-{number}" for number in range(7)]


class Collector:
    """A callback that notes every batch, and makes every r-map."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.r_maps: list[Array] = []

    def __call__(self, results: list[LesionData]) -> str:
        """Note one batch."""
        assert isinstance(results, list)
        assert all(isinstance(result, LesionData) for result in results)
        self.batches.append(names(results))
        self.r_maps += list(maps(results, "correlation_map"))
        return "what a callback returns is nobody's business"

    @property
    def sizes(self) -> list[int]:
        """Count the lesions of each batch."""
        return [len(batch) for batch in self.batches]


def test_several_calls_at_once_from_threads(connectome: Path, lesions: list[LesionData]) -> None:
    """Calls on several threads have the maps of a call on its own, and leave BLAS its threads."""
    blas = [library["num_threads"] for library in threadpoolctl.threadpool_info()]
    alone = maps(batch_process(lesions, FunctionalNetworkMapping(connectome), n_threads=1), "correlation_map")

    def call(n_threads: int) -> Array:
        analysis = FunctionalNetworkMapping(connectome)
        return maps(batch_process(lesions, analysis, n_threads=n_threads), "correlation_map")

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(call, [1, 2, 3, 2, 3, 1, 2, 2], timeout=100):
            np.testing.assert_array_equal(found, alone)
    assert blas == [library["num_threads"] for library in threadpoolctl.threadpool_info()]


def test_against_numpy(analysis: FunctionalNetworkMapping, lesions: list[LesionData]) -> None:
    """Without any option, every lesion has the r-map and the t-map that NumPy computes from the series."""
    results = batch_process(lesions, analysis)
    assert names(results) == ALL_NAMES
    for corner, r_map, t_map in zip(CORNERS, maps(results, "correlation_map"), maps(results, "t_map"), strict=True):
        inside = box(corner)[MASK] > 0
        series = [subject.astype(float) for subject in SERIES]
        r = [np.corrcoef(x[:, inside].mean(axis=1), x, rowvar=False)[0, 1:] for x in series]
        z = np.arctanh(np.clip(r, -1 + 1e-6, 1 - 1e-6))
        np.testing.assert_allclose(r_map, np.tanh(z.mean(axis=0)), rtol=0, atol=1e-6)
        t = z.mean(axis=0) / (z.std(axis=0, ddof=1) / np.sqrt(len(SERIES)))
        np.testing.assert_allclose(t_map, t, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"lesion_batch_size": 1}, [1] * 7),
        ({"lesion_batch_size": 3}, [3, 3, 1]),
        ({"lesion_batch_size": 1000}, [7]),
        ({"lesion_batch_size": None}, [7]),
        ({"lesion_batch_size": "auto"}, [7]),
        ({}, [7]),
        ({"strategy": "sequential"}, [1] * 7),
        ({"strategy": "sequential", "lesion_batch_size": 3}, [1] * 7),
    ],
    ids=str,
)
def test_batches(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], options: dict[str, object], sizes: list[int]
) -> None:
    """The callback is called once a batch; lesions come back in order, with the number of their batch."""
    callback = Collector()
    results = batch_process(lesions, analysis, batch_result_callback=callback, **options)
    assert callback.sizes == sizes
    assert names(results) == [*chain(*callback.batches)] == ALL_NAMES
    assert [result.batch for result in results] == np.repeat(np.arange(len(sizes)) + 1, sizes).tolist()
    assert [result.error for result in results] == [None] * 7


@pytest.mark.parametrize(
    "options",
    [
        {"lesion_batch_size": 1},
        {"lesion_batch_size": 3, "n_threads": 2},
        {"lesion_batch_size": 4, "n_threads": 1},
        {"lesion_batch_size": None, "n_threads": 64},
        {"strategy": "sequential"},
    ],
    ids=str,
)
def test_maps_depend_on_no_option(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], options: dict[str, object]
) -> None:
    """The maps are the same whatever the batch size, the strategy and the number of threads."""
    expected = batch_process(lesions, analysis, n_threads=1)
    results = batch_process(lesions, analysis, **options)
    for key, tolerance in {
        "correlation_map": {"rtol": 0, "atol": 1e-6},
        "t_map": {"rtol": 1e-4, "atol": 1e-6},
    }.items():
        np.testing.assert_allclose(maps(results, key), maps(expected, key), **tolerance)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "parallel"}, "'parallel': it must be 'vectorized' or 'sequential'"),
        *[({"lesion_batch_size": size}, "lesion_batch_size is") for size in (0, -1, 2.5, True, "all", "3")],
    ],
    ids=str,
)
def test_unknown_values(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], options: dict[str, object], words: str
) -> None:
    """An argument that means nothing is refused before anything is mapped, with what it could be."""
    callback = Collector()
    with pytest.raises(ValueError, match=words):
        batch_process(lesions, analysis, batch_result_callback=callback, **options)
    assert callback.batches == []


def test_something_else_in_the_list(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], tmp_path: Path
) -> None:
    """Whoever puts a path in the list learns where it is and how to make a lesion of it."""
    with pytest.raises(TypeError, match=r"lesions\[7\] is a PosixPath: .*from_nifti"):
        batch_process([*lesions, tmp_path / "mask.nii.gz"], analysis)


def test_no_lesions(analysis: FunctionalNetworkMapping) -> None:
    """No lesions give no results and no call."""
    callback = Collector()
    assert batch_process([], analysis, batch_result_callback=callback) == []
    assert callback.batches == []


@pytest.mark.parametrize(
    ("bad", "size", "batches"),
    [
        ({1, 3, 5}, 2, [[0], [2], [4], [6]]),
        ({0, 1, 4}, 2, [[2, 3], [5], [6]]),
        ({0, 3, 6}, None, [[1, 2, 4, 5]]),
        (set(range(7)), 3, []),
    ],
    ids=str,
)
def test_lesions_that_fail(
    analysis: FunctionalNetworkMapping,
    lesions: list[LesionData],
    bad: set[int],
    size: int | None,
    batches: list[list[int]],
) -> None:
    """A lesion that cannot be read has its reason and no results; the callback sees the others, with right maps."""
    expected = maps(batch_process(lesions, analysis), "correlation_map")
    reasons = ["there is no mask at", "the mask is empty", "in space MNI305", "outside the connectome's brain mask"]
    for place, number in enumerate(sorted(bad)):
        lesions[number] = [
            LesionData.from_nifti("missing.nii.gz"),
            make_lesion(np.zeros(MASK.shape)),
            LesionData.from_nifti("missing.nii.gz", {"space": "MNI305"}),
            make_lesion(~MASK),
        ][place % 4]
        lesions[number].metadata["subject_id"] = f"sub-{number}"
    callback = Collector()
    results = batch_process(lesions, analysis, lesion_batch_size=size, batch_result_callback=callback)
    assert callback.batches == [[f"sub-{number}" for number in batch] for batch in batches]
    good = [number for number in range(7) if number not in bad]
    np.testing.assert_allclose(callback.r_maps, [*expected[good]], rtol=0, atol=1e-6)
    assert names(results) == ALL_NAMES
    for place, number in enumerate(sorted(bad)):
        assert reasons[place % 4] in results[number].error
    assert [number for number in range(7) if results[number].error is None] == good
    assert all(result.results == {} for result in results)


@pytest.mark.parametrize(("stop", "known"), [(False, ALL_NAMES), (True, ALL_NAMES[:2] + ALL_NAMES[3:4])])
def test_outcomes_are_known_as_early_as_can_be(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], stop: bool, known: list[str]
) -> None:
    """What cannot be loaded is told before its batch is mapped; after the first failure a run may begin nothing."""
    lesions[3] = make_lesion(np.zeros(MASK.shape), 3)
    told: list[tuple[str, list[str]]] = []
    pass_ = LocalPass(analysis, Resources(2**33, 1))

    class Listener:
        def on_started(self, batch: list[LesionData]) -> None:
            told.append(("started", names(batch)))

        def on_failed(self, batch: list[LesionData]) -> None:
            told.append(("failed", names(batch)))

        def on_finished(self, batch: list[LesionData]) -> None:
            told.append(("finished", names(batch)))

    results = process_batches(
        lesions,
        analysis,
        pass_,
        pass_.plan(7, 2),
        batch_result_callback=lambda batch: told.append(("mapped", names(batch))),
        observer=Listener(),
        stop_on_first_crash=stop,
    )
    first_batch = [("started", ALL_NAMES[:2]), ("mapped", ALL_NAMES[:2]), ("finished", ALL_NAMES[:2])]
    assert told[:5] == [*first_batch, ("started", ALL_NAMES[2:4]), ("failed", ["sub-3"])]
    assert told[5] == (("finished", ["sub-3"]) if stop else ("mapped", ["sub-2"]))
    assert names(results) == known
    assert len(told) == (6 if stop else 13)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("the disk is full"), "the disk is full"),
        (KeyError("rmap"), "KeyError: 'rmap'"),
        (StopIteration(), "StopIteration"),
    ],
    ids=repr,
)
def test_callback_that_raises(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], error: Exception, words: str
) -> None:
    """A batch whose callback raises fails with what it said; the batches before and after do not."""
    callback = Collector()

    def save(results: list[LesionData]) -> None:
        callback(results)
        if len(callback.batches) == 2:
            raise error

    results = batch_process(lesions, analysis, lesion_batch_size=3, batch_result_callback=save)
    assert callback.sizes == [3, 3, 1]
    assert [result.error is None for result in results] == [True] * 3 + [False] * 3 + [True]
    assert words in results[3].error
    assert names(results) == ALL_NAMES
    assert all(result.results == {} for result in results)


def test_interrupt(analysis: FunctionalNetworkMapping, lesions: list[LesionData]) -> None:
    """Ctrl-C is no failure of a batch: it ends the run."""

    def save(_: list[LesionData]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch_process(lesions, analysis, batch_result_callback=save)


def test_callback_that_fails_one_lesion(analysis: FunctionalNetworkMapping, lesions: list[LesionData]) -> None:
    """A callback may write an error on one lesion; it stays there, and the others are well."""

    def save(results: list[LesionData]) -> None:
        for result in results:
            if result.metadata["subject_id"] == "sub-4":
                result.error = "its map could not be saved"

    results = batch_process(lesions, analysis, lesion_batch_size=3, batch_result_callback=save)
    assert [result.error for result in results] == [None] * 4 + ["its map could not be saved"] + [None] * 2


def test_callback_that_empties_its_list(analysis: FunctionalNetworkMapping, lesions: list[LesionData]) -> None:
    """The list is the callback's own: what it takes out of it comes back all the same, released."""
    taken = []

    def save(results: list[LesionData]) -> None:
        while results:
            taken.append(results.pop())

    results = batch_process(lesions, analysis, lesion_batch_size=3, batch_result_callback=save)
    assert names(taken) == [ALL_NAMES[number] for number in (2, 1, 0, 5, 4, 3, 6)]
    assert names(results) == ALL_NAMES
    assert all(result.results == {} for result in taken)


class Repair(logging.Handler):
    """Brings a file back as soon as something about it is logged as failed."""

    def __init__(self, file: Path) -> None:
        super().__init__(logging.ERROR)
        self.file, self.content = file, file.read_bytes()

    def emit(self, _: logging.LogRecord) -> None:
        """Write the file as it was."""
        self.file.write_bytes(self.content)


def test_connectome_that_breaks(connectome: Path, lesions: list[LesionData], tmp_path: Path) -> None:
    """A pass that breaks off fails its batch, with the file's name; the next batch passes when the file is back."""
    folder = shutil.copytree(connectome, tmp_path / "study")
    analysis = FunctionalNetworkMapping(folder)
    expected = maps(batch_process(lesions, analysis), "correlation_map")
    last = folder / "part3.h5"
    repair = Repair(last)
    callback = Collector()

    def save(results: list[LesionData]) -> None:
        callback(results)
        if len(callback.batches) == 1:
            with h5py.File(last) as file:
                chunk = file["timeseries"].id.get_chunk_info(0)
            with last.open("r+b") as raw:
                raw.seek(chunk.byte_offset)
                raw.write(bytes(chunk.size))

    logger = logging.getLogger("bids_lacuna.batch")
    logger.addHandler(repair)
    try:
        results = batch_process(lesions, analysis, lesion_batch_size=3, batch_result_callback=save)
    finally:
        logger.removeHandler(repair)
    assert callback.sizes == [3, 1]
    assert [result.error is None for result in results] == [True] * 3 + [False] * 3 + [True]
    assert "part3.h5" in results[3].error
    np.testing.assert_allclose(callback.r_maps, expected[[0, 1, 2, 6]], rtol=0, atol=1e-6)
    # What is held for every lesion of a run must be little.
    assert all(result.weights is None for result in results)


def test_released_after_the_callback(analysis: FunctionalNetworkMapping, lesions: list[LesionData]) -> None:
    """Once the callback has returned, results are empty and maps say why; an image that was made stays whole."""
    kept, images = [], []

    def save(results: list[LesionData]) -> None:
        kept.extend(result.results[NAME] for result in results)
        images.extend(result.results[NAME]["correlation_map"] for result in results)

    results = batch_process(lesions, analysis, lesion_batch_size=3, batch_result_callback=save)
    assert [dict(result.results) for result in results] == [{}] * 7
    assert len(kept) == 7
    for network_maps in kept:
        assert "t_map" in network_maps
        with pytest.raises(RuntimeError, match="released when their batch's callback returned"):
            network_maps["t_map"]
    expected = maps(batch_process(lesions, analysis), "correlation_map")
    np.testing.assert_allclose([image.get_fdata()[MASK] for image in images], expected, rtol=0, atol=1e-6)


def test_input_stays_as_it_was(analysis: FunctionalNetworkMapping, lesions: list[LesionData]) -> None:
    """The lesions that were handed in are not written on, whether they fail or not."""
    lesions[2] = make_lesion(np.zeros(MASK.shape), 2)
    before = [vars(copy(lesion)) | {"metadata": dict(lesion.metadata)} for lesion in lesions]
    batch_process(lesions, analysis)
    assert [vars(lesion) for lesion in lesions] == before


def test_results_can_be_mapped_again(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], tmp_path: Path
) -> None:
    """The results of one run may go into the next: what failed is tried anew."""
    lesions[5] = LesionData.from_nifti(tmp_path / "late.nii.gz", {"subject_id": "sub-5"})
    results = batch_process(lesions, analysis, batch_result_callback=len)
    assert [result.error is None for result in results] == [True] * 5 + [False, True]
    write_mask(tmp_path / "late.nii.gz", box(CORNERS[5]))
    results = batch_process(results, analysis)
    assert [result.error for result in results] == [None] * 7
    assert np.isfinite(maps(results, "correlation_map")).all()


def test_masks_are_read_when_their_batch_comes(analysis: FunctionalNetworkMapping, tmp_path: Path) -> None:
    """A mask of the second batch need not be there before the first is done."""
    paths = [write_mask(tmp_path / "0.nii.gz", box(CORNERS[0])), tmp_path / "1.nii.gz"]

    def save(_: list[LesionData]) -> None:
        write_mask(paths[1], box(CORNERS[1]))

    lesions = [LesionData.from_nifti(path) for path in paths]
    results = batch_process(lesions, analysis, lesion_batch_size=1, batch_result_callback=save)
    assert [result.error for result in results] == [None, None]


def test_lesions_are_loaded_at_the_same_time(
    analysis: FunctionalNetworkMapping,
    lesions: list[LesionData],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two threads load two lesions at a time; results and failures keep their order, and BLAS its threads."""
    load, two = analysis.load, threading.Barrier(2)
    later = threading.Event()

    def load_as_one_of_two(lesion: LesionData) -> LesionData:
        if lesion.name in ("sub-0", "sub-1"):
            two.wait(timeout=60)
        if lesion.name == "sub-1":
            later.wait(timeout=60)
        if lesion.name == "sub-6":
            later.set()
        return load(lesion)

    monkeypatch.setattr(analysis, "load", load_as_one_of_two)
    for number in (1, 5):
        lesions[number] = make_lesion(np.zeros(MASK.shape), number)
    before = [library["num_threads"] for library in threadpoolctl.threadpool_info()]
    results = batch_process(lesions, analysis, n_threads=2)
    assert names(results) == ALL_NAMES
    assert [result.error is None for result in results] == [True, False, True, True, True, False, True]
    failures = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [message.split(": ")[1] for message in failures] == ["sub-1", "sub-5"]
    assert [library["num_threads"] for library in threadpoolctl.threadpool_info()] == before


@pytest.mark.parametrize(("small_bytes", "n_loaders"), [(batch.SMALL_MASK_BYTES, 1), (0, 2)])
def test_small_masks_are_loaded_one_after_another(
    analysis: FunctionalNetworkMapping,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_bytes: int,
    n_loaders: int,
) -> None:
    """Only masks above a size without compression are loaded by several threads."""
    load, together, loaders = analysis.load, threading.Barrier(n_loaders), set()

    def load_together(lesion: LesionData) -> LesionData:
        loaders.add(threading.get_ident())
        together.wait(timeout=60)
        return load(lesion)

    monkeypatch.setattr(analysis, "load", load_together)
    monkeypatch.setattr(batch, "SMALL_MASK_BYTES", small_bytes)
    paths = [write_mask(tmp_path / f"{n}.nii.gz", box(corner)) for n, corner in enumerate(CORNERS[:4])]
    results = batch_process([LesionData.from_nifti(path) for path in paths], analysis, n_threads=2)
    assert [result.error for result in results] == [None] * 4
    assert len(loaders) == n_loaders


def test_interrupt_while_loading(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends a run without waiting for the lesions that are not loaded yet."""
    begun = []

    def load(lesion: LesionData) -> LesionData:
        begun.append(lesion.name)
        if len(begun) == 1:
            raise KeyboardInterrupt
        time.sleep(0.2)
        return lesion

    monkeypatch.setattr(analysis, "load", load)
    with pytest.raises(KeyboardInterrupt):
        batch_process(lesions, analysis, n_threads=1)
    assert len(begun) <= 2


@pytest.mark.parametrize("available_bytes", [0, 1, 2**20])
def test_too_little_memory(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], available_bytes: int
) -> None:
    """Where not one lesion fits, the error has what is needed and what there is."""
    there = {0: "0 B", 1: "1 B", 2**20: "1 MiB"}[available_bytes]
    with pytest.raises(MemoryError, match=rf"needs [\d.]+ [MG]iB, {there} is available"):
        batch_process(lesions, analysis, available_bytes=available_bytes)


@pytest.fixture(scope="module")
def wide_connectome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a connectome with so many voxels that one lesion more or less shows among the memory of a process."""
    mask = np.ones((90, 80, 100), bool)
    series = np.random.default_rng(9).standard_normal((2, 3, mask.size), np.float32)
    return write_connectome(tmp_path_factory.mktemp("wide") / "wide.h5", series, mask)


@pytest.mark.parametrize(
    ("n_lesions", "size", "sizes"),
    [
        (7, "auto", [4, 3]),
        (6, "auto", [3, 3]),
        (7, None, [4, 3]),
        (6, None, [4, 2]),
        (7, 5, [4, 3]),
        (5, 2, [2, 2, 1]),
    ],
)
def test_batches_that_fit(
    wide_connectome: Path,
    caplog: pytest.LogCaptureFixture,
    n_lesions: int,
    size: int | str | None,
    sizes: list[int],
) -> None:
    """Where four lesions fit, "auto" makes equal batches; a size that is too large is lowered, with a warning."""
    analysis = FunctionalNetworkMapping(wide_connectome)
    voxels = box((30, 40, 50), shape=analysis.connectome.grid.shape)
    lesions = [make_lesion(voxels, number) for number in range(n_lesions)]
    plan = LocalPass(analysis, Resources(10**12, 1)).plan(n_lesions, 1)
    sizes_seen = []
    batch_process(
        lesions,
        analysis,
        lesion_batch_size=size,
        batch_result_callback=lambda results: sizes_seen.append(len(results)),
        available_bytes=plan.fixed_bytes + int(4.5 * plan.bytes_per_row),
        n_threads=1,
    )
    assert sizes_seen == sizes
    assert ("using batches of 4 lesions" in caplog.text) == (size in (None, 5))


class NarrowPass(LocalPass):
    """A pass for which the memory runs out with more than two lesions."""

    def run(self, rows: Rows, *arguments: object) -> Accumulator:
        """Raise MemoryError, or run."""
        if len(rows) > 2:
            raise MemoryError
        return super().run(rows, *arguments)


def test_memory_that_runs_out_halves_the_batches(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], caplog: pytest.LogCaptureFixture
) -> None:
    """Batches are halved, the larger half counts, until the memory is enough; none is mapped twice or lost."""
    pass_ = NarrowPass(analysis, Resources(2**40, 1))
    results = process_batches(lesions, analysis, pass_, pass_.plan(7), batch_result_callback=None)
    assert [result.batch for result in results] == [1, 1, 2, 2, 3, 3, 4]
    assert [result.error for result in results] == [None] * 7
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"the memory ran out: using batches of up to {n} lesions" for n in (4, 2)]


class CrowdedPass(LocalPass):
    """A pass beside other programs that leave the memory of two lesions."""

    def fitting_now(self, plan: BatchPlan) -> int:  # noqa: ARG002  as of a pass
        """Return 2."""
        return 2


def test_later_batches_fit_what_other_programs_leave(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], caplog: pytest.LogCaptureFixture
) -> None:
    """The first batch is as planned; the later ones are divided into those that fit by then."""
    pass_ = CrowdedPass(analysis, Resources(2**40, 1))
    results = process_batches(lesions, analysis, pass_, pass_.plan(7, 3), batch_result_callback=None)
    assert [result.batch for result in results] == [1, 1, 1, 2, 2, 3, 4]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["less memory is free than before: using batches of up to 2 lesions"]


def test_low_coverage(analysis: FunctionalNetworkMapping, caplog: pytest.LogCaptureFixture) -> None:
    """A lesion of which a third lies in the brain mask is mapped with a warning; those within get none."""
    voxels = np.zeros(MASK.shape)
    voxels[tuple(np.argwhere(MASK)[11])] = 1
    voxels[tuple(np.argwhere(~MASK)[[3, 5]].T)] = 1
    within = np.zeros(MASK.shape)
    within[tuple(np.argwhere(MASK)[[11, 23]].T)] = 1
    results = batch_process([make_lesion(voxels), make_lesion(within, 1)], analysis)
    assert [result.coverage for result in results] == pytest.approx([1 / 3, 1])
    assert [result.error for result in results] == [None, None]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "sub-0: only 33.3 % of the lesion" in warnings[0]


def test_lesions_without_a_space(analysis: FunctionalNetworkMapping, caplog: pytest.LogCaptureFixture) -> None:
    """Lesions without a space are mapped as if in the connectome's, with one warning that counts them."""
    named = make_lesion(np.ones(MASK.shape) * MASK)
    unnamed = [LesionData.from_nifti(named.mask, {"subject_id": f"sub-{number}"}) for number in (7, 9)]
    batch_process([named, *unnamed], analysis)
    (warning,) = [words for words in caplog.messages if "without a space" in words]
    assert "in their metadata: 2, such as sub-7" in warning


def test_half_a_lesion_is_enough(analysis: FunctionalNetworkMapping, caplog: pytest.LogCaptureFixture) -> None:
    """A lesion of which exactly half lies in the brain mask is mapped without a warning."""
    voxels = np.zeros(MASK.shape)
    voxels[tuple(np.argwhere(MASK)[11])] = voxels[tuple(np.argwhere(~MASK)[3])] = 1
    (result,) = batch_process([make_lesion(voxels)], analysis)
    assert (result.coverage, result.error) == (0.5, None)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


MAP_FILES = """
import sys
from bids_lacuna import FunctionalNetworkMapping, LesionData, batch_process

connectome, progress, *masks = sys.argv[1:]
lesions = [LesionData.from_nifti(mask, {"space": "MNI152NLin6Asym"}) for mask in masks]
batch_process(lesions, FunctionalNetworkMapping(connectome), lesion_batch_size=2, show_progress=progress == "on")
"""


@pytest.mark.parametrize("terminal", [False, True], ids=["no terminal", "terminal"])
@pytest.mark.parametrize("show_progress", ["off", "on"])
def test_progress(connectome: Path, tmp_path: Path, terminal: bool, show_progress: str) -> None:
    """Where stderr is a terminal, a bar counts lesions x subjects, also those that fail; elsewhere nothing shows."""
    masks = [write_mask(tmp_path / f"{number}.nii.gz", box(CORNERS[number])) for number in range(3)]
    bar = terminal and show_progress == "on"
    if bar:
        masks.insert(1, tmp_path / "missing.nii.gz")
    ours, theirs = os.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(theirs, (24, 100))
    command = [sys.executable, "-c", MAP_FILES, connectome, show_progress, *masks]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:  # How Linux says that nobody holds the other end of a terminal any more.
        pass
    os.close(ours)
    assert process.stdout == b""
    if bar:
        assert b"no mask at" in shown
        assert b"mapping batch 2 of 2: 100%" in shown
        assert b"20/20" in shown
    else:
        assert shown == b""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["rmap", "tmap"]),
        ({"t_threshold": 3}, ["rmap", "tmap", "binary"]),
        ({"compute_t_map": False}, ["rmap"]),
        ({"compute_t_map": False, "t_threshold": 3}, ["rmap", "binary"]),
    ],
    ids=str,
)
def test_callback_that_saves(
    connectome: Path, lesions: list[LesionData], tmp_path: Path, options: dict[str, object], expected: list[str]
) -> None:
    """A callback that saves the maps that there are leaves a file of each, with the values of a run without one."""
    output = tmp_path / "maps"
    output.mkdir()
    analysis = FunctionalNetworkMapping(connectome, **options)
    suffixes = {"correlation_map": "rmap", "t_map": "tmap", "binary_map": "binary"}

    def save(results: list[LesionData]) -> None:
        for result in results:
            found = result.results.get(NAME, {})
            assert not result.results.get("StructuralNetworkMapping", {})
            for key, suffix in suffixes.items():
                if key in found:
                    nib.save(found[key], output / f"{result.metadata['subject_id']}_{suffix}.nii.gz")

    batch_process(lesions, analysis, strategy="vectorized", lesion_batch_size=3, batch_result_callback=save)
    assert {file.name for file in output.iterdir()} == {
        f"{n}_{suffix}.nii.gz" for n in ALL_NAMES for suffix in expected
    }
    for result in batch_process(lesions, analysis):
        for key in suffixes.keys() & result.results[NAME].keys():
            saved = nib.load(output / f"{result.metadata['subject_id']}_{suffixes[key]}.nii.gz")
            np.testing.assert_array_equal(saved.affine, RADIOLOGICAL)
            image = result.results[NAME][key]
            np.testing.assert_allclose(saved.get_fdata(), image.get_fdata(), rtol=1e-4, atol=1e-4)


def test_callback_that_catches(
    analysis: FunctionalNetworkMapping, lesions: list[LesionData], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A callback that catches what goes wrong with one lesion saves the others, of this batch and the next."""
    (tmp_path / "sub-1_rmap.nii.gz").mkdir()

    def save(results: list[LesionData]) -> None:
        for result in results:
            name = result.metadata["subject_id"]
            try:
                nib.save(result.results[NAME]["correlation_map"], tmp_path / f"{name}_rmap.nii.gz")
            except OSError:
                print("not saved:", name)  # noqa: T201  as users do

    results = batch_process(lesions, analysis, lesion_batch_size=3, batch_result_callback=save)
    assert [result.error for result in results] == [None] * 7
    assert sum(file.is_file() for file in tmp_path.iterdir()) == 6
    assert capsys.readouterr().out == "not saved: sub-1\n"


n_batches_done = 0


def count_batch(results: list[LesionData]) -> int:
    """Count batches as a script does, in a global variable."""
    global n_batches_done
    n_batches_done += 1
    return len(results)


def test_callback_that_counts(analysis: FunctionalNetworkMapping, lesions: list[LesionData]) -> None:
    """A function that counts its calls has counted the batches."""
    batch_process(lesions, analysis, lesion_batch_size=2, batch_result_callback=count_batch)
    assert n_batches_done == 4


def test_callback_that_tidies_up(analysis: FunctionalNetworkMapping, lesions: list[LesionData]) -> None:
    """A callback may empty the results itself, which fails nothing."""

    def save(results: list[LesionData]) -> None:
        for result in results:
            result.results = {}

    results = batch_process(lesions, analysis, batch_result_callback=save)
    assert [result.error for result in results] == [None] * len(lesions)


def test_kept_results_travel(analysis: FunctionalNetworkMapping, lesions: list[LesionData]) -> None:
    """Results can be pickled, for joblib and caches, and give the same maps."""
    (result,) = batch_process(lesions[:1], analysis)
    travelled = pickle.loads(pickle.dumps(result))
    for key in ("correlation_map", "t_map"):
        here, there = (lesion.results["FunctionalNetworkMapping"][key].get_fdata() for lesion in (result, travelled))
        np.testing.assert_array_equal(here, there)
