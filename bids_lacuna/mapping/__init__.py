"""Analyses: what is computed for each lesion, and the protocols that passes know them by."""

from bids_lacuna.mapping.analysis import (
    Accumulator,
    Analysis,
    LesionAnalysis,
    NoResults,
    NoWorker,
    Part,
    Pass,
    PassStopped,
)
from bids_lacuna.mapping.functional import FunctionalNetworkMapping
from bids_lacuna.mapping.local import LocalPass
from bids_lacuna.mapping.maps import NetworkMaps
from bids_lacuna.mapping.summarizing import CELL_SIZE_MM, summarize
from bids_lacuna.mapping.summary import SIMILARITY_KEYS, Similarity, Summary

__all__ = [
    "CELL_SIZE_MM",
    "SIMILARITY_KEYS",
    "Accumulator",
    "Analysis",
    "FunctionalNetworkMapping",
    "LesionAnalysis",
    "LocalPass",
    "NetworkMaps",
    "NoResults",
    "NoWorker",
    "Part",
    "Pass",
    "PassStopped",
    "Similarity",
    "Summary",
    "summarize",
]
