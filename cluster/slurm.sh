#!/bin/bash
# A run on a SLURM cluster: sbatch cluster/slurm.sh CONFIG run.directory=/shared/outputs/NAME [KEY=VALUE ...]; see README.md.
#SBATCH --job-name=sdr1
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
# One Ray a machine: the end of the job stops every Ray process of its user.
#SBATCH --exclusive
#SBATCH --time=24:00:00
# Before the time is over the job queues again, and goes on from its newest checkpoint.
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
set -euo pipefail

# sed reads to the end: a reader that stops early would end the job, by pipefail, without a word.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# A token of this job's own: without it others on the network could run code on its nodes.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
# On each node a Ray; on the first of them the doctor, then, if it finds nothing to mend, the run.
srun --kill-on-bad-exit=1 ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$SLURM_GPUS_ON_NODE" --disable-usage-stats -- \
  bash -c 'sdr1 doctor "$@" && exec sdr1 train "$@"' sdr1 "$@" --ray-address auto run.resume=auto &
# A trap waits for what runs in front, not for what runs behind.
wait $!
