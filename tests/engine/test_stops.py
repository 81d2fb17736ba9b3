"""How a run ends before its end: a signal, gradients that are not finite, and the branch that cures them."""

import json
import multiprocessing
import os
import shutil
import signal
import time

import pytest
import torch
from tiny_run import LONG, distance, logged, run, saved, trained

from mezzotint_training import train
from mezzotint_training.config.errors import CANNOT_GO_ON, INTERRUPTED
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.engine import checkpoint, plan
from mezzotint_training.learning import objective

STATES = ("weights", "optimizer", "ema")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole") / "run", **LONG)


def at_call(monkeypatch, calls, action) -> None:
    """Put `action(loss)` in place of what `denoising_loss` returns at these calls, counted from 1."""
    original, count = objective.denoising_loss, [0]
    monkeypatch.setattr(plan, "make_plan", lambda *args: {})  # which looks at a few batches beforehand

    def loss(*args, **kwargs):
        count[0] += 1
        value = original(*args, **kwargs)
        return action(value) if count[0] in calls else value

    monkeypatch.setattr(objective, "denoising_loss", loss)


def assert_same(a, b, step) -> None:
    for name in STATES:
        assert distance(saved(a, step, name), saved(b, step, name)) == 0, name


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint_and_its_own_code(whole, tmp_path, monkeypatch, number):
    def send(loss):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a launcher passes on what the process got too
        return loss

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_call(patch, [9], send)  # in the fifth update, of which there is no checkpoint
        result = run(output_dir=tmp_path / "run", **LONG)
    assert result.code == INTERRUPTED == 75
    assert result.err.splitlines()[-1] == (
        "mezzotint: stopped at step 5, with a checkpoint; the same command goes on from there"
    )
    assert [path.name for path in checkpoint.found(tmp_path / "run")] == [f"checkpoint-{i}" for i in (2, 4, 5)]
    assert signal.getsignal(number) == before
    assert not (tmp_path / "run" / "model_index.json").exists()

    result = run(output_dir=tmp_path / "run", **LONG)
    assert result.code == 0 and "going on from step 5\n" in result.out
    assert_same(tmp_path / "run", whole, 6)
    assert logged(tmp_path / "run") == logged(whole)
    assert logged(tmp_path / "run", "loss_by_noise_level") == logged(whole, "loss_by_noise_level")


def test_a_signal_to_the_data_workers_is_the_runs_business(whole, tmp_path, monkeypatch):
    """Batch systems send it to every process of a job."""

    def send(loss):
        (worker,) = multiprocessing.active_children()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
        return loss

    with monkeypatch.context() as patch:
        at_call(patch, [5, 9], send)
        trained(tmp_path / "run", dataloader_num_workers=1, **LONG)
    assert_same(tmp_path / "run", whole, 6)


def test_a_second_ctrl_c_does_not_wait(monkeypatch):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt), train.signals() as caught:
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("place", ["source.read", "finish"])
def test_a_signal_before_or_after_the_steps_ends_the_run_at_once(whole, tmp_path, monkeypatch, place):
    shutil.copytree(whole, tmp_path / "run")
    with monkeypatch.context() as patch:
        if place == "finish":
            patch.setattr(train, "finish", lambda *args: signal.raise_signal(signal.SIGTERM))
        else:
            patch.setattr(CaptionedSamples, "read_all", lambda *args, **kwargs: signal.raise_signal(signal.SIGTERM))
        result = run(output_dir=tmp_path / "run", **LONG)
    assert result.code == INTERRUPTED
    assert result.err.splitlines()[-1] == (
        "mezzotint: stopped before the first step or after the last; the same command goes on"
    )
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run(output_dir=tmp_path / "run", **LONG).code == 0
    assert_same(tmp_path / "run", whole, 6)


def test_a_signal_at_the_last_step_lets_the_run_finish(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, [3], lambda loss: (os.kill(os.getpid(), signal.SIGTERM), loss)[1])
        folder = trained(tmp_path / "run")
    assert (folder / "model_index.json").exists()


# ---------------------------------------------------------------------------------------- gradients that are not finite


