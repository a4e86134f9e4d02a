#!/bin/bash
# Pretrains on several nodes; submit from the root of the clone, with the stage's options:
#   sbatch --nodes 2 training/launch/slurm.sh --config training/recipes/fineweb-1b/pretrain.yaml \
#       --data runs/fineweb-1b/data --tokenizer runs/fineweb-1b/tokenizer --output_dir runs/fineweb-1b/pretrain
# Two minutes before the end Slurm sends SIGTERM: the run saves and stops, and the job queues itself again. Its output
# folder is on a file system that all nodes share. Tried with stand-ins for Slurm's programs only.
#SBATCH --job-name=hf_scratch
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# Processes that were told to stop may take this many seconds to save, before the launcher ends them.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110

read -r main_address < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
processes=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))

srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file training/launch/nodes.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$0" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$1" --main_process_port 29500 \
    --parallelism_config_dp_replicate_size "$SLURM_NNODES" \
    --parallelism_config_dp_shard_size "$SLURM_GPUS_ON_NODE" \
    -m training.pretrain "${@:2}"' "$processes" "$main_address" "$@" &
step=$!

stop() {
    scancel --signal=TERM "$SLURM_JOB_ID.0" || true
    wait "$step" || true
    scontrol requeue "$SLURM_JOB_ID"
}
trap stop TERM
wait "$step"
