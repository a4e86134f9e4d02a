#!/bin/bash
# Runs a recipe on Hugging Face Jobs and keeps its output in a bucket of the Hub, where the next job finds it:
#   CODE=https://... training/launch/hf_jobs.sh training/recipes/tinystories-15m a100-large 6h my-name/hf_scratch-runs
# What follows is for training.run, for example --launch training/launch/ddp.yaml on a flavor with several GPUs. Needs
# `hf auth login` and credits; CODE is a public address of this repository, COMMIT what to check out. Not run yet.
set -euo pipefail

recipe=$1 flavor=$2 timeout=$3 bucket=$4
code=${CODE:?set CODE to the address of the repository, for git clone}
commit=${COMMIT:-$(git rev-parse HEAD)}

hf jobs run --flavor "$flavor" --timeout "$timeout" --secrets HF_TOKEN \
    --volume "hf://buckets/$bucket:/runs" --env "CODE=$code" --env "COMMIT=$commit" \
    python:3.11 bash -c "git clone --quiet \"\$CODE\" code && cd code && git checkout --quiet \"\$COMMIT\" \
        && pip install --quiet --constraint constraints.txt '.[train,eval]' \
        && python -m training.run $recipe --output_dir /runs/$(basename "$recipe") ${*:5}"
