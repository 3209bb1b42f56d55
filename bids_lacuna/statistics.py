"""Statistics of Fisher z over connectome subjects: z, r, t, p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

Array = np.ndarray

BLOCK_VOXELS = 2**13
"""Voxels whose statistics are computed at a time: the intermediate values stay in the processor's cache."""

BIN_BITS = 16
"""Low bits of a float32 that its bin of |t| leaves out: 128 bins for each power of two."""

P_ROUNDING = 1e-4
"""Relative error of p up to which the bounds of a bin's p hold: -log10 p is rounded to float32."""


@dataclass(frozen=True, eq=False)
class LesionStatistics:
    """Statistics of one lesion at each voxel; NaN where undefined."""

    z: Array
    """Shape (n_voxels,), float32: mean Fisher z over connectome subjects."""
    t: Array
    """Shape (n_voxels,), float32: one-sample t of z over connectome subjects."""
    n: Array
    """Shape (n_voxels,), int32: connectome subjects with a defined correlation."""

    @property
    def r(self) -> Array:
        """Shape (n_voxels,), float32: tanh of the mean Fisher z, the r-map."""
        return np.tanh(self.z)

    @property
    def n_subjects(self) -> int:
        """Largest n of all voxels, from which the degrees of freedom follow."""
        return int(self.n.max(initial=0))


def of_sums(total: Array, total_of_squares: Array, n: Array) -> LesionStatistics:
    """Compute one lesion's statistics from its sums over connectome subjects.

    t is NaN where n < 2, or where z is constant over subjects: where its spread is below the rounding error of the
    sums, n times the epsilon of float64 (for n = 1000, a standard deviation of half a millionth of the mean).

    Parameters
    ----------
    total, total_of_squares : shape (n_voxels,), float64
        Σ z and Σ z².
    n : shape (n_voxels,), int32
        Connectome subjects with a defined correlation.
    """
    z, t = np.empty(n.shape, np.float32), np.empty(n.shape, np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, len(n), BLOCK_VOXELS):
            block = slice(start, start + BLOCK_VOXELS)
            z[block], t[block] = _mean_and_t(total[block], total_of_squares[block], n[block])
    return LesionStatistics(z, t, n)


def _mean_and_t(total: Array, total_of_squares: Array, n: Array) -> tuple[Array, Array]:
    mean = total / n
    spread = total_of_squares - total * mean
    spread[spread <= n * np.finfo(float).eps * total_of_squares] = np.nan
    return mean, mean / np.sqrt(spread / (n - 1) / n)


def minus_log10_p(t: Array, n: Array) -> Array:
    """Compute the two-sided p of a one-sample t with n - 1 degrees of freedom, as -log10 p, without underflow.

    Parameters
    ----------
    t, n : shape (n_voxels,)

    Returns
    -------
    shape (n_voxels,), float32
        NaN where t is NaN.
    """
    log_p = np.full(t.shape, np.nan)
    defined = np.isfinite(t)
    size, df = np.abs(t[defined]).astype(float), n[defined] - 1.0
    # Not scipy.stats: its import would take a fifth of the program's start.
    with np.errstate(divide="ignore"):
        tail = np.log(special.stdtr(df, -size))
    # The logarithm is -inf where the tail is below the smallest float.
    lost = np.isinf(tail)
    tail[lost] = _log_tail_of_t(size[lost], df[lost])
    log_p[defined] = tail + np.log(2)
    # Adding 0 turns the -0 of t = 0 into 0.
    return (-log_p / np.log(10) + 0).astype(np.float32)


def _log_tail_of_t(t: Array, df: Array) -> Array:
    """Compute log P(T > t) for large t: half the incomplete beta function, by its series (DLMF 8.17.8)."""
    x = df / (df + t**2)
    series = special.hyp2f1(df / 2 + 0.5, 1, df / 2 + 1, x)
    log_beta = np.log(df / 2) + special.betaln(df / 2, 0.5)
    return df / 2 * np.log(x) + 0.5 * np.log1p(-x) - log_beta + np.log(series / 2)


def fdr_threshold(t: Array, n: Array, q: float = 0.05) -> float:
    """Return the smallest |t| that is significant at false discovery rate q over the defined voxels.

    The procedure is that of Benjamini and Hochberg (1995). Among voxels with the same n, p decreases with |t|: p at
    the edges of narrow bins of |t| decides all bins but a few, and p is computed only for the voxels in those.

    Parameters
    ----------
    t : shape (n_voxels,), float32
    n : shape (n_voxels,), integer
        Connectome subjects of each voxel.

    Returns
    -------
    float
        NaN if no voxel is significant.
    """
    defined = np.isfinite(t)
    sizes, n = np.abs(t[defined]).astype(np.float32, copy=False), n[defined]
    if not len(sizes):
        return float("nan")
    sure_from, possible_from = _bracket(sizes, n, q)
    is_sure = sizes >= sure_from[n]
    close = ~is_sure & (sizes >= possible_from[n])
    smallest = sizes[is_sure].min(initial=np.inf)
    close_sizes, p = sizes[close], _two_sided_p(sizes[close], n[close])
    ranked = np.sort(p)
    ranks = np.count_nonzero(is_sure) + np.arange(1, len(p) + 1)
    below = np.flatnonzero(ranked <= q * ranks / len(sizes))
    if len(below):
        smallest = min(smallest, close_sizes[p <= ranked[below[-1]]].min())
    return float(smallest) if np.isfinite(smallest) else float("nan")


def _two_sided_p(sizes: Array, n: Array) -> Array:
    return 10.0 ** -minus_log10_p(sizes, n).astype(float)


def _bracket(sizes: Array, n: Array, q: float) -> tuple[Array, Array]:
    """Bound the |t| from which voxels are significant, for each n.

    Parameters
    ----------
    sizes, n : shape (n_voxels,)
        Finite |t|, float32, and connectome subjects.

    Returns
    -------
    sure_from, possible_from : shape (n.max() + 1,), float32
        Voxels with at least the first |t| are significant, voxels below the second one are not.
    """
    keys, counts = np.unique(
        n.astype(np.int64) << 32 | sizes.view(np.int32) >> BIN_BITS << BIN_BITS, return_counts=True
    )
    n_of_bin, lowest = (keys >> 32).astype(n.dtype), keys.astype(np.int32)
    smallest, largest = lowest.view(np.float32), (lowest | (1 << BIN_BITS) - 1).view(np.float32)
    p_at_most = _two_sided_p(smallest, n_of_bin) * (1 + P_ROUNDING)
    p_at_least = _two_sided_p(largest, n_of_bin) * (1 - P_ROUNDING)
    from_sizes = np.full((2, n.max() + 1), np.inf, np.float32)
    for smallest_size, p in zip(from_sizes, (p_at_most, p_at_least), strict=True):
        significant = p <= q * _step_up(p, counts, q) / len(sizes)
        np.minimum.at(smallest_size, n_of_bin[significant], smallest[significant])
    return from_sizes[0], from_sizes[1]


def _step_up(p: Array, counts: Array, q: float) -> int:
    """Return the number of significant voxels where groups of voxels have the same p."""
    order = np.argsort(p)
    ranks = np.cumsum(counts[order])
    return int(ranks[p[order] <= q * ranks / ranks[-1]].max(initial=0))
