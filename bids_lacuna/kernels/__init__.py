"""Kernels: the arithmetic for each connectome subject."""

from bids_lacuna.kernels.blas import single_threaded_blas
from bids_lacuna.kernels.cells import CELLS, add_degree, add_products, compile_for_cells, summarize_columns
from bids_lacuna.kernels.cpu import (
    GROUP,
    add_fisher_z,
    compile_for,
    distribute,
    quantize,
    seeds,
    seeds_and_norms,
    standardize,
    threads,
)
from bids_lacuna.kernels.nulls import (
    NULL_TILE,
    add_null_maps,
    add_sets,
    add_to_sets,
    chance_t,
    compile_for_nulls,
    map_seeds,
    variances,
)

__all__ = [
    "CELLS",
    "GROUP",
    "NULL_TILE",
    "add_degree",
    "add_fisher_z",
    "add_null_maps",
    "add_products",
    "add_sets",
    "add_to_sets",
    "chance_t",
    "compile_for",
    "compile_for_cells",
    "compile_for_nulls",
    "distribute",
    "map_seeds",
    "quantize",
    "seeds",
    "seeds_and_norms",
    "single_threaded_blas",
    "standardize",
    "summarize_columns",
    "threads",
    "variances",
]
