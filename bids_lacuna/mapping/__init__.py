"""What is computed of each lesion: the protocols of an analysis, and functional lesion network mapping."""

from bids_lacuna.mapping.functional import FunctionalNetworkMapping
from bids_lacuna.mapping.local import LocalPass
from bids_lacuna.mapping.maps import NetworkMaps

__all__ = ["FunctionalNetworkMapping", "LocalPass", "NetworkMaps"]
