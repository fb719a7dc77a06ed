#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice; from a machine that has gcloud.
#
#   TPU=my-slice ZONE=us-central2-b experiments/launch/tpu_pod.sh \
#       --config=configs/lm.py:router=switch,size=base --workdir=/mnt/shared/run
#
# With flags of experiments.train, on hosts that were given the repository (REPO,
# by default the folder moe_jax of the home there) and `pip install '.[tpu]'`.
# All hosts see the workdir: a Filestore or another shared disk, not a bucket.
# --check comes first: what is wrong with a host costs a minute, and is said in a
# line. The same command goes on with the run; inside tmux it outlives the
# terminal. To end the run with a checkpoint, from elsewhere:
#
#   gcloud compute tpus tpu-vm ssh my-slice --zone=us-central2-b --worker=all \
#       --command='pkill -TERM -f experiments.train'
#
# PROJECT, if it is not gcloud's own; PYTHON is the interpreter on the hosts.

set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"

# On each host, of a line that a shell there reads again.
train() {
  local words
  # By name, a TPU that does not start is an error, not a run on the CPU.
  printf -v words ' %q' env "JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu}" \
    "${PYTHON:-python3}" -m experiments.job -- \
    experiments.train --distributed "$@"
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" \
    ${PROJECT:+"--project=$PROJECT"} --worker=all \
    --command="cd $(printf %q "${REPO:-moe_jax}") && exec$words"
}

train "$@" --check
train "$@"
