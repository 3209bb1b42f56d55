"""Definition of functional lesion network mapping in NumPy and float64, written to be read, not to be fast.

`kernels` has fast versions of `standardize`, `quantize`, `seeds` and `add_fisher_z`; tests compare each pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import special

Array = np.ndarray

R_LIMIT = 1 - 1e-6
"""Limit to which correlations are clipped before arctanh, so that a voxel's z with itself is finite."""

CONSTANT_SEED = 1e-4
"""A seed is constant if its norm is below this fraction of the sum of its voxels' norms. Rounding of series that
cancel stays below it (float32: 1e-7, int16: up to 3e-5); an average over any real lesion is far above it: noise in
285,000 independent voxels gives 2e-3."""

INT16_MAX = 32767.0
"""Largest absolute value of a series in int16."""


def standardize(timeseries: Array, run_starts: Array | None = None) -> tuple[Array, Array, Array]:
    """Demean each BOLD run of each voxel's series and divide the whole by its norm.

    Parameters
    ----------
    timeseries : shape (n_timepoints, n_voxels)
        BOLD signal of one connectome subject, as stored, one run after another.
    run_starts : shape (n_runs + 1,)
        Start of each run, and the end of the last one; by default, there is one run.

    Returns
    -------
    series : shape (n_voxels, n_timepoints)
        Demeaned series with norm 1, one voxel per row.
    scale : shape (n_voxels,)
        Factor that makes the norm of `series` 1: 1 here.
    sd : shape (n_voxels,)
        Standard deviation of each series with demeaned runs, in stored units.

    All three are 0 where a series is constant in every run, or not finite.
    """
    runs = np.split(timeseries.T, [] if run_starts is None else run_starts[1:-1], axis=1)
    defined = np.isfinite(timeseries).all(axis=0)
    defined[defined] = np.any([np.ptp(run[defined], axis=1) > 0 for run in runs], axis=0)
    series = np.zeros(timeseries.T.shape)
    series[defined] = np.concatenate(
        [run[defined] - run[defined].mean(axis=1, keepdims=True, dtype=float) for run in runs], axis=1
    )
    norm = np.linalg.norm(series, axis=1)
    series[defined] /= norm[defined, np.newaxis]
    return series, defined.astype(float), norm / np.sqrt(len(timeseries))


def quantize(series: Array) -> tuple[Array, Array]:
    """Round each voxel's series to int16, scaled so that the largest value is ±INT16_MAX.

    Parameters
    ----------
    series : shape (n_voxels, n_timepoints)
        From `standardize`.

    Returns
    -------
    rounded : shape (n_voxels, n_timepoints), int16
    scale : shape (n_voxels,)
        Factor that makes the norm of a rounded series 1; 0 where the series is 0.
    """
    peak = np.abs(series).max(axis=1, keepdims=True)
    rounded = np.rint(np.divide(INT16_MAX * series, peak, out=np.zeros_like(series), where=peak > 0))
    norm = np.linalg.norm(rounded, axis=1)
    return rounded.astype(np.int16), np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)


def seeds(weights: Array, series: Array, scale: Array, sd: Array) -> Array:
    """Average the connectome subject's signal over each lesion.

    Parameters
    ----------
    weights : shape (n_lesions, n_voxels)
        Fraction of each voxel that the lesion covers.
    series, scale, sd
        From `standardize`. The average is that of the series as stored, so each is first scaled back to its standard
        deviation. The series are demeaned, and so is their average; series rotated in time
        (`connectome.compression`) need no demeaning.

    Returns
    -------
    shape (n_lesions, n_timepoints)
        Each lesion's seed with norm 1; 0 where the seed is constant.
    """
    n_timepoints = series.shape[1]
    to_stored_units = scale * sd * np.sqrt(n_timepoints)
    means = weights @ (series * to_stored_units[:, np.newaxis])
    norm = np.linalg.norm(means, axis=1)
    defined = norm > CONSTANT_SEED * (weights @ (sd * np.sqrt(n_timepoints)))
    return np.divide(means, norm[:, np.newaxis], out=np.zeros_like(means), where=defined[:, np.newaxis])


