"""Numba kernels of null lesions: sparse products of seeds with a connectome's summary, in tiles of voxels.

`approximate`, `null_t` and `chance_test` in `reference` define what they are for. A tile of voxels is the work of one
thread, seed by seed, and sums over tiles are added in the order of tiles: results are bit-identical whatever the
number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from bids_lacuna.kernels.compiled import cached_njit
from bids_lacuna.kernels.cpu import CONTRACT, PIECES_PER_THREAD, distribute, fisher_z

Array = np.ndarray
Seeds = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Places = tuple[np.ndarray, np.ndarray, np.ndarray]
Voxels = tuple[np.ndarray, np.ndarray, np.ndarray]

NULL_TILE = 256
"""Number of voxels in one piece of work: their columns are copied into the cache, 1 KB for each cell. The operator's
blocks are multiples of it."""

TOGETHER = 8
"""Number of cells added at a time: more sums per access to a voxel's z."""


def variances(starts: Array, cells: Array, weights: Array, covariance: Array) -> Array:
    """Compute each seed's variance wᵀSw.

    Parameters
    ----------
    starts : shape (n_seeds + 1,), int64
        Start of each seed in `cells` and `weights`, and the end of the last one (compressed sparse rows).
    cells, weights : shape (total number of the seeds' cells,), int32 and float32
        Cells that each seed touches, ascending, and the sum of its weights in each.
    covariance : shape (n_cells, n_cells)
        S of the summary.

    Returns
    -------
    shape (n_seeds,), float64
    """
    sums = np.zeros(len(starts) - 1)

    def work(first: int, last: int) -> None:
        sum_variances(starts[first : last + 1], cells, weights, covariance, sums[first:last])

    distribute(work, len(sums), PIECES_PER_THREAD)
    return sums


@cached_njit(nogil=True, error_model="numpy")
def sum_variances(starts: Array, cells: Array, weights: Array, covariance: Array, sums: Array) -> None:
    """Compute some seeds' variances."""
    for seed in range(len(sums)):
        for i in range(starts[seed], starts[seed + 1]):
            row = covariance[cells[i]]
            # S is symmetric: half of the diagonal, and what is below it, twice.
            half = 0.5 * np.float64(weights[i]) * np.float64(row[cells[i]])
            for j in range(starts[seed], i):
                half += np.float64(weights[j]) * np.float64(row[cells[j]])
            sums[seed] += 2.0 * np.float64(weights[i]) * half


def add_null_maps(
    operator: Array,
    seeds: Seeds,
    places: Places,
    voxels: Voxels,
    measures: Array,
    moments: tuple[Array, Array, Array],
    own: tuple[Array, Array],
) -> tuple[Array, Array, Array, Array]:
    """Map a lesion at its own and at other places, and add the null maps to the sums of a block of voxels.

    Parameters
    ----------
    operator : shape (n_cells, n_voxels), float32
        C of the summary, for a block of voxels.
    seeds
        `starts`, `cells`, `weights` as for `variances`, and `scale`: shape (n_seeds,), float32, what makes wᵀC a
        correlation. The first seed is the lesion at its own place; the others are its nulls.
    places
        What each map leaves out besides the voxels of all cells that its seed touches. `corners`: shape (n_seeds, 3),
        int32, index of the first voxel of `near`; `near`: shape (x, y, z), boolean, voxels to be left out; `reach`:
        shape (n_seeds, 2), int32, first and last index along the first axis of all that a map leaves out.
    voxels
        `positions`: shape (n_voxels, 3), int32, indices of the block's voxels in the volume, in C order; `cell_of`:
        shape (n_voxels,), int32; `usable`: shape (n_voxels,), boolean, False where C is undefined.
    measures : shape (n_measures, n_voxels), float32
        Maps with which each null map is compared: the first is 1, and all are 0 in voxels that are not usable.
    moments
        Over the null maps, shape (n_voxels,) each, changed in place: number of maps, int32, sums of z and of z²,
        float64.
    own
        At its own place, shape (n_voxels,) each, changed in place: z, float32, and whether the map keeps the voxel.

    Returns
    -------
    products : shape (n_seeds, 1 + n_measures), float64
        Sums over each map's voxels of z², and of z times each measure.
    left_out : shape (n_seeds, n_measures, n_measures), float64
        Sums of products of measures over the usable voxels that each map leaves out; above the diagonal, 0.
    peak : shape (n_seeds,), float32
        Largest z of each map in this block; -inf if the map keeps no voxel.
    peak_voxel : shape (n_seeds,), int64
        Its voxel in the block.
    """
    n_seeds, n_measures = len(seeds[0]) - 1, len(measures)
    n_tiles = math.ceil(operator.shape[1] / NULL_TILE)
    products = np.zeros((n_tiles, n_seeds, 1 + n_measures))
    left_out = np.zeros((n_tiles, n_seeds, n_measures, n_measures))
    peaks = np.full((n_tiles, n_seeds), -np.inf, np.float32)
    peak_voxels = np.zeros((n_tiles, n_seeds), np.int64)

    def work(first: int, last: int) -> None:
        for tile in range(first, last):
            start, stop = tile * NULL_TILE, min((tile + 1) * NULL_TILE, operator.shape[1])
            z = np.zeros((n_seeds, stop - start), np.float32)
            map_tile(operator[:, start:stop].copy(), *seeds, z)
            own[0][start:stop] = z[0]
            leave_out(z, *seeds[:2], *places, *(each[start:stop] for each in voxels), len(operator))
            own[1][start:stop] = ~np.isnan(z[0])
            add_tile(
                z, measures[:, start:stop].copy(), *(each[start:stop] for each in moments), products[tile],
                left_out[tile], peaks[tile], peak_voxels[tile],
            )  # fmt: skip
            peak_voxels[tile] += start

    distribute(work, n_tiles, PIECES_PER_THREAD)
    highest = peaks.argmax(axis=0), np.arange(n_seeds)
    return products.sum(axis=0), left_out.sum(axis=0), peaks[highest], peak_voxels[highest]


