"""One program at a time writes to a folder, and a pipeline is put in place of another so that nothing loads what is
neither: shown by processes that are killed."""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_run import tree

from mezzotint import MezzotintPipeline
from mezzotint_training import cli
from mezzotint_training.config.errors import CannotGoOn, UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.engine import files as writing
from mezzotint_training.engine.files import hold, write_text
from mezzotint_training.publishing import finish as finishing
from mezzotint_training.publishing.examples import Examples
from mezzotint_training.publishing.finish import finish

forked = multiprocessing.get_context("fork")


def keep(folder: Path, held) -> None:
    with hold(folder):
        if os.fork() == 0:  # as a data worker, which outlives a run that is killed
            time.sleep(20)
            os._exit(0)
        held.set()
        time.sleep(60)


# ------------------------------------------------------------------------------------------------------------- holding


def test_a_folder_is_held_by_one_process_and_its_death_lets_go(tmp_path):
    folder, held = tmp_path / "run", forked.Event()
    process = forked.Process(target=keep, args=(folder, held))
    process.start()
    assert held.wait(20)
    with pytest.raises(UserError) as refusal, hold(folder):
        pass
    host = os.uname().nodename
    assert str(refusal.value) == (
        f"output_dir {folder} is in use by process {process.pid} on {host}: wait for its end, or name another"
    )
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with hold(folder):  # at once
        assert f"process {os.getpid()} on " in (folder / ".mezzotint" / "lock").read_text()
    assert list(folder.iterdir()) == []