def correlate(seeds: Array, timeseries: Array) -> Array:
    """Correlate each lesion's seed with every voxel of one connectome subject.

    Parameters
    ----------
    seeds : shape (n_lesions, n_timepoints)
        Mean BOLD signal inside each lesion, arbitrary units.
    timeseries : shape (n_timepoints, n_voxels)
        BOLD signal.

    Returns
    -------
    shape (n_lesions, n_voxels)
        Pearson r in [-1, 1]; NaN where a voxel or a seed is constant or not finite.

    References
    ----------
    Boes et al. (2015), Brain 138:3061, doi:10.1093/brain/awv228.
    """
    voxel_series, voxel_scale, _ = standardize(timeseries)
    seed_series, seed_scale, _ = standardize(seeds.T)
    r = seed_series @ voxel_series.T
    r[seed_scale == 0, :] = np.nan
    r[:, voxel_scale == 0] = np.nan
    return np.clip(r, -1, 1)


def fisher_z(r: Array) -> Array:
    """Compute Fisher's z of correlations clipped to ±R_LIMIT; |z| is at most 7.2543."""
    return np.arctanh(np.clip(r, -R_LIMIT, R_LIMIT))


def add_fisher_z(
    seeds: Sequence[Array], series: Sequence[Array], scale: Sequence[Array], total: Array, total_of_squares: Array
) -> None:
    """Add some connectome subjects' Fisher z, and its square, to the running sums, in place.

    Parameters
    ----------
    seeds : arrays of shape (n_lesions, n_timepoints)
        Seeds of each subject from `seeds`, with norm 1, or 0 where constant.
    series, scale
        Each subject's series and scale from `standardize`. A constant seed or voxel has r = 0 and adds nothing.
    total, total_of_squares : shape (n_lesions, n_voxels)
        Sums of z and of z² over connectome subjects.
    """
    for subject_seeds, subject_series, subject_scale in zip(seeds, series, scale, strict=True):
        z = fisher_z(subject_seeds @ (subject_series * subject_scale[:, np.newaxis]).T)
        total += z
        total_of_squares += z**2


def map_lesions(weights: Array, connectome: Iterable[Array]) -> dict[str, Array]:
    """Map lesions onto a connectome, with every subject's z in memory.

    Parameters
    ----------
    weights : shape (n_lesions, n_voxels)
        Fraction of each voxel that the lesion covers.
    connectome
        Each subject's BOLD signal, shape (n_timepoints, n_voxels); n_timepoints may differ.

    Returns
    -------
    r, z, t, n : shape (n_lesions, n_voxels)
        tanh of the mean Fisher z; the mean z; the one-sample t of z over subjects with n - 1 degrees of
        freedom; the number of subjects with a defined correlation there. NaN where undefined.
    """
    each_z = []
    for timeseries in connectome:
        series, scale, sd = standardize(timeseries)
        seed = seeds(weights, series, scale, sd)
        z = fisher_z(seed @ series.T)
        z[~seed.any(axis=1), :] = np.nan
        z[:, scale == 0] = np.nan
        each_z.append(z)
    z = np.array(each_z)
    n = np.isfinite(z).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(z, axis=0) / n
        variance = np.nansum((z - mean) ** 2, axis=0) / (n - 1)
        t = mean / np.sqrt(variance / n)
    t[np.nanmax(z, axis=0, initial=-np.inf) == np.nanmin(z, axis=0, initial=np.inf)] = np.nan
    return {"r": np.tanh(mean), "z": mean, "t": t, "n": n}


