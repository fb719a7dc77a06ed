#!/usr/bin/env bash
# Trains on the nodes of a Slurm job, one process a GPU; goes on by itself.
#
#   sbatch --nodes=4 experiments/launch/slurm.sh \
#       --config=configs/lm.py:router=switch,size=base --workdir=/shared/run
#
# From the repository's folder, which all nodes see, as they do the workdir; with
# flags of experiments.train. --check comes first: what is wrong with a node costs
# a minute, and is said in a line. Three minutes before the time is over Slurm
# sends SIGUSR1; the run saves, ends with 143, and is put into the queue again,
# at most MAX_RESTARTS times (100). Any other failure stays one. `scancel JOB`
# ends it for good. PYTHON is the interpreter; JAX_PLATFORMS=cpu does without
# GPUs.
#
#SBATCH --job-name=moe_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=moe_jax_%j.log

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start it by sbatch, from the folder of the repository}"

# By name, a GPU that does not start is an error, not a run on the CPU.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}

# JAX finds the processes by Slurm's variables, and gives each the GPU of its
# number on the node: it must see all of them, so that they are not bound.
# Whoever is left after a death ends by itself within a minute, with a line.
train() {
  srun --gpu-bind=none --kill-on-bad-exit=0 --wait=90 \
    ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
    "${PYTHON:-python3}" -m experiments.job -- \
    experiments.train --distributed "$@"
}

train "$@" --check
code=0
train "$@" || code=$?
if ((code == 143 && ${SLURM_RESTART_COUNT:-0} < ${MAX_RESTARTS:-100})); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
