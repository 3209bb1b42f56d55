"""Functional lesion network mapping: one batch of lesions through the whole connectome."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from signal import SIGUSR1

import numpy as np

from bids_lacuna import kernels
from bids_lacuna._version import __version__
from bids_lacuna.connectome.connectome import Connectome, ConnectomeSubject
from bids_lacuna.lesion import LesionData, load_lesion
from bids_lacuna.mapping.maps import NetworkMaps
from bids_lacuna.runtime.checkpoint import Checkpoints
from bids_lacuna.runtime.memory import ADDRESS_SPACE, memory_limits
from bids_lacuna.runtime.plan import SUBJECTS_IN_MEMORY, BatchPlan
from bids_lacuna.runtime.signals import signals_held
from bids_lacuna.statistics import Moments, RunningMoments
from bids_lacuna.weights import LesionWeights, Weighting

logger = logging.getLogger(__name__)

Array = np.ndarray


FEW_SUBJECTS = 0.5
"""Below this share of connectome subjects with a signal in a lesion, a warning says so."""


class MappingStopped(Exception):  # noqa: N818  an end that is no mistake of the lesions
    """What maps is out of reach: the run ends, and goes on from there when it is started again."""


class NoWorker(ValueError):  # noqa: N818
    """None of a cluster's workers can map."""