@cached_njit(nogil=True, error_model="numpy")
def add_tile(
    z: Array,
    measures: Array,
    n: Array,
    total: Array,
    squares: Array,
    products: Array,
    left_out: Array,
    peak: Array,
    peak_voxel: Array,
) -> None:
    """Add the maps in one tile of `add_null_maps`."""
    for seed in range(len(z)):
        if seed > 0:
            add_moments(z[seed], n, total, squares)
        compare(z[seed], measures, products[seed], left_out[seed])
        highest = find_highest(z[seed])
        if highest >= 0:
            peak[seed], peak_voxel[seed] = z[seed, highest], highest


@cached_njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def map_tile(tile: Array, starts: Array, cells: Array, weights: Array, scale: Array, z: Array) -> None:
    """Compute the z of all seeds in a tile of voxels; `z` is 0 before."""
    w = np.zeros(TOGETHER, dtype=np.float32)
    for seed in range(len(scale)):
        last = starts[seed + 1] - 1
        for i in range(starts[seed], last + 1, TOGETHER):
            for j in range(TOGETHER):
                # Beyond the last cell, the weight is 0.
                w[j] = weights[i + j] if i + j <= last else np.float32(0)
            add_cells(
                w,
                tile[cells[i]],
                tile[cells[min(i + 1, last)]],
                tile[cells[min(i + 2, last)]],
                tile[cells[min(i + 3, last)]],
                tile[cells[min(i + 4, last)]],
                tile[cells[min(i + 5, last)]],
                tile[cells[min(i + 6, last)]],
                tile[cells[min(i + 7, last)]],
                z[seed],
            )
        scale_to_z(z[seed], scale[seed])


@cached_njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def add_cells(
    w: Array, a: Array, b: Array, c: Array, d: Array, e: Array, f: Array, g: Array, h: Array, total: Array
) -> None:
    """Add eight weighted cells to a seed; as separate arguments, each is known to be contiguous."""
    w0, w1, w2, w3, w4, w5, w6, w7 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
    for v in range(len(total)):
        total[v] += w0 * a[v] + w1 * b[v] + w2 * c[v] + w3 * d[v] + w4 * e[v] + w5 * f[v] + w6 * g[v] + w7 * h[v]


@cached_njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def scale_to_z(products: Array, scale: np.float32) -> None:
    """Convert a seed's products to Fisher z, in place; NaN stays."""
    for v in range(len(products)):
        r = products[v] * scale
        products[v] = fisher_z(r) if r == r else np.float32(np.nan)