def permutation_statistics(
    maps: Array, tested: Array, nuisance: Array, orders: Array, groups: Array | None = None
) -> Array:
    """Test a column of a general linear model in each permutation, by Freedman and Lane's method.

    Parameters
    ----------
    maps : shape (n_patients, n_voxels)
    tested : shape (n_patients,)
        Column that is tested.
    nuisance : shape (n_patients, n_columns)
        All other columns, with a constant.
    orders : shape (n_permutations, n_patients)
        The residual of patient i goes to row `orders[k, i]`.
    groups : shape (n_patients,), boolean
        Groups that may differ in their variance, for z of Aspin and Welch's v; without, Student's t. Residuals are
        then permuted in units of each group's standard deviation: one ratio of both groups' for all voxels, from the
        mean of each group's fraction of the variance.

    Returns
    -------
    shape (n_permutations, n_voxels)

    References
    ----------
    Winkler et al. (2014), NeuroImage 92:381, doi:10.1016/j.neuroimage.2014.01.060, with v as G of one contrast;
    Satterthwaite (1946), Biometrics Bull 2:110, for its degrees of freedom.
    """
    design = np.column_stack([tested, nuisance])
    forming = np.eye(len(tested)) - design @ np.linalg.pinv(design)
    parts = [np.ones(len(tested), dtype=bool)] if groups is None else [groups, ~groups]
    freedom = [np.trace(forming[np.ix_(rows, rows)]) for rows in parts]
    errors = forming @ maps
    spread = np.ones((len(tested), 1))
    for rows, degrees in zip(parts, freedom, strict=True):
        spread[rows] = np.sqrt(np.mean((errors[rows] ** 2).sum(axis=0) / degrees / (errors**2).sum(axis=0)))
    fitted = nuisance @ np.linalg.lstsq(nuisance / np.sqrt(spread), maps / np.sqrt(spread), rcond=None)[0]
    statistics = np.empty((len(orders), maps.shape[1]))
    for k, order in enumerate(orders):
        permuted = np.empty_like(fitted)
        permuted[order] = (maps - fitted) / spread
        permuted = fitted + spread * permuted
        coefficients = np.linalg.lstsq(design, permuted, rcond=None)[0]
        for voxel, error in enumerate((permuted - design @ coefficients).T):
            precisions = [
                degrees / (error[rows] @ error[rows]) * design[rows].T @ design[rows]
                for rows, degrees in zip(parts, freedom, strict=True)
            ]
            covariance = np.linalg.pinv(sum(precisions))
            statistics[k, voxel] = coefficients[0, voxel] / np.sqrt(covariance[0, 0])
            if groups is not None:
                fractions = [(covariance @ each @ covariance)[0, 0] / covariance[0, 0] for each in precisions]
                degrees = 1 / sum(fraction**2 / each for fraction, each in zip(fractions, freedom, strict=True))
                p = special.stdtr(degrees, -abs(statistics[k, voxel]))
                statistics[k, voxel] = -special.ndtri(p) * np.sign(statistics[k, voxel])
    return statistics


def leave_one_out(maps: Array, tested: Array, nuisance: Array) -> Array:
    """Correlate each patient's map with the effect map that is fitted without that patient.

    Parameters
    ----------
    maps : shape (n_patients, n_voxels)
    tested : shape (n_patients,)
        Column whose coefficient at each voxel is the effect map.
    nuisance : shape (n_patients, n_columns)
        All other columns, with a constant.

    Returns
    -------
    shape (n_patients,)
        Pearson r over voxels.
    """
    design = np.column_stack([tested, nuisance])
    similarity = []
    for patient in range(len(tested)):
        others = np.arange(len(tested)) != patient
        effect = np.linalg.lstsq(design[others], maps[others], rcond=None)[0][0]
        similarity.append(np.corrcoef(effect, maps[patient])[0, 1])
    return np.array(similarity)


