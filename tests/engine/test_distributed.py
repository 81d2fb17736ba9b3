"""Two processes on a CPU: a run that they share ends as one that a single process does, but for the order of sums,
whether each holds a copy of the model (DDP) or a shard of it (FSDP2), and any goes on from the
checkpoints of any other."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from forked import launch, start
from safetensors.torch import load_file
from tiny_run import UNET, distance, logged, run, saved, trained

from mezzotint import MezzotintPipeline
from mezzotint_training.config.errors import UserError
from mezzotint_training.engine import checkpoint, sharding

# Nothing random but the batches; at Adam's usual epsilon rounding of a gradient near zero would become a full step
SETTINGS = {
    "unet": UNET | {"dropout": 0.0},
    "adam_epsilon": 1e-3,
    "lr_warmup_steps": 0,
    "lr_scheduler": "constant",
    "max_train_steps": 4,
    "checkpointing_steps": 1,
    "checkpoints_total_limit": "null",
    "validation_steps": 1,
    "max_train_samples": 200,
    "num_validation_samples": 8,
    "posthoc_ema_steps": 2,
}
CONFIGS = Path(sharding.__file__).parents[1] / "launch"
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as the launcher puts fsdp2.yaml into the environment
STATES = ("weights", "optimizer", "ema", "averages")


def said(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.parent.glob("output-*.txt"))


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("single") / "run", **SETTINGS)


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    """A run of two processes with a copy each, ended by a signal to their launcher some time after its fourth step;
    where there are CPUs alone, nobody says that they are to be used."""
    folder = tmp_path_factory.mktemp("copies") / "run"
    told = {} if torch.accelerator.is_available() else {"ACCELERATE_USE_CPU": ""}
    process = launch(folder, 2, SETTINGS | {"train_batch_size": 4, "max_train_steps": 100_000}, **told)
    while process.is_alive() and not (folder / "checkpoint-5").exists():
        time.sleep(0.01)
    process.terminate()
    process.join(120)
    return folder


@pytest.fixture(scope="module")
def shards(single, tmp_path_factory) -> Path:
    """A run of two processes with a shard each, that goes on from the single one's first step."""
    folder = tmp_path_factory.mktemp("shards") / "run"
    settings = SETTINGS | {"train_batch_size": 4, "resume_from_checkpoint": single / "checkpoint-1"}
    processes = start(folder, 2, settings, **FSDP2)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], said(folder)
    return folder


def assert_close(folder: Path, expected: Path, steps=range(2, 5)) -> None:
    """Equal but for rounding: weights, moments, averages, losses, and what was measured on held-out pictures."""
    moved = distance(saved(expected, 1), saved(expected, 4))
    for step in steps:
        for name in STATES:
            assert distance(saved(folder, step, name), saved(expected, step, name)) < 1e-3 * moved, (step, name)
    for column in ("loss", "gradient_norm", "held_out_loss"):
        values = {step: value for step, value in logged_where(expected, column).items() if step in steps}
        assert {k: v for k, v in logged_where(folder, column).items() if k in steps} == pytest.approx(values, rel=1e-4)
        assert len(values) >= 2, column


def logged_where(folder: Path, column: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[column] for line in lines if column in line}


