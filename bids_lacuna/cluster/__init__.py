"""The pass over the connectome on a Dask cluster."""

from bids_lacuna.cluster.pool import connect
from bids_lacuna.cluster.run import ClusterPass

__all__ = ["ClusterPass", "connect"]
