#!/bin/bash
# One process a node, all of a node's GPUs each: sbatch launch/slurm.sh small --parallel.expert 16
# The same job submitted again goes on from the newest checkpoint.
#SBATCH --job-name=dsjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@120
#SBATCH --requeue

set -euo pipefail
srun --kill-on-bad-exit=1 python -m dsjax train "$@"
