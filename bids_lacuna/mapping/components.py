"""Leading eigenvectors of a large matrix that is known only by its products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray

SPARE = 5
"""Vectors in a block beyond those wanted: the gap to the next eigenvalue decides how fast the method converges."""

TOLERANCE = 1e-5
"""Largest norm of a residual, as a fraction of the largest eigenvalue."""

MOST_BLOCKS = 12
"""Largest number of blocks."""


def random_block(n: int, n_wanted: int) -> Array:
    """Return a block of vectors to start from, the same ones at each call: shape (n, up to n_wanted + SPARE)."""
    return np.random.default_rng(0).standard_normal((n, min(n, n_wanted + SPARE)))


def leading_eigenvectors(multiply: Callable[[Array], Array], start: Array, n_wanted: int) -> tuple[Array, Array]:
    """Compute the eigenvectors with the largest eigenvalues, by a block Krylov method.

    Parameters
    ----------
    multiply
        Multiplies a symmetric positive semidefinite matrix (n, n) by some vectors (n, k).
    start : shape (n, k)
        Vectors to start from, at least `n_wanted`.

    Returns
    -------
    values : shape (k,)
        Eigenvalues in descending order, of which the first `n_wanted` are exact up to `TOLERANCE`.
    vectors : shape (n, k)
        With norm 1.

    References
    ----------
    Musco and Musco (2015), Randomized block Krylov methods, arXiv:1504.05477; Rayleigh-Ritz as in Saad (2011),
    Numerical methods for large eigenvalue problems, 4.3.
    """
    block = np.linalg.qr(start)[0]
    basis, images = np.empty((len(block), 0)), np.empty((len(block), 0))
    for _ in range(MOST_BLOCKS):
        image = multiply(block)
        basis, images = np.hstack([basis, block]), np.hstack([images, image])
        small = basis.T @ images
        values, rotation = np.linalg.eigh((small + small.T) / 2)
        values, rotation = values[::-1], rotation[:, ::-1]
        wanted = rotation[:, :n_wanted]
        residuals = images @ wanted - basis @ wanted * values[:n_wanted]
        is_exact = np.linalg.norm(residuals, axis=0).max() <= TOLERANCE * abs(values[0])
        n_left = len(basis) - basis.shape[1]
        if is_exact or not n_left:
            break
        # Twice: once leaves a part of the basis behind that rounding has magnified.
        for _ in range(2):
            image = image - basis @ (basis.T @ image)
            image = np.linalg.qr(image)[0]
        block = image[:, :n_left]
    return values[: start.shape[1]], basis @ rotation[:, : start.shape[1]]