@cached_njit(nogil=True, error_model="numpy")
def leave_out(
    z: Array,
    starts: Array,
    cells: Array,
    corners: Array,
    near: Array,
    reach: Array,
    positions: Array,
    cell_of: Array,
    usable: Array,
    n_cells: int,
) -> None:
    """Set z to NaN in the voxels of a tile that each map leaves out."""
    all_usable = usable.all()
    touched = np.zeros(n_cells, dtype=np.bool_)
    for seed in range(len(z)):
        if not all_usable:
            for v in range(len(positions)):
                if not usable[v]:
                    z[seed, v] = np.nan
        # Most tiles lie far from a seed.
        if positions[-1, 0] < reach[seed, 0] or positions[0, 0] > reach[seed, 1]:
            continue
        for i in range(starts[seed], starts[seed + 1]):
            touched[cells[i]] = True
        for v in range(len(positions)):
            x = positions[v, 0] - corners[seed, 0]
            y = positions[v, 1] - corners[seed, 1]
            k = positions[v, 2] - corners[seed, 2]
            is_in_box = 0 <= x < near.shape[0] and 0 <= y < near.shape[1] and 0 <= k < near.shape[2]
            if touched[cell_of[v]] or (is_in_box and near[x, y, k]):
                z[seed, v] = np.nan
        for i in range(starts[seed], starts[seed + 1]):
            touched[cells[i]] = False


@cached_njit(nogil=True, error_model="numpy")
def add_moments(z: Array, n: Array, total: Array, squares: Array) -> None:
    """Add one map to the sums over maps, where it is not NaN."""
    for v in range(len(z)):
        kept = z[v] == z[v]
        value = np.float64(z[v]) if kept else 0.0
        n[v] += np.int32(kept)
        total[v] += value
        squares[v] += value * value


@cached_njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
def compare(z: Array, measures: Array, products: Array, left_out: Array) -> None:
    """Add a map's products with the measures, and the measures' own in the voxels that it leaves out.

    Products are summed in float32 within a tile, in which rounding is far below the differences between maps.
    """
    values = np.zeros(len(z), dtype=np.float32)
    n_kept = 0
    for v in range(len(z)):
        kept = z[v] == z[v]
        n_kept += int(kept)
        values[v] = z[v] if kept else np.float32(0)
    products[0] += dot(values, values)
    for measure in range(len(measures)):
        products[1 + measure] += dot(values, measures[measure])
    if n_kept < len(z):
        for v in range(len(z)):
            if z[v] != z[v]:
                for a in range(len(measures)):
                    for b in range(a + 1):
                        left_out[a, b] += np.float64(measures[a, v]) * np.float64(measures[b, v])


@cached_njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
def dot(a: Array, b: Array) -> np.float32:
    """Return the product of two rows."""
    product = np.float32(0)
    for v in range(len(a)):
        product += a[v] * b[v]
    return product


@cached_njit(nogil=True, error_model="numpy")
def find_highest(z: Array) -> int:
    """Return the first voxel with the largest z; -1 if all are NaN."""
    highest = np.float32(-np.inf)
    for v in range(len(z)):
        highest = z[v] if z[v] > highest else highest
    for v in range(len(z)):
        if z[v] == highest:
            return v
    return -1


def map_seeds(operator: Array, seeds: Seeds, places: Places, voxels: Voxels) -> Array:
    """Map a lesion at all places in a tile of voxels, on the calling thread.

    Parameters
    ----------
    operator, seeds, places, voxels
        As for `add_null_maps`.

    Returns
    -------
    shape (n_seeds, n_voxels), float32
        Approximate z; NaN in the voxels that each map leaves out.
    """
    z = np.zeros((len(seeds[0]) - 1, operator.shape[1]), np.float32)
    map_tile(operator.copy(), *seeds, z)
    leave_out(z, *seeds[:2], *places, *voxels, len(operator))
    return z


def add_to_sets(
    operator: Array, seeds: Seeds, places: Places, voxels: Voxels, sets: Array, total: Array, n: Array
) -> None:
    """Map a lesion at all places, and add each set's map to the sums over lesions, in place.

    Parameters
    ----------
    operator, seeds, places, voxels
        As for `add_null_maps`.
    sets : shape (n_sets,), int32
        The lesion's seed in each set; the first set is the observed one.
    total : shape (n_sets, n_voxels), float32
        Sums of z over lesions.
    n : shape (n_sets, n_voxels), uint16
        Number of lesions whose maps keep the voxel.
    """
    positions, cell_of, usable = voxels

    def work(first: int, last: int) -> None:
        for start in range(first * NULL_TILE, last * NULL_TILE, NULL_TILE):
            stop = min(start + NULL_TILE, operator.shape[1])
            tile = positions[start:stop], cell_of[start:stop], usable[start:stop]
            z = map_seeds(operator[:, start:stop], seeds, places, tile)
            add_sets(z, sets, total[:, start:stop], n[:, start:stop])

    distribute(work, math.ceil(operator.shape[1] / NULL_TILE), PIECES_PER_THREAD)


@cached_njit(nogil=True, error_model="numpy")
def add_sets(z: Array, sets: Array, total: Array, n: Array) -> None:
    """Add to each set's sums the map of one seed, where it is not NaN."""
    for number in range(len(sets)):
        row, sums, counts = z[sets[number]], total[number], n[number]
        for v in range(len(row)):
            kept = row[v] == row[v]
            sums[v] += row[v] if kept else np.float32(0)
            counts[v] += np.uint16(kept)


