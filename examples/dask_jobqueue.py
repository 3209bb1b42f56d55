"""Map lesions from Python on Dask workers that are SLURM jobs: pip install bids-lacuna[distributed] dask-jobqueue.

    python examples/dask_jobqueue.py CONNECTOME N_JOBS MASK ...

For PBS, SGE, LSF and others, dask-jobqueue has classes to use instead of SLURMCluster. The connectome and the folder
of checkpoints must be on a file system that all nodes share. Maps are written to the folder `maps`.
"""

import sys
from pathlib import Path

import nibabel as nib
from dask_jobqueue import SLURMCluster
from distributed import Client

from bids_lacuna import FunctionalNetworkMapping, LesionData, batch_process


def save(results: list[LesionData]) -> None:
    """Save a batch's maps, which are freed when this function returns."""
    for result in results:
        maps = result.results["FunctionalNetworkMapping"]
        for name in ("correlation_map", "t_map"):
            nib.save(maps[name], Path("maps") / f"{result.name.removesuffix('.nii.gz')}_{name}.nii.gz")


def main() -> None:
    """Map the masks given as arguments."""
    connectome, n_jobs, *masks = sys.argv[1:]
    Path("maps").mkdir(exist_ok=True)
    # One process per job, whose kernels use all processors.
    cluster = SLURMCluster(cores=16, processes=1, memory="32GB", walltime="04:00:00")
    cluster.scale(jobs=int(n_jobs))
    with Client(cluster) as client:
        results = batch_process(
            [LesionData.from_nifti(mask, {"space": "MNI152NLin6Asym"}) for mask in masks],
            FunctionalNetworkMapping(Path(connectome).absolute()),
            client=client,
            batch_result_callback=save,
            checkpoint_dir="checkpoints",
        )
    for result in results:
        if result.error:
            print(result.name, "failed:", result.error)  # noqa: T201


if __name__ == "__main__":
    main()
