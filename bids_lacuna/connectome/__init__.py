"""Normative connectomes: opened, built into stores, and verified.

What only builds and `verify` need, and with it SciPy's transforms, is imported from its modules.
"""

from bids_lacuna.connectome.connectome import Connectome, ConnectomeSubject
from bids_lacuna.connectome.store import Store, is_store

__all__ = ["Connectome", "ConnectomeSubject", "Store", "is_store"]
