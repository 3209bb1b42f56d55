#!/usr/bin/env bash
# Run bids-lacuna as ReproNim recommends: inputs, image, maps and the command's history in one DataLad dataset.
#
#     datalad containers-add bids-lacuna --url docker://ghcr.io/bids-lacuna/bids_lacuna:0.1.0 \
#       --call-fmt 'apptainer run --containall --writable-tmpfs --bind "$PWD" --pwd "$PWD" {img} {cmd}'
#     examples/datalad_containers.sh           # in the dataset that has sourcedata/lesions and sourcedata/connectome
set -euo pipefail

datalad containers-run --container-name bids-lacuna \
  --input sourcedata/lesions --input sourcedata/connectome --output derivatives/bids-lacuna \
  "sourcedata/lesions derivatives/bids-lacuna participant --connectome sourcedata/connectome --t-threshold 7"
