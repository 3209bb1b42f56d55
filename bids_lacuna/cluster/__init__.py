"""The pass over the connectome on a Dask cluster."""
