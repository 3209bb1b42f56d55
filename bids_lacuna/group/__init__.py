"""The group level: which lesions, and what their maps have in common."""

from bids_lacuna.group.cohort import Group, NoMaps, UnfitLesions, choose_group, refuse
from bids_lacuna.group.contrast import GroupTest, group_test
from bids_lacuna.group.earlier import describe_replaced
from bids_lacuna.group.parcels import write_group_parcels
from bids_lacuna.group.stale import remove_stale_tests
from bids_lacuna.group.summary import summarize_group
from bids_lacuna.group.sums import BLOCK_BYTES

__all__ = [
    "BLOCK_BYTES",
    "Group",
    "GroupTest",
    "NoMaps",
    "UnfitLesions",
    "choose_group",
    "describe_replaced",
    "group_test",
    "refuse",
    "remove_stale_tests",
    "summarize_group",
    "write_group_parcels",
]
