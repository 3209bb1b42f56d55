#!/usr/bin/env bash
#SBATCH --job-name=bids-lacuna
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
# Split the connectome across all nodes of one job:
#
#     sbatch examples/slurm_dask.sh IMAGE.sif BIDS_DIR OUTPUT_DIR CONNECTOME WORK_DIR [OPTIONS, such as --no-reports]
#
# OUTPUT_DIR, CONNECTOME and WORK_DIR must be on a file system that all nodes share. WORK_DIR holds Dask's scheduler file
# and the checkpoints: submit the same command to resume after a job has ended early.
set -euo pipefail

image=$1 bids_dir=$(realpath "$2") output_dir=$(realpath --canonicalize-missing "$3") connectome=$(realpath "$4")
work_dir=$(realpath --canonicalize-missing "$5")
mkdir -p "$output_dir" "$work_dir"
scheduler_file=scheduler-$SLURM_JOB_ID.json
# SLURM may have requeued this job, and left its old file.
rm -f "$work_dir/$scheduler_file"

run_in_image() {
  apptainer exec --containall \
    --bind "$bids_dir:/data:ro" --bind "$output_dir:/out" --bind "$connectome:/connectome:ro" \
    --bind "$work_dir:/work" "$image" "$@"
}
export -f run_in_image
export image bids_dir output_dir connectome work_dir

cluster=()
end_cluster() {
  if ((${#cluster[@]})); then kill "${cluster[@]}" 2>/dev/null || true; fi
  rm -f "$work_dir/$scheduler_file"
}
trap end_cluster EXIT

# The scheduler needs little, so it shares this node with a worker.
run_in_image python -m distributed.cli.dask_scheduler \
  --port 0 --no-dashboard --scheduler-file "/work/$scheduler_file" &
cluster+=($!)

# One worker per node, whose kernels use all threads. It opens /connectome, as the client does. The plan keeps within the
# job's memory, so Dask needs no limit.
srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --overlap bash -c 'run_in_image "$@"' worker \
  python -m distributed.cli.dask_worker --scheduler-file "/work/$scheduler_file" \
  --no-nanny --no-dashboard --nthreads "$SLURM_CPUS_PER_TASK" --memory-limit 0 --local-directory /tmp &
cluster+=($!)

run_in_image python /opt/bids-lacuna/run.py /data /out participant --connectome /connectome --t-threshold 7 \
  --dask-scheduler "/work/$scheduler_file" --work-dir /work "${@:6}" &
client=$!
trap 'kill -TERM "$client"' TERM
# A signal ends the first `wait`; the second one waits for the client.
wait "$client" || wait "$client"
