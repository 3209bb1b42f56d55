"""Statistics of Fisher z over connectome subjects: z, r, t, p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

Array = np.ndarray


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
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        spread = total_of_squares - total * mean
        spread[spread <= n * np.finfo(float).eps * total_of_squares] = np.nan
        t = mean / np.sqrt(spread / (n - 1) / n)
    return LesionStatistics(mean.astype(np.float32), t.astype(np.float32), n)


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

    The procedure is that of Benjamini and Hochberg (1995).

    Returns
    -------
    float
        NaN if no voxel is significant.
    """
    defined = np.isfinite(t)
    if not defined.any():
        return float("nan")
    sizes = np.abs(t[defined])
    p = 10.0 ** -minus_log10_p(sizes, n[defined]).astype(float)
    ranked = np.sort(p)
    below = np.flatnonzero(ranked <= q * np.arange(1, len(p) + 1) / len(p))
    return float(sizes[p <= ranked[below[-1]]].min()) if len(below) else float("nan")
