#!/usr/bin/env bash
#SBATCH --job-name=bids-lacuna
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=02:00:00
# Map 20 groups of participants, one job each, into one output folder:
#
#     sbatch --array=0-19 examples/slurm_array.sh IMAGE.sif BIDS_DIR OUTPUT_DIR CONNECTOME
#
# Each job reads the whole connectome, however few lesions it maps: few large groups are faster than one participant per job.
# Submit the array again to resume jobs that were killed.
set -euo pipefail

image=$1 bids_dir=$(realpath "$2") output_dir=$(realpath --canonicalize-missing "$3") connectome=$(realpath "$4")
mkdir -p "$output_dir"

participants=()
index=0
for folder in "$bids_dir"/sub-*/; do
  if ((index++ % SLURM_ARRAY_TASK_COUNT == SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN)); then
    participants+=("$(basename "$folder")")
  fi
done
if ((${#participants[@]} == 0)); then
  echo "no participants are left for task $SLURM_ARRAY_TASK_ID" >&2
  exit 0
fi

apptainer run --containall \
  --bind "$bids_dir:/data:ro" --bind "$output_dir:/out" --bind "$connectome:/connectome:ro" \
  "$image" /data /out participant --connectome /connectome --t-threshold 7 \
  --nprocs "$SLURM_CPUS_PER_TASK" --mem "$SLURM_MEM_PER_NODE" \
  --participant-label "${participants[@]}"
