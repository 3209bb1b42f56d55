"""The maps as a BIDS derivative dataset."""

from bids_lacuna.derivatives.dataset import DATASET_FILES, clean_after, prepare_dataset, read_description
from bids_lacuna.derivatives.history import NO_MASK, OUTCOMES, Outcome, Run, read_outcomes
from bids_lacuna.derivatives.names import (
    FIGURES,
    GROUP_DICTIONARY,
    GROUP_PAGE,
    GROUP_TABLE,
    LOWEST_WEIGHT,
    SIMILARITY,
    TARGETS,
    TRANSFORMS,
    WITHOUT_NULLS,
    find_lesion,
    group_folder,
    lesion_path,
    map_path,
    null_map_path,
    number_label,
    sidecar_path,
)
from bids_lacuna.derivatives.records import LesionRecord, claim_pending, decide, file_hash
from bids_lacuna.derivatives.writer import DerivativesWriter

__all__ = [
    "DATASET_FILES",
    "FIGURES",
    "GROUP_DICTIONARY",
    "GROUP_PAGE",
    "GROUP_TABLE",
    "LOWEST_WEIGHT",
    "NO_MASK",
    "OUTCOMES",
    "SIMILARITY",
    "TARGETS",
    "TRANSFORMS",
    "WITHOUT_NULLS",
    "DerivativesWriter",
    "LesionRecord",
    "Outcome",
    "Run",
    "claim_pending",
    "clean_after",
    "decide",
    "file_hash",
    "find_lesion",
    "group_folder",
    "lesion_path",
    "map_path",
    "null_map_path",
    "number_label",
    "prepare_dataset",
    "read_description",
    "read_outcomes",
    "sidecar_path",
]