def poison(value: float):
    return lambda loss: loss * torch.full_like(loss, value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_without_a_finite_gradient_is_skipped_and_counted(whole, tmp_path, monkeypatch, value):
    settings = LONG | {"checkpointing_steps": 1, "logging_steps": 1}
    with monkeypatch.context() as patch:
        at_call(patch, [6], poison(value))  # in the second micro-step of the third update
        folder = trained(tmp_path / "run", **settings)
    assert_same(folder, whole, 2)
    for name in STATES:
        assert distance(saved(folder, 2, name), saved(folder, 3, name)) == 0, name
        assert distance(saved(folder, 3, name), saved(folder, 4, name)) > 0
        assert all(torch.isfinite(x).all() for x in saved(folder, 6, name).values())
    assert list(logged(folder, "skipped_steps").values()) == [0, 0, 1, 1, 1, 1]
    assert logged(folder)[3] is None and logged(folder, "gradient_norm")[3] is None
    assert json.loads((folder / "metrics.json").read_text())["skipped_steps"] == 1
    assert logged(folder, "learning_rate")[5] == logged_rate(folder, 5)


def logged_rate(folder, step: int) -> float:
    """Of the schedule, which counts updates whether they were skipped or not."""
    return json.loads((folder / f"checkpoint-{step}" / "state.json").read_text())["lr_scheduler"]["_last_lr"][0]


def test_a_run_of_them_ends_it_naming_the_last_checkpoint(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, range(5, 99), poison(float("nan")))
        result = run(output_dir=tmp_path / "run", max_nonfinite_steps=1, **LONG | {"max_train_steps": 9})
    assert result.code == CANNOT_GO_ON == 3
    last = result.err.splitlines()[-1]
    assert last.startswith("mezzotint: no finite gradient in the 2 updates up to step 4; the last checkpoint is ")
    assert f"{tmp_path / 'run' / 'checkpoint-2'}; " in last
    assert [path.name for path in checkpoint.found(tmp_path / "run")] == ["checkpoint-2"]
    assert_same(tmp_path / "run", whole, 2)


@pytest.mark.filterwarnings("ignore:invalid value")  # of pictures that are no numbers
def test_a_run_whose_last_losses_were_not_finite_is_finished_with_a_card(tmp_path):
    settings = {"max_train_steps": 3, "learning_rate": 1e30, "lr_warmup_steps": 0, "validation_split": "test"}
    settings |= {"validation_prompts": ["7"], "num_inference_steps": 1}
    for _ in range(2):  # and the same command again
        result = run(output_dir=tmp_path / "run", **settings)
        assert result.code == 0, result.err
        assert "(3 steps, " in result.out and "no finite loss)" in result.out
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(), parse_constant=pytest.fail)
        assert metrics["loss"] is None
        assert "last training loss" in (tmp_path / "run" / "README.md").read_text()


def test_a_folder_that_is_removed_under_a_run_ends_it_in_one_line(tmp_path, monkeypatch):
    def remove(loss):
        shutil.rmtree(tmp_path / "run")
        return loss

    with monkeypatch.context() as patch:
        at_call(patch, [3], remove)
        result = run(output_dir=tmp_path / "run", **LONG | {"logging_steps": 1})
    assert result.code == CANNOT_GO_ON
    assert result.err.splitlines()[-1] == (
        f"mezzotint: output_dir {tmp_path / 'run'} is gone: it was moved or removed while it was in use"
    )
    assert not (tmp_path / "run").exists()


def test_a_finite_update_in_between_starts_the_count_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, [2, 4], poison(float("nan")))
        folder = trained(tmp_path / "run", max_train_steps=5, max_nonfinite_steps=1)
    assert logged(folder, "skipped_steps")[5] == 2


def test_the_count_goes_on_after_a_stop(tmp_path, monkeypatch):
    def stop(loss):
        os.kill(os.getpid(), signal.SIGTERM)
        return loss * float("nan")

    settings = {"output_dir": tmp_path / "run", "max_nonfinite_steps": 1, "max_train_steps": 9}
    with monkeypatch.context() as patch:
        at_call(patch, [2], stop)
        assert run(**settings).code == INTERRUPTED
    with monkeypatch.context() as patch:
        at_call(patch, [1], poison(float("nan")))
        assert run(**settings).code == CANNOT_GO_ON


def test_a_branch_with_another_rate_goes_on_in_another_folder(whole, tmp_path):
    settings = LONG | {
        "resume_from_checkpoint": whole / "checkpoint-2",
        "learning_rate": 1e-3,
        "checkpointing_steps": 1,
    }
    first = trained(tmp_path / "branch", **settings | {"max_train_steps": 4})
    assert distance(saved(first, 4), saved(whole, 4)) > 0
    result = run(output_dir=tmp_path / "branch", **settings)  # the same command again: on from its own last checkpoint
    assert result.code == 0 and "going on from step 4\n" in result.out
    assert logged(first, "learning_rate")[6] == 0  # the end of the cosine