def cell_covariances(cells: Array, connectome: Iterable[Array]) -> tuple[Array, Array]:
    """Average, over connectome subjects, the covariances of cells with voxels and with cells.

    A cell's series is the mean of its voxels' series as stored; one without a signal adds 0. Each subject's
    covariances are divided by g, the mean standard deviation of its cells, so that subjects weigh alike.

    Parameters
    ----------
    cells : shape (n_voxels,), integer
        Cell of each voxel.
    connectome
        As for `map_lesions`.

    Returns
    -------
    by_voxel : shape (n_cells, n_voxels)
        C, the mean of cov(c, v) / (g · sd(v)) over the subjects in which cell and voxel have a signal. 0 for a cell
        that has none in any subject; NaN where else no subject has a signal in both.
    by_cell : shape (n_cells, n_cells)
        S, the mean of cov(c, c') / g².
    """
    weights = (np.arange(cells.max() + 1)[:, np.newaxis] == cells).astype(float)
    sums_by_voxel, n_by_voxel = np.zeros((2, *weights.shape))
    sums_by_cell, n_by_cell = np.zeros((2, len(weights), len(weights)))
    for timeseries in connectome:
        series, scale, sd = standardize(timeseries)
        unit_cells = seeds(weights, series, scale, sd)
        defined = unit_cells.any(axis=1)
        means = weights @ (series * sd[:, np.newaxis]) / weights.sum(axis=1, keepdims=True)
        cell_series = means / np.linalg.norm(means[defined], axis=1).mean() if defined.any() else means
        cell_series[~defined] = 0
        sums_by_voxel += cell_series @ series.T
        sums_by_cell += cell_series @ cell_series.T
        n_by_voxel += np.outer(defined, scale > 0)
        n_by_cell += np.outer(defined, defined)
    with np.errstate(invalid="ignore"):
        by_voxel, by_cell = sums_by_voxel / n_by_voxel, sums_by_cell / n_by_cell
    silent = np.diag(n_by_cell) == 0
    by_voxel[silent], by_cell[silent], by_cell[:, silent] = 0, 0, 0
    return by_voxel, by_cell


def degree(connectome: Iterable[Array]) -> Array:
    """Compute each voxel's mean r with all other voxels, and average it over connectome subjects.

    Returns
    -------
    shape (n_voxels,)
        The mean over subjects in which the voxel has a signal; NaN if there is none.
    """
    means = []
    for timeseries in connectome:
        series, scale, _ = standardize(timeseries)
        n_others = max(1, np.count_nonzero(scale) - 1)
        # r of all pairs at once: each series has norm 1, and its r with itself is 1.
        means.append(np.where(scale > 0, (series @ series.sum(axis=0) - 1) / n_others, np.nan))
    n = np.isfinite(means).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.nansum(means, axis=0) / n


def cell_correlations(by_voxel: Array, by_cell: Array) -> Array:
    """Return the approximate r of the cells that have a signal with all voxels: shape (n, n_voxels)."""
    variance = np.diag(by_cell)
    has_signal = variance > 0
    return by_voxel[has_signal] / np.sqrt(variance[has_signal, np.newaxis])


def absolute_degree(by_voxel: Array, by_cell: Array, counts: Array) -> Array:
    """Compute each voxel's mean |z| with all cells, each weighted by its number of voxels.

    Parameters
    ----------
    by_voxel, by_cell
        From `cell_covariances`.
    counts : shape (n_cells,)
        Number of voxels of each cell.

    Returns
    -------
    shape (n_voxels,)
    """
    weights = counts[np.diag(by_cell) > 0]
    return weights @ np.abs(fisher_z(cell_correlations(by_voxel, by_cell))) / weights.sum()


def principal_components(by_voxel: Array, by_cell: Array, degree: Array) -> tuple[Array, Array]:
    """Compute the first three principal components of the cells' r: cells weigh alike, voxels are centred.

    Parameters
    ----------
    by_voxel, by_cell
        From `cell_covariances`.
    degree : shape (n_voxels,)
        Each component's sign makes its correlation with degree positive.

    Returns
    -------
    components : shape (3, n_voxels)
        With norm 1; NaN where r with any cell is undefined, and in a component without variance.
    fractions : shape (3,)
        Fraction of the variance of each.
    """
    r = cell_correlations(by_voxel, by_cell)
    defined = np.isfinite(r).all(axis=0)
    centred = r[:, defined] - r[:, defined].mean(axis=0)
    _, singular_values, rows = np.linalg.svd(centred, full_matrices=False)
    components = np.full((3, len(defined)), np.nan)
    fractions = np.zeros(3)
    for number in range(min(3, len(rows), len(r) - 1)):
        sign = 1 if (degree[defined] - degree[defined].mean()) @ rows[number] >= 0 else -1
        components[number, defined] = sign * rows[number]
        fractions[number] = singular_values[number] ** 2 / (singular_values**2).sum()
    return components, fractions