def test_what_was_made_for_nothing_goes_again(tmp_path):
    with hold(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["b", "file"]


def test_two_that_begin_at_once_are_never_both_in(tmp_path):
    """Each holds the folder for a moment, over and over, while its lock file comes and goes."""

    def enter(times: int) -> None:
        for _ in range(times):
            try:
                with hold(tmp_path / "run"):
                    marker = os.open(tmp_path / "alone", os.O_CREAT | os.O_EXCL)
                    os.close(marker)
                    (tmp_path / "alone").unlink()
            except UserError as error:
                assert "is in use by " in str(error)

    processes = [forked.Process(target=enter, args=(300,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_a_folder_that_is_gone_is_said_in_one_line(tmp_path):
    folder = tmp_path / "run"
    message = f"^output_dir {folder} is gone: it was moved or removed while it was in use$"
    with pytest.raises(CannotGoOn, match=message), hold(folder):
        folder.rename(tmp_path / "moved")
        (folder / "metrics.jsonl").open("a")


@pytest.mark.parametrize("argv", [["fit-scheduler"], ["evaluate", "--card"]])
def test_programs_that_write_into_a_pipelines_folder_wait_for_nobody(tmp_path, capsys, argv):
    for name in ("model_index.json", "recipe.yaml", "metrics.json"):
        (tmp_path / name).touch()
    with hold(tmp_path):
        assert cli.main([*argv, str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(
        f"mezzotint: checkpoint {tmp_path} is in use by process {os.getpid()} on "
    )


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(writing.fcntl, "flock", none)
    with hold(tmp_path):
        assert capsys.readouterr().out.startswith(f"warning: {tmp_path} cannot be locked (")


@pytest.mark.parametrize("kind", ["a file", "a read-only disk", "a file in the way"])
def test_what_cannot_be_held_is_refused(tmp_path, monkeypatch, kind):
    if kind == "a file":
        (tmp_path / "run").write_text("mine")
    elif kind == "a file in the way":
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".mezzotint").write_text("mine")
    else:

        def refuse(*args):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(writing.os, "open", refuse)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="^output_dir must be a folder"), hold(tmp_path / "run"):
        pass
    assert tree(tmp_path) == before


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "recipe.yaml", "old")

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "sync", full)
    with pytest.raises(OSError):
        write_text(tmp_path / "recipe.yaml", "new")
    assert (tmp_path / "recipe.yaml").read_text() == "old"


# ----------------------------------------------------------------------------------------------- the finished pipeline

MOMENTS = 20
FILES = ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "shutil.move", "os.truncate")
METRICS = {
    "updates": 1, "loss": 0.5, "seconds": 1.0, "images_per_second": 1.0, "pictures": 1, "bad_rows": 0,
    "parameters": {"unet": 1}, "device": "cpu", "processor": "cpu", "processes": 1, "threads": 1,
    "mixed_precision": "no",
}  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    pipe = MezzotintPipeline.from_pretrained(folder)
    return {
        f"{name}.{key}": x for name in ("unet", "text_encoder") for key, x in getattr(pipe, name).state_dict().items()
    }


def is_all_of(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_a_kill_while_a_pipeline_is_replaced_leaves_the_old_or_the_new_or_none(make_pipe, tmp_path, monkeypatch):
    """At moments spread evenly over all that changes a file."""
    monkeypatch.setattr(finishing, "check_saved", lambda *_: None)  # it changes none, and takes half of the time
    config = TrainConfig(dataset_name="digits", output_dir=str(tmp_path / "run"), load_back=False)
    accelerator = SimpleNamespace(is_main_process=True, trackers=[], device=torch.device("cpu"), print=lambda *_: None)
    old, new = make_pipe(), make_pipe()
    for module in (new.unet, new.text_encoder):
        for p in module.parameters():
            p.data.add_(1)

    def write(folder: Path, pipe, steps: int) -> None:
        with hold(folder):
            writing.clear(folder)
            (folder / "recipe.yaml").write_text(config.to_yaml())
            finish(pipe, config, folder, METRICS | {"steps": steps}, accelerator, Examples([]))

    def killed(folder: Path, moment: int, events) -> None:
        def count(event: str, _) -> None:
            if event in FILES:
                events.value += 1
                if events.value == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        write(folder, new, 6)
        os._exit(0)

    def child(folder: Path, moment: int) -> int:
        events = forked.Value("i", 0, lock=False)
        process = forked.Process(target=killed, args=(folder, moment, events))
        process.start()
        process.join(60)
        assert process.exitcode == (0 if moment == 0 else -signal.SIGKILL)
        return events.value

    folders = [tmp_path / str(i) for i in range(MOMENTS + 1)]
    write(folders[0], old, 3)
    (folders[0] / "unet" / "notes.txt").write_text("mine")
    for folder in folders[1:]:
        shutil.copytree(folders[0], folder)
    states = [weights(folders[0])]
    total = child(folders[0], 0)
    states.append(weights(folders[0]))
    complete = tree(folders[0])
    assert not is_all_of(*states) and total > MOMENTS
    outcomes = []
    for number, folder in enumerate(folders[1:]):
        child(folder, 1 + number * (total - 1) // (MOMENTS - 1))
        if (folder / "model_index.json").exists():
            found = weights(folder)
            outcomes.append([is_all_of(found, state) for state in states].index(True))
        else:
            with pytest.raises(OSError):
                MezzotintPipeline.from_pretrained(folder)
            outcomes.append(2)
        write(folder, new, 6)
        found = tree(folder)
        assert {name: found[name] for name in complete if name.endswith(".safetensors")}.items() <= complete.items()
        assert found.keys() == complete.keys() and (folder / "unet" / "notes.txt").exists()
    assert set(outcomes) == {0, 1, 2} and outcomes.count(0) > 3


def test_an_old_pipeline_in_other_files_leaves_none_behind(make_pipe, tmp_path):
    config = TrainConfig(dataset_name="digits", output_dir=str(tmp_path / "run"), load_back=False)
    accelerator = SimpleNamespace(is_main_process=True, trackers=[], device=torch.device("cpu"), print=lambda *_: None)
    (tmp_path / "unet").mkdir()
    stale = (
        "pipeline_mezzotint_v01234567.py",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    )
    users = ("notes_v01234567.py", "unet/my.safetensors", "unet/notes.txt")
    for name in (*stale, *users):
        (tmp_path / name).write_text("there")
    finish(make_pipe(), config, tmp_path, METRICS | {"steps": 6}, accelerator, Examples([]))
    assert not any((tmp_path / name).exists() for name in stale)
    assert all((tmp_path / name).read_text() == "there" for name in users)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "notes_v01234567.py").stat().st_mode & 0o777}
