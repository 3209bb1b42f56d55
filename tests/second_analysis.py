"""Another analysis than the package's own: its accumulator is rows x rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from bids_lacuna.lesion import load_lesion
from bids_lacuna.mapping import FunctionalNetworkMapping


@dataclass
class SumOfCorrelations:
    """Sums of r between the seeds of all rows, over connectome subjects."""

    total: np.ndarray

    @property
    def nbytes(self):
        return self.total.nbytes

    def blocks(self):
        return [self.total]

    def merge(self, parts):
        for _, first, numbers in parts:
            self.total[first : first + len(numbers)] += numbers

    def restore(self, read, rows):
        self.total[:] = read(np.empty(read.shapes[0]))[np.ix_(rows, rows)]


class Correlations(dict):
    """The results of one lesion."""

    def keep(self):
        self["r"] = self["r"].copy()

    release = dict.clear


class SeedCorrelations:
    """Correlate the seed of each lesion with the seeds of all lesions of its batch, and average over subjects."""

    name = "SeedCorrelations"

    def __init__(self, path: Path) -> None:
        self.mapping = FunctionalNetworkMapping(path)
        self.connectome, self.options = self.mapping.connectome, self.mapping.options
        self.n_subjects, self.identity = self.connectome.n_subjects, {"connectome": self.connectome.content_hash}

    def footprint(self, n_rows):
        return replace(self.mapping.footprint(n_rows), accumulator_bytes=8 * n_rows, kept_bytes=8 * n_rows)

    def prepare(self, n_threads):
        """Nothing is compiled."""

    def opener(self):
        return partial(SeedCorrelations, self.connectome.path.absolute())

    def subjects(self, first, n_ahead, keep_cached=True):
        return self.connectome.subjects(n_ahead, keep_cached, first)

    def new_accumulator(self, rows):
        return SumOfCorrelations(np.zeros((len(rows), len(rows))))

    def add(self, subjects, rows, accumulator):
        for subject in subjects:
            series = subject.series * (subject.scale * subject.sd)[:, np.newaxis]
            ends = list(pairwise(rows.starts))
            accumulator.total += np.corrcoef([rows.weights[a:b] @ series[rows.voxels[a:b]] for a, b in ends])

    def load(self, lesion):
        return load_lesion(lesion, self.connectome.grid, self.connectome.space)

    def row(self, lesion):
        return lesion.weights

    def results(self, lesion, accumulator, row):
        return Correlations(r=accumulator.total[row] / self.n_subjects)