def component(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(next((folder / name).glob("*.safetensors")))


def test_copies_learn_what_one_process_does(copies, single):
    assert_close(copies, single, range(1, 5))


def test_shards_learn_what_one_process_does(shards, single):
    assert "going on from step 1\n" in said(shards)
    assert json.loads((shards / "metrics.json").read_text())["processes"] == 2
    assert_close(shards, single)


def test_shards_are_published_whole(shards, single):
    for name in ("unet", "text_encoder"):
        assert 0 <= distance(component(shards, name), component(single, name)) < 1e-6
        configs = (json.loads((folder / name / "config.json").read_text()) for folder in (shards, single))
        assert next(configs) == next(configs)
    average = {f"{name}.{key}": x for name in ("unet", "text_encoder") for key, x in component(shards, name).items()}
    kept = saved(shards, 4, "ema")
    assert distance({key: average[key] for key in kept}, kept) == 0
    assert type(MezzotintPipeline.from_pretrained(shards).unet).__name__ == "MezzotintUNetModel"


def test_a_checkpoint_is_the_same_whoever_wrote_it(single, copies, shards):
    for name in STATES:
        shapes = [{k: (x.shape, x.dtype) for k, x in saved(f, 2, name).items()} for f in (single, copies, shards)]
        assert shapes[0] == shapes[1] == shapes[2]
    states = [json.loads((f / "checkpoint-2" / "state.json").read_text()) for f in (single, copies, shards)]
    assert states[0].keys() == states[1].keys() == states[2].keys()


@pytest.mark.parametrize("kind", ["copies", "shards"])
def test_one_process_goes_on_from_two(kind, single, tmp_path, request):
    before = request.getfixturevalue(kind)
    result = run(output_dir=tmp_path / "run", resume_from_checkpoint=before / "checkpoint-2", **SETTINGS)
    assert result.code == 0 and "going on from step 2\n" in result.out, result.err
    assert_close(tmp_path / "run", single, range(3, 5))


def test_a_signal_to_the_launcher_ends_all_processes_at_one_step_with_a_checkpoint(copies):
    text = said(copies)
    last = checkpoint.found(copies)[-1]
    step = int(last.name.split("-")[1])
    assert text.count(f"mezzotint: stopped at step {step}, with a checkpoint; the same command goes on from there") == 2
    assert checkpoint.load(last)[1]["step"] == step == max(logged(copies)) >= 5
    assert not (copies / "model_index.json").exists()


# ------------------------------------------------------------------------------------------------------ configurations


class OnTwoProcesses:
    """What `sharding` asks of an accelerator."""

    num_processes = 2
    mixed_precision = "bf16"


def environment_of(config: Path) -> dict[str, str]:
    """What accelerate's launcher makes of a file for the processes that it starts."""
    args = launch_command_parser().parse_args(["--config_file", str(config), "train.py"])
    known = set(vars(args))
    content = yaml.safe_load(config.read_text())
    assert set(content.pop("fsdp_config", {})) <= known
    assert set(content) <= known | {"compute_environment", "distributed_type"}  # others the loader itself refuses
    args, _, _ = _validate_launch_command(args)
    if args.num_processes == 1:
        return prepare_simple_launcher_cmd_env(args)[1]
    return prepare_multi_gpu_env(args)


@pytest.mark.parametrize(
    "name, processes, sharded, gathered_again",
    [
        ("one_gpu", 1, False, None),
        ("ddp", 8, False, None),
        ("multi_node", 16, False, None),
        ("zero2", 8, True, False),
        ("fsdp2", 8, True, True),
    ],
)
def test_accelerate_and_the_program_read_a_configuration_alike(name, processes, sharded, gathered_again, monkeypatch):
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {"one_gpu", "ddp", "multi_node", "zero2", "fsdp2"}
    config = CONFIGS / f"{name}.yaml"
    for key in [key for key in os.environ if key.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(key)
    for key, value in environment_of(config).items():
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(key, value)
    assert yaml.safe_load(config.read_text())["num_processes"] == processes
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert sharding.sharded(OnTwoProcesses()) is sharded
    if sharded:
        assert FullyShardedDataParallelPlugin().reshard_after_forward is gathered_again


@pytest.mark.parametrize(
    "environment, precision, message",
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "bf16", "distributed_type must be NO, MULTI_GPU or FSDP"),
        (FSDP2 | {"FSDP_VERSION": "1"}, "bf16", "fsdp_version must be 2 in accelerate's configuration: got 1"),
        (FSDP2 | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "bf16", "fsdp_cpu_ram_efficient_loading must be false"),
        (FSDP2, "fp16", "mixed_precision fp16 needs whole models: got FSDP; possible are bf16 and no"),
    ],
)
def test_what_would_go_wrong_later_is_refused(environment, precision, message, monkeypatch):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    accelerator = OnTwoProcesses()
    accelerator.mixed_precision = precision
    with pytest.raises(UserError, match=f"^{message}"):
        sharding.sharded(accelerator)


@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_job_is_put_back_in_the_queue_when_it_was_stopped_and_only_then(tmp_path, code):
    (tmp_path / "srun").write_text(
        f'#!/bin/bash\necho "$@" "$MASTER_ADDR:$MASTER_PORT" >> {tmp_path}/log\nexit {code}\n'
    )
    (tmp_path / "scontrol").write_text(
        f"#!/bin/bash\n[ $1 = requeue ] && echo requeue $2 >> {tmp_path}/log\necho node-a\n"
    )
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    slurm = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "70001", "SLURM_JOB_NODELIST": "node-[a-b]"}
    command = ["bash", str(CONFIGS / "slurm.sh"), "--recipe", "digits", "--caption_column", "two words"]
    assert subprocess.run(["bash", "-n", command[1]]).returncode == 0
    assert subprocess.run(command, env=os.environ | slurm, capture_output=True).returncode == code
    text = (tmp_path / "log").read_text()
    assert "train --recipe digits --caption_column two words node-a:30001\n" in text
    assert text.count("requeue 70001\n") == (code == 75)
