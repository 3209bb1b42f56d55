"""Normative connectomes: opened, built into stores, and verified."""

from bids_lacuna.connectome.build import build_store, check_folder, processes_that_fit
from bids_lacuna.connectome.compression import TOLERANCE
from bids_lacuna.connectome.connectome import Connectome, ConnectomeSubject
from bids_lacuna.connectome.exclusive import NoPlace, NoRoom
from bids_lacuna.connectome.store import Store, is_store
from bids_lacuna.connectome.verify import Verification, verify_store
from bids_lacuna.connectome.workers import DamagedSource

__all__ = [
    "TOLERANCE",
    "Connectome",
    "ConnectomeSubject",
    "DamagedSource",
    "NoPlace",
    "NoRoom",
    "Store",
    "Verification",
    "build_store",
    "check_folder",
    "is_store",
    "processes_that_fit",
    "verify_store",
]
