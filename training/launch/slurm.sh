#!/bin/bash
# Train on Slurm, from the clone's root:
#   sbatch training/launch/slurm.sh --recipe emoji-32 --train_data_dir /data/set --output_dir /runs/a
#
# One task a GPU, started by Slurm itself: no launcher stands between it and the run. Five minutes before the time is
# up, or when the job is preempted, all tasks get SIGTERM, write a checkpoint and exit with 75; the job is then put back
# in the queue, and the same command goes on from there. output_dir must be on a disk that all machines share.
#SBATCH --job-name=mezzotint
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append

trap : TERM USR1 # are for the tasks; this script outlives them to requeue the job

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT ACCELERATE_MIXED_PRECISION=bf16
# For one model in shards, as fsdp2.yaml has it:
# export ACCELERATE_USE_FSDP=true FSDP_VERSION=2 FSDP_RESHARD_AFTER_FORWARD=true

# shellcheck disable=SC2016  # each task's own numbers
srun --kill-on-bad-exit=0 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec python training/train.py "$@"
' train "$@"
code=$?

if [ $code -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