def approximate(weights: Array, cells: Array, by_voxel: Array, by_cell: Array) -> Array:
    """Approximate a lesion's mean Fisher z from the covariances of cells.

    Parameters
    ----------
    weights : shape (n_voxels,)
        Fraction of each voxel that the lesion covers.
    cells, by_voxel, by_cell
        As for `cell_covariances`, and from it.

    Returns
    -------
    shape (n_voxels,)
        arctanh of wᵀC / √(wᵀSw), where w has the sum of the weights of each cell's voxels; NaN where undefined.
    """
    of_cells = np.bincount(cells, weights, minlength=len(by_cell))
    variance = of_cells @ by_cell @ of_cells
    if not variance > 0:
        return np.full(by_voxel.shape[1], np.nan)
    touched = of_cells > 0
    return fisher_z(of_cells[touched] @ by_voxel[touched] / np.sqrt(variance))


def null_t(own: Array, nulls: Array) -> Array:
    """Compare a lesion's map with those of its null lesions.

    Parameters
    ----------
    own : shape (n_voxels,)
        Approximate z; NaN in the voxels that the map leaves out.
    nulls : shape (n_nulls, n_voxels)
        Those of the null lesions, in the same way.

    Returns
    -------
    shape (n_voxels,)
        z minus the nulls' mean, in standard deviations of the nulls; NaN where fewer than half of them are defined.
    """
    t = np.full(len(own), np.nan)
    for voxel, values in enumerate(nulls.T):
        defined = values[np.isfinite(values)]
        if 2 * len(defined) >= len(values) and np.ptp(defined) > 0:
            t[voxel] = (own[voxel] - defined.mean()) / defined.std(ddof=1)
    return t


def chance_test(maps: Array) -> tuple[Array, Array, Array]:
    """Test the mean map of some lesions against sets of null lesions: one at a chance place for each lesion.

    Parameters
    ----------
    maps : shape (1 + n_sets, n_lesions, n_voxels)
        Approximate z of the lesions, and of each set; NaN in the voxels that a map leaves out.

    Returns
    -------
    effect, t, p : shape (n_voxels,)
        The lesions' mean minus that of all sets, in z and in standard deviations of the sets; and the two-sided p of
        t by the largest |t| of each set, which is compared with all others in the same way. A set's mean needs half
        of the lesions, a voxel half of the sets.
    """
    n = np.isfinite(maps).sum(axis=1)
    means = np.divide(np.nansum(maps, axis=1), n, where=2 * n >= maps.shape[1], out=np.full(n.shape, np.nan))
    effects, t = np.full((2, *means.shape), np.nan)
    tested = 2 * np.isfinite(means).sum(axis=0) >= len(means)
    for number, mean in enumerate(means[:, tested]):
        others = np.delete(means[:, tested], number, axis=0)
        k = np.isfinite(others).sum(axis=0)
        effects[number, tested] = mean - np.nansum(others, axis=0) / k
        variance = np.nansum((others - np.nansum(others, axis=0) / k) ** 2, axis=0) / (k - 1)
        t[number, tested] = effects[number, tested] / np.sqrt(variance)
    largest = np.nanmax(np.abs(t[1:]), axis=1, initial=0)
    n_reached = (largest[:, np.newaxis] >= np.abs(t[0])).sum(axis=0)
    return effects[0], t[0], np.where(np.isfinite(t[0]), (n_reached + 1) / (len(largest) + 1), np.nan)
