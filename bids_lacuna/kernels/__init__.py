"""Kernels: the arithmetic for each connectome subject."""

from bids_lacuna.kernels.blas import single_threaded_blas
from bids_lacuna.kernels.cpu import GROUP, add_fisher_z, compile_for, quantize, seeds, standardize, threads

__all__ = [
    "GROUP",
    "add_fisher_z",
    "compile_for",
    "quantize",
    "seeds",
    "single_threaded_blas",
    "standardize",
    "threads",
]
