"""The launch files say what accelerate and pretraining take from them; the shell scripts pass on what they get."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from training.engine.parallel import Layout

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "training" / "launch"
LAYOUTS = {
    "cpu": Layout(),
    "cpu-2": Layout(copies=2),
    "gpu": Layout(),
    "ddp": Layout(copies=8),
    "fsdp2": Layout(shards=8),
    "fsdp2-tp": Layout(shards=4, splits=2),
    "nodes": Layout(copies=2, shards=8),
}


def test_every_launch_file_is_tested_and_no_recipe_holds_a_distributed_choice() -> None:
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == set(LAYOUTS)
    for recipe in (ROOT / "training" / "recipes").glob("*/*.yaml"):
        settings = [line.split(":")[0] for line in recipe.read_text().splitlines() if not line.startswith("#")]
        assert not [
            name for name in settings if any(word in name for word in ("fsdp", "ddp", "gpu", "process", "tp_"))
        ]


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_launch_file_gives_the_layout_that_its_name_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file goes through accelerate's own reader and launcher, up to where it would start processes."""
    path = str(LAUNCH / f"{name}.yaml")
    config = load_config_from_file(path)
    words = ["--config_file", path, "--main_process_port", str(free_port()), "-m", "training.pretrain"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert arguments.num_processes == config.num_processes
    if config.num_processes > 1:
        assert arguments.multi_gpu or arguments.use_fsdp  # else accelerate starts a single process
        for variable, value in prepare_multi_gpu_env(arguments).items():
            monkeypatch.setenv(variable, value)
    assert Layout.from_environment(config.num_processes) == LAYOUTS[name]
    if name == "cpu-2":
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1,-1"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FSDP_VERSION": "1"}, "needs fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is not supported"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "4"}, "dp_shard_size=2 x tp_size=4 .* num_processes=4; change one"),
        ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, "context and sequence parallelism are not supported"),
    ],
)
def test_what_is_asked_and_is_not_there_is_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
        "FSDP_VERSION": "2",
        "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
        "PARALLELISM_CONFIG_TP_SIZE": "2",
    }
    for name, value in (usual | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        Layout.from_environment(4)


STUB = """#!/bin/bash
case $(basename "$0") in
    scontrol) echo node1; echo node2 ;;
    srun) shift; SLURM_NODEID=1 exec "$@" ;;
    *) printf '%s\\n' "$@" ;;
esac
"""


def run_script(name: str, words: list[str], folder: Path, variables: dict[str, str]) -> list[str]:
    """Run a launch script with the cluster's programs replaced by one that prints its arguments."""
    for program in ("scontrol", "srun", "accelerate", "hf"):
        (folder / program).write_text(STUB)
        (folder / program).chmod(0o755)
    environment = os.environ | variables | {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", str(LAUNCH / name), *words]
    return subprocess.run(
        command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()


def test_the_slurm_script_starts_a_launcher_on_each_node(tmp_path: Path) -> None:
    cluster = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "7"}
    words = run_script("slurm.sh", ["--config", "a b.yaml", "--output_dir", "runs/x"], tmp_path, cluster)
    arguments = launch_command_parser().parse_args(words[1:])
    assert words[0] == "launch" and arguments.config_file == "training/launch/nodes.yaml"
    assert (arguments.num_machines, arguments.num_processes, arguments.machine_rank) == (2, 8, 1)
    assert (arguments.main_process_ip, arguments.parallelism_config_dp_shard_size) == ("node1", 4)
    assert arguments.parallelism_config_dp_replicate_size == 2
    assert arguments.training_script == "training.pretrain"
    assert arguments.training_script_args == ["--config", "a b.yaml", "--output_dir", "runs/x"]


def test_the_jobs_script_submits_the_pipeline(tmp_path: Path) -> None:
    variables = {"CODE": "https://example.org/code", "COMMIT": "abc"}
    words = run_script(
        "hf_jobs.sh",
        ["training/recipes/tinystories-15m", "a100-large", "6h", "me/runs", "--launch", "x.yaml"],
        tmp_path,
        variables,
    )
    assert words[:4] == ["jobs", "run", "--flavor", "a100-large"]
    assert "hf://buckets/me/runs:/runs" in words and "HF_TOKEN" in words
    command = "\n".join(words[words.index("-c") + 1 :])
    assert (
        "python -m training.run training/recipes/tinystories-15m --output_dir /runs/tinystories-15m --launch x.yaml"
        in command
    )