class FunctionalNetworkMapping:
    """Correlate each lesion's mean resting-state signal with every voxel, over a normative connectome.

    Parameters
    ----------
    connectome
        An open connectome, or the path of one.
    compute_t_map
        Whether results have a `t_map`.
    t_threshold
        Results have a `binary_map` of |t| above it. Several thresholds give `binary_maps`.
    weighting
        How lesions are brought to the connectome's grid: see `load_lesion`.
    lesion_threshold
        None where masks are binary. Above 0 and up to 1 where they may be probability maps: see `load_lesion`.

    References
    ----------
    Boes et al. (2015), Brain 138:3061, doi:10.1093/brain/awv228.
    """

    name = "FunctionalNetworkMapping"
    """The key of these results in `LesionData.results`."""

    def __init__(
        self,
        connectome: str | PathLike[str] | Connectome,
        *,
        compute_t_map: bool = True,
        t_threshold: float | Sequence[float] | None = None,
        weighting: Weighting = "volume",
        lesion_threshold: float | None = None,
    ) -> None:
        if weighting not in ("volume", "binary"):
            raise ValueError(f"weighting is {weighting!r}: it must be 'volume' or 'binary'")
        thresholds = () if t_threshold is None else tuple(np.atleast_1d(np.asarray(t_threshold, float)).tolist())
        if not all(np.isfinite(t) and t > 0 for t in thresholds):
            raise ValueError(
                f"t_threshold is {t_threshold!r}: |t| is compared with it, so it must be a finite number above 0"
            )
        if lesion_threshold is not None and not 0 < lesion_threshold <= 1:
            raise ValueError(
                f"lesion_threshold is {lesion_threshold!r}: it is compared with probabilities, so it must be above 0 "
                "and at most 1"
            )
        self.connectome = connectome if isinstance(connectome, Connectome) else Connectome.open(connectome)
        self.compute_t_map = compute_t_map
        self.t_thresholds = thresholds
        self.weighting = weighting
        self.lesion_threshold = lesion_threshold

    @property
    def dependencies(self) -> dict[str, str]:
        """All that decides the moments, beside the lesions."""
        return {
            "software": __version__,
            "connectome": self.connectome.content_hash,
            "weighting of lesions": self.weighting,
            "lesion threshold": str(self.lesion_threshold),
        }

    def load(self, lesion: LesionData) -> LesionData:
        """Read one lesion's mask and weigh it on the connectome's grid; raises what `load_lesion` raises."""
        connectome = self.connectome
        return load_lesion(lesion, connectome.grid, connectome.space, self.weighting, self.lesion_threshold)

    def fitting_now(self, plan: BatchPlan) -> int:
        """Count the lesions that fit what other processes leave of the memory by now, one at least."""
        # The address space that threads have reserved by now is not missing.
        limits = [limit.available_bytes for limit in memory_limits() if limit.source != ADDRESS_SPACE]
        return max(1, (min(plan.available_bytes, *limits) - plan.fixed_bytes) // plan.bytes_per_lesion)

    def map_batch(
        self,
        lesions: Sequence[LesionData],
        n_threads: int,
        subjects_in_memory: int = SUBJECTS_IN_MEMORY,
        keep_cached: bool = True,
        checkpoints: Checkpoints | None = None,
        on_subject: Callable[[], None] = lambda: None,
    ) -> list[LesionData]:
        """Map loaded lesions in one pass over the connectome.

        Parameters
        ----------
        lesions
            As from `load`.
        n_threads
            Threads of the kernels.
        subjects_in_memory
            Connectome subjects, 3 at least: a third of them, or more where several are read at a time, is read ahead;
            the others are mapped together, up to `kernels.GROUP`. It changes no number.
        keep_cached
            Whether the connectome may stay in the system's page cache.
        checkpoints
            Where the moments are saved now and then and when the run is told to end, and where they are taken up.
            Signals are held meanwhile: the pass ends between connectome subjects.
        on_subject
            Called after each connectome subject, also for those that were added by an earlier run.

        Returns
        -------
        list of LesionData
            Copies with results, whose maps are made from the batch's moments when they are asked for; with `error`
            and no results where no connectome subject has a signal in the lesion.
        """
        grid = self.connectome.grid
        rows = compressed_rows([lesion.weights for lesion in lesions if lesion.weights])
        moments = RunningMoments(len(lesions), grid.n_voxels)
        hashes = weight_hashes(lesions) if checkpoints else {}
        n_added = checkpoints.resume(hashes, moments) if checkpoints else 0
        for _ in range(n_added):
            on_subject()
        n_ahead = self.connectome.n_ahead(subjects_in_memory)
        n_at_once = count_together(self.connectome, subjects_in_memory)
        with (
            signals_held(checkpoints is not None) as signals,
            kernels.threads(n_threads),
            closing(self.connectome.subjects(n_ahead, keep_cached, n_added)) as subjects,
        ):
            while group := list(islice(subjects, n_at_once)):
                add_subjects(group, rows, moments)
                n_added += len(group)
                for _ in range(len(group)):
                    on_subject()
                # Of each group, before the next one is in memory.
                del group
                if checkpoints and (signals or checkpoints.is_due):
                    checkpoints.save(hashes, moments, n_added)
                if signals - {SIGUSR1}:
                    break
                signals.discard(SIGUSR1)
        if n_added < self.connectome.n_subjects:
            # A signal's own handler has let the process go on; the pass has not.
            raise KeyboardInterrupt
        return [self.attach_results(lesion, moments, row) for row, lesion in enumerate(lesions)]

    def attach_results(self, lesion: LesionData, moments: Moments, row: int) -> LesionData:
        """Give a copy of a mapped lesion with its results, or with the reason why it has none.

        Parameters
        ----------
        moments
            Of all connectome subjects; `row` is the lesion's place in them.
        """
        n = moments.n(row)
        if not n.any():
            error = "no connectome subject has a signal in this lesion: its voxels' series are constant or not finite"
            return replace(lesion, weights=None, error=error)
        n_counted, n_subjects = int(n.max()), self.connectome.n_subjects
        if n_counted < FEW_SUBJECTS * n_subjects:
            logger.warning(
                "%s: only %d of %d connectome subjects have a signal in the lesion; its map describes those",
                lesion.name,
                n_counted,
                n_subjects,
            )
        maps = NetworkMaps(
            partial(moments.lesion, row),
            self.connectome.grid,
            self.connectome.space,
            self.compute_t_map,
            self.t_thresholds,
            n_varies=bool(np.ptp(n)),
        )
        return replace(lesion, weights=None, results={self.name: maps})


def count_together(connectome: Connectome, subjects_in_memory: int) -> int:
    """Count the connectome subjects that are mapped together, of those in memory: the others are read ahead."""
    return min(subjects_in_memory - connectome.n_ahead(subjects_in_memory), kernels.GROUP)


def add_subjects(
    group: Sequence[ConnectomeSubject], rows: tuple[Array, Array, Array], moments: RunningMoments
) -> None:
    """Correlate some connectome subjects, up to `kernels.GROUP`, with the lesions, and add them to the moments.

    Parameters
    ----------
    rows
        The lesions, as from `compressed_rows`.
    """
    series, scale = [subject.series for subject in group], [subject.scale for subject in group]
    seeds = [kernels.seeds(*rows, subject.series, subject.scale, subject.sd) for subject in group]
    kernels.add_fisher_z(seeds, series, scale, moments.total, moments.total_of_squares)
    for subject_seeds, subject_scale in zip(seeds, scale, strict=True):
        moments.count_subject(np.any(subject_seeds, axis=1), subject_scale > 0)


def lesion_keys(lesions: Sequence[LesionData]) -> list[str]:
    """Name lesions so that a later run knows them again: by the mask's path, and its number where it comes again."""
    seen = Counter[str]()
    keys = []
    for lesion in lesions:
        key = str(lesion.mask.absolute()) if isinstance(lesion.mask, Path) else lesion.name
        seen[key] += 1
        keys.append(key if seen[key] == 1 else f"{key} ({seen[key]})")
    return keys


def weight_hashes(lesions: Sequence[LesionData]) -> dict[str, str]:
    """Give each lesion's key and the SHA-256 of its weights."""
    hashes = {}
    for key, lesion in zip(lesion_keys(lesions), lesions, strict=True):
        digest = hashlib.sha256()
        if lesion.weights:
            digest.update(lesion.weights.voxels.tobytes())
            digest.update(lesion.weights.shares.tobytes())
        hashes[key] = digest.hexdigest()
    return hashes


def compressed_rows(lesions: Sequence[LesionWeights]) -> tuple[Array, Array, Array]:
    """Lay the lesions' voxels and shares one after another, with each lesion's start."""
    starts = np.cumsum([0, *(len(lesion.voxels) for lesion in lesions)])
    voxels = np.concatenate([lesion.voxels for lesion in lesions])
    return starts, voxels, np.concatenate([lesion.shares for lesion in lesions])