def chance_t(total: Array, n: Array, fewest_lesions: int) -> tuple[Array, Array, Array]:
    """Compare each set of seeds with all other sets, and find the largest |T| of each.

    T is (mean z - m) / s: m and s are mean and standard deviation over the other sets where the voxel is defined.

    Parameters
    ----------
    total, n
        From `add_to_sets`, for some voxels.
    fewest_lesions
        Number of lesions that a set's mean needs.

    Returns
    -------
    effect : shape (n_voxels,), float64
        The first set's mean z minus the mean over the other sets.
    t : shape (n_voxels,), float64
        T of the first set. Both are NaN where its mean is undefined, where half of all sets' are, or where s is 0.
    largest : shape (n_sets,), float64
        Largest |T| of each set over these voxels; 0 if none is defined.
    """
    n_tiles = math.ceil(total.shape[1] / NULL_TILE)
    effect, t = np.full((2, total.shape[1]), np.nan)
    largest = np.zeros((n_tiles, len(total)))

    def work(first: int, last: int) -> None:
        for tile in range(first, last):
            voxels = slice(tile * NULL_TILE, (tile + 1) * NULL_TILE)
            compare_sets(total[:, voxels], n[:, voxels], fewest_lesions, effect[voxels], t[voxels], largest[tile])

    distribute(work, n_tiles, PIECES_PER_THREAD)
    return effect, t, largest.max(axis=0, initial=0)


@cached_njit(nogil=True, error_model="numpy")
def compare_sets(total: Array, n: Array, fewest: int, effect: Array, t: Array, largest: Array) -> None:
    """Compute one tile of `chance_t`."""
    n_sets, n_voxels = total.shape
    n_defined, mean, squares = np.zeros(n_voxels), np.zeros(n_voxels), np.zeros(n_voxels)
    for number in range(n_sets):
        for v in range(n_voxels):
            if n[number, v] >= fewest:
                n_defined[v] += 1
                mean[v] += np.float64(total[number, v]) / n[number, v]
    for v in range(n_voxels):
        mean[v] = mean[v] / n_defined[v] if 2 * n_defined[v] >= n_sets and n_defined[v] >= 3 else np.nan
    for number in range(n_sets):
        for v in range(n_voxels):
            if n[number, v] >= fewest:
                squares[v] += (np.float64(total[number, v]) / n[number, v] - mean[v]) ** 2
    for number in range(n_sets):
        for v in range(n_voxels):
            if n[number, v] >= fewest:
                # The others' mean is -difference / (k - 1) from the mean of all k, so this is the leave-one-out T.
                k = n_defined[v]
                difference = np.float64(total[number, v]) / n[number, v] - mean[v]
                from_others = difference * k / (k - 1)
                of_others = (squares[v] - difference * from_others) / (k - 2)
                value = from_others / math.sqrt(of_others) if of_others > 0 else np.nan
                if number == 0:
                    effect[v], t[v] = from_others, value
                if abs(value) > largest[number]:
                    largest[number] = abs(value)


def compile_for_nulls() -> None:
    """Compile the kernels of null lesions, or load them from the cache."""
    n_voxels = NULL_TILE + 1
    ones = np.ones(n_voxels, np.float32)
    covariance = np.eye(2, dtype=np.float32)
    # As where it is mapped into memory.
    covariance.flags.writeable = False
    starts, cells = np.arange(3), np.arange(2, dtype=np.int32)
    variances(starts, cells, ones[:2], covariance)
    corners, reach = np.zeros((2, 3), np.int32), np.zeros((2, 2), np.int32)
    seeds, places = (starts, cells, ones[:2], ones[:2]), (corners, np.zeros((1, 1, 1), bool), reach)
    voxels = np.zeros((n_voxels, 3), np.int32), np.zeros(n_voxels, np.int32), np.ones(n_voxels, bool)
    moments = np.zeros(n_voxels, np.int32), np.zeros(n_voxels), np.zeros(n_voxels)
    operator, own = np.stack([ones, ones]), (np.zeros(n_voxels, np.float32), np.zeros(n_voxels, bool))
    add_null_maps(operator, seeds, places, voxels, operator, moments, own)
    total, n = np.zeros((3, n_voxels), np.float32), np.zeros((3, n_voxels), np.uint16)
    add_to_sets(operator, seeds, places, voxels, np.zeros(3, np.int32), total, n)
    chance_t(total, n, 1)
