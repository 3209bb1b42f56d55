"""BIDS datasets: lesion masks, BOLD runs and lesions' maps on disk."""

from bids_lacuna.bids.absence import ParticipantWithoutMask, describe_absence
from bids_lacuna.bids.bold import BoldRun, NoBoldRuns, find_bold_runs
from bids_lacuna.bids.index import (
    DamagedDataset,
    UnknownParticipant,
    check_dataset,
    check_labels,
    read_filter_file,
)
from bids_lacuna.bids.lesions import LesionMask, NoLesionMasks, find_lesion_masks, find_participants_without_mask
from bids_lacuna.bids.metadata import read_space
from bids_lacuna.bids.rule import MASK_SUFFIXES
from bids_lacuna.bids.statmaps import StatMap, find_stat_maps
from bids_lacuna.bids.transforms import AnatomicalTransform, find_t1w_images, find_transforms, is_raw

__all__ = [
    "MASK_SUFFIXES",
    "AnatomicalTransform",
    "BoldRun",
    "DamagedDataset",
    "LesionMask",
    "NoBoldRuns",
    "NoLesionMasks",
    "ParticipantWithoutMask",
    "StatMap",
    "UnknownParticipant",
    "check_dataset",
    "check_labels",
    "describe_absence",
    "find_bold_runs",
    "find_lesion_masks",
    "find_participants_without_mask",
    "find_stat_maps",
    "find_t1w_images",
    "find_transforms",
    "is_raw",
    "read_filter_file",
    "read_space",
]
