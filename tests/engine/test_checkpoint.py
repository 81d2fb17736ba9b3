"""The state of an unfinished run: what is written comes back bit for bit, what was damaged is not believed, and
whatever happens in between the last whole one stays. (Sharded tensors: `test_distributed.py`.)"""

import contextlib
import ctypes
import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

from mezzotint_training.config.errors import UserError
from mezzotint_training.engine import checkpoint
from mezzotint_training.learning.averages import save_snapshot

STATE = {"seconds": 1.5, "config": {"seed": 3, "learning_rate": 1e-05}, "loss": float("nan"), "words": "ü"}


def tensors(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    return {
        "weights": {"unet.a": torch.randn(3, 4, generator=generator), "unet.b": special},
        "optimizer": {
            "0.step": torch.tensor(7.0),
            "0.exp_avg": torch.randn(4, 3, generator=generator).T,  # not contiguous
            "1.half": torch.randn(5, generator=generator).bfloat16(),
            "2.count": torch.tensor([2**62]),
        },
    }


def assert_bits_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key, x in a[name].items():
            y = b[name][key]
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
            assert torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (x, y))), key


def test_what_is_saved_comes_back(tmp_path):
    folder = checkpoint.save(tmp_path, 12, tensors(), STATE)
    assert folder == tmp_path / "checkpoint-12"
    loaded, state = checkpoint.load(folder)
    assert_bits_equal(loaded, tensors())
    assert state["step"] == 12 and state["config"] == STATE["config"] and state["words"] == "ü"
    assert state["loss"] != state["loss"]
    assert_bits_equal(checkpoint.latest(tmp_path)[0], tensors())


def test_nothing_is_pickled(tmp_path):
    folder = checkpoint.save(tmp_path, 1, tensors(), STATE)
    assert {path.name for path in folder.iterdir()} == {"weights.safetensors", "optimizer.safetensors", "state.json"}
    for path in folder.glob("*.safetensors"):  # the format's own header: its length, then JSON
        content = path.read_bytes()
        json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    json.loads((folder / "state.json").read_text())


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    checkpoint.save(tmp_path, 1, tensors(), STATE)
    checkpoint.save(tmp_path, 1, {"other": tensors(1)["weights"]}, STATE)
    loaded, _ = checkpoint.latest(tmp_path)
    assert_bits_equal(loaded, {"other": tensors(1)["weights"]})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


# -------------------------------------------------------------------------------------------------------------- damage


def flip(path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit in the last number": lambda f: flip(f / "weights.safetensors", -1),
    "a bit in a name": lambda f: flip(f / "optimizer.safetensors", 20),
    "cut short": lambda f: (f / "weights.safetensors").write_bytes((f / "weights.safetensors").read_bytes()[:-4]),
    "emptied": lambda f: (f / "optimizer.safetensors").write_bytes(b""),
    "missing": lambda f: (f / "weights.safetensors").unlink(),
    "exchanged": lambda f: (f / "weights.safetensors").write_bytes((f / "optimizer.safetensors").read_bytes()),
    "a pipe": lambda f: ((f / "weights.safetensors").unlink(), os.mkfifo(f / "weights.safetensors")),
    "a folder": lambda f: ((f / "weights.safetensors").unlink(), (f / "weights.safetensors").mkdir()),
    "state cut short": lambda f: (f / "state.json").write_text((f / "state.json").read_text()[:-20]),
    "state emptied": lambda f: (f / "state.json").write_text(""),
    "state of another kind": lambda f: (f / "state.json").write_text("[1]"),
    "state of other names": lambda f: (f / "state.json").write_text("{}"),
    "state in no encoding": lambda f: (f / "state.json").write_bytes(b"\xff\xfe\xfa"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_noticed_and_the_one_before_is_used(tmp_path, capsys, kind):
    checkpoint.save(tmp_path, 5, tensors(5), STATE)
    folder = checkpoint.save(tmp_path, 10, tensors(10), STATE)
    DAMAGE[kind](folder)
    with pytest.raises(UserError, match=f"^checkpoint {folder} is damaged: .* is not what was written$"):
        checkpoint.load(folder)
    loaded, state = checkpoint.latest(tmp_path)
    assert state["step"] == 5
    assert_bits_equal(loaded, tensors(5))
    assert "checkpoint-10 is damaged" in capsys.readouterr().out
    DAMAGE[kind](tmp_path / "checkpoint-5")
    assert checkpoint.latest(tmp_path) is None


def changed(folder: Path, seal: bool, **values) -> None:
    """Write a state with other values; without `seal` as one of before, which had no digest of its own."""
    state = json.loads((folder / "state.json").read_text()) | values
    if not seal:
        del state[checkpoint.OWN_DIGEST]
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("values", [{"seconds": 1.75}, {"config": {"seed": 4, "learning_rate": 1e-05}}, {"new": 1}])
def test_a_state_is_what_was_written_to_the_last_value(tmp_path, values):
    folder = checkpoint.save(tmp_path, 5, tensors(), STATE)
    changed(folder, seal=True, **values)
    with pytest.raises(UserError, match=f"^checkpoint {folder} is damaged: state.json is not what was written$"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "values", [{"step": 10**9}, {"step": "5"}, {"step": None}, {"sha256": []}, {"sha256": {"../x.safetensors": "0"}}]
)
def test_a_state_of_before_is_read_if_it_can_be_one(tmp_path, values):
    folder = checkpoint.save(tmp_path, 5, tensors(5), STATE)
    changed(folder, seal=False)
    assert_bits_equal(checkpoint.load(folder)[0], tensors(5))
    folder = checkpoint.save(tmp_path, 5, tensors(5), STATE)
    changed(folder, seal=False, **values)
    with pytest.raises(UserError, match=f"^checkpoint {folder} is damaged: state.json is not what was written$"):
        checkpoint.load(folder)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=f"must be a checkpoint folder with a state.json: got {folder}$"):
            checkpoint.load(folder)
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / "none") is None


# ----------------------------------------------------------------------------------------------- writes that don't end


@pytest.mark.parametrize("stage", ["save_file", "fsync", "rename"])
def test_a_write_that_fails_leaves_the_last_one_and_names_it(tmp_path, monkeypatch, stage):
    checkpoint.save(tmp_path, 5, tensors(5), STATE)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    place = {"save_file": checkpoint, "fsync": os, "rename": type(tmp_path)}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(place, stage, full)
        with pytest.raises(checkpoint.CannotGoOn) as failure:
            checkpoint.save(tmp_path, 10, tensors(10), STATE)
    assert str(failure.value) == (
        f"checkpoint-10 cannot be written to {tmp_path} (no space left on device); "
        f"the last whole checkpoint is {tmp_path / 'checkpoint-5'}"
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    checkpoint.save(tmp_path, 10, tensors(10), STATE)
    assert_bits_equal(checkpoint.latest(tmp_path)[0], tensors(10))


def test_a_failed_first_write_says_that_there_is_none(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(checkpoint.CannotGoOn, match="; the last whole checkpoint is none$"):
        checkpoint.save(tmp_path / "run", 1, tensors(), STATE)


def fill(folder: Path) -> tuple[str, int, float, list[str]]:
    """Save larger and larger checkpoints until one doesn't fit: the error, and what is there then."""
    error = ""
    for step in range(1, 9):
        numbers = torch.full((2**step * 10_000,), float(step))
        try:
            checkpoint.save(folder, step, {"weights": {"a": numbers}, "optimizer": {"a.exp_avg": numbers + 1}}, STATE)
        except checkpoint.CannotGoOn as failure:
            error = str(failure)
            break
    loaded, state = checkpoint.latest(folder)
    names = sorted(path.name for path in folder.iterdir())
    return error, state["step"], float(loaded["weights"]["a"].mean()), names


def assert_filled(folder: Path, error: str, outcome) -> None:
    failure, last, value, names = outcome
    assert failure.startswith(f"checkpoint-{last + 1} cannot be written to {folder} (") and error in failure
    assert failure.endswith(f"; the last whole checkpoint is {folder / f'checkpoint-{last}'}") and "\n" not in failure
    assert value == last > 1 and names == [f"checkpoint-{step}" for step in range(1, last + 1)]


def test_a_file_that_may_not_grow_stops_the_run_with_its_last_checkpoint_whole(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # Python ignores the signal, so that the write itself fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
        outcome = fill(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_filled(tmp_path, "File too large", outcome)


def fill_a_disk(folder: Path, results) -> None:
    """`fill` on a file system of one megabyte, in a name space of this process where anyone may mount it."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(0x10000000 | 0x00020000) == 0:  # CLONE_NEWUSER, CLONE_NEWNS
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(line)
        if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=1m") == 0:
            return results.put(fill(folder))
    results.put(os.strerror(ctypes.get_errno()))


def test_a_full_disk_stops_the_run_with_its_last_checkpoint_whole(tmp_path):
    if not Path("/proc/self/uid_map").exists():
        pytest.skip("a disk to fill needs Linux")
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=fill_a_disk, args=(tmp_path, results))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    outcome = results.get()
    if isinstance(outcome, str):
        pytest.skip(f"no disk can be made to fill: {outcome}")
    assert_filled(tmp_path, "No space left on device", outcome)


class Killed(BaseException):
    """As a kill comes: nothing that follows it is done."""


@pytest.mark.parametrize("moment", range(4))
def test_a_rewrite_that_is_killed_leaves_the_old_or_the_new(tmp_path, monkeypatch, moment):
    """After each call that changes a name, in the order: old aside, new in place, old removed."""
    checkpoint.save(tmp_path, 5, tensors(5), STATE)
    checkpoint.save(tmp_path, 10, tensors(10), STATE)
    calls = []

    def killed_after(place, name):
        original = getattr(place, name)

        def function(*args, **kwargs):
            if len(calls) == moment:
                raise Killed
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(place, name, function)

    with monkeypatch.context():
        killed_after(Path, "rename")
        killed_after(shutil, "rmtree")
        with pytest.raises(Killed) if moment < 3 else contextlib.nullcontext():
            checkpoint.save(tmp_path, 10, tensors(11), STATE)
        assert calls == ["rename", "rename", "rmtree"][:moment]
        monkeypatch.undo()

    checkpoint.recover(tmp_path)  # as the next run does
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5"]
    left, _ = checkpoint.latest(tmp_path)
    assert_bits_equal(left, tensors(11 if moment > 1 or moment == 1 and is_new(left) else 10))


def is_new(left) -> bool:
    """Between the two renames both are whole, and either will do."""
    return torch.equal(left["weights"]["unet.a"], tensors(11)["weights"]["unet.a"])


def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path):
    checkpoint.save(tmp_path, 3, tensors(3), STATE)
    private = tmp_path / ".mezzotint"
    private.mkdir()
    shutil.copytree(tmp_path / "checkpoint-3", private / "checkpoint-3.1")
    (private / "checkpoint-5.2").mkdir()
    (private / "checkpoint-5.2" / "weights.safetensors").write_bytes(b"half of")
    assert checkpoint.latest(tmp_path)[1]["step"] == 3
    checkpoint.save(tmp_path, 6, tensors(6), STATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-6"]


def test_a_new_name_is_on_disk_before_the_old_one_is_gone(tmp_path, monkeypatch):
    """A power cut keeps what was synced: each file, then its folder, then the folder of the names."""
    checkpoint.save(tmp_path, 5, tensors(5), STATE)
    order, sync, rename, remove = [], checkpoint.sync, Path.rename, shutil.rmtree
    note = lambda what, *paths: order.append(" ".join([what, *(f"{p.parent.name}/{p.stem}" for p in paths)]))  # noqa: E731
    monkeypatch.setattr(checkpoint, "sync", lambda path: (note("sync", path), sync(path)))
    monkeypatch.setattr(Path, "rename", lambda a, b: (note("rename", a, b), rename(a, b))[1])
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: (note("remove", path), remove(path)))
    checkpoint.save(tmp_path, 5, tensors(6), STATE)
    assert [line.split()[0] for line in order[:3]] == ["sync"] * 3 and len(set(order[:3])) == 3
    home = tmp_path.name
    assert order[3:] == [
        "sync .mezzotint/checkpoint-5",
        f"rename {home}/checkpoint-5 .mezzotint/checkpoint-5",
        f"rename .mezzotint/checkpoint-5 {home}/checkpoint-5",
        f"sync {tmp_path.parent.name}/{home}",
        "remove .mezzotint/checkpoint-5",
    ]


# ------------------------------------------------------------------------------------------------- what is the user's


def test_what_looks_like_a_checkpoint_and_is_not_stays(tmp_path):
    """Names that our own unfinished folders once had, and a folder of the user's where a checkpoint comes."""
    for name in (".checkpoint-7", ".checkpoint-best", "checkpoint-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text(name)
    (tmp_path / ".checkpoint-3").write_text("a file")
    for step in (3, 4):
        checkpoint.save(tmp_path, step, tensors(step), STATE)
    checkpoint.prune(tmp_path, 1, 4)
    names = {path.parent.name.split(".kept.")[0]: path.read_text() for path in tmp_path.glob("*/notes.txt")}
    assert names == {name: name for name in (".checkpoint-7", ".checkpoint-best", "checkpoint-3")}
    assert (tmp_path / ".checkpoint-3").read_text() == "a file"
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-4"]


def test_a_file_beside_the_weights_outlives_its_checkpoint(tmp_path):
    for step in (1, 2):
        (checkpoint.save(tmp_path, step, tensors(), STATE) / "notes.txt").write_text("mine")
    checkpoint.prune(tmp_path, 1, 2)
    assert [path.name for path in (tmp_path / "checkpoint-1").iterdir()] == ["notes.txt"]
    checkpoint.save(tmp_path, 2, tensors(), STATE)
    assert [path.read_text() for path in tmp_path.glob("checkpoint-2.kept.*/notes.txt")] == ["mine"]


def test_a_checkpoint_that_was_moved_and_linked_is_used_and_only_its_link_removed(tmp_path, capsys):
    run, disk = tmp_path / "run", tmp_path / "disk"
    run.mkdir()
    for step in (1, 2, 3):
        checkpoint.save(run, step, tensors(step), STATE)
    for step in (1, 2):
        shutil.move(run / f"checkpoint-{step}", disk / f"checkpoint-{step}")
        (run / f"checkpoint-{step}").symlink_to(disk / f"checkpoint-{step}")
    checkpoint.prune(run, 2, 3)
    assert [path.name for path in checkpoint.found(run)] == ["checkpoint-2", "checkpoint-3"]
    checkpoint.save(run, 2, tensors(9), STATE)  # in the place of a link
    checkpoint.prune(run, 1, 2)
    assert [path.name for path in run.iterdir()] == ["checkpoint-2"] and not (run / "checkpoint-2").is_symlink()
    assert_bits_equal(checkpoint.load(run / "checkpoint-2")[0], tensors(9))
    for step in (1, 2):
        assert_bits_equal(checkpoint.load(disk / f"checkpoint-{step}")[0], tensors(step))
    assert capsys.readouterr().out == ""


def test_a_checkpoint_that_cannot_be_removed_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, tensors(), STATE)

    def busy(*args):
        raise OSError(errno.EBUSY, "a mount point")

    monkeypatch.setattr(Path, "rename", busy)
    checkpoint.prune(tmp_path, 1, 2)
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'checkpoint-1'} cannot be removed and stays (")
    assert len(checkpoint.found(tmp_path)) == 2


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_every_file_may_be_read_by_whom_the_users_mask_lets(tmp_path, mask):
    before = os.umask(mask)
    try:
        folder = checkpoint.save(tmp_path, 1, tensors(), STATE)
        snapshot = save_snapshot(tmp_path, 1, {"0.05/unet.a": torch.ones(1)})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (*folder.iterdir(), snapshot)} == {0o666 & ~mask}


# ------------------------------------------------------------------------------------------------------------- several


def test_the_newest_is_the_one_of_the_highest_number(tmp_path):
    for step in (9, 100, 20):
        checkpoint.save(tmp_path, step, tensors(step), STATE)
    for name in (
        "checkpoint-best",
        "checkpoint-200-copy",
        ".checkpoint-300",
        "checkpoint-0500",
    ):
        checkpoint.save(tmp_path, 1, tensors(), STATE).rename(tmp_path / name)
    (tmp_path / "checkpoint-400").mkdir()
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert checkpoint.latest(tmp_path)[1]["step"] == 100


@pytest.mark.parametrize("limit, left", [(None, [1, 2, 10]), (1, [10]), (2, [2, 10]), (3, [1, 2, 10]), (9, [1, 2, 10])])
def test_the_oldest_are_removed(tmp_path, limit, left):
    others = ["checkpoint-best", "checkpoint-3-copy", "samples"]
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, tensors(), STATE)
    for name in others:
        (tmp_path / name).mkdir()
    checkpoint.prune(tmp_path, limit, 10)
    assert [path.name for path in checkpoint.found(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert all((tmp_path / name).is_dir() for name in others)
    checkpoint.prune(tmp_path, 1, 10)
    checkpoint.prune(tmp_path, 1, 10)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-10"]


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("damaged", [4, 9])
def test_a_damaged_one_takes_no_place_of_a_good_one(tmp_path, kind, damaged):
    """The run went on from 2 or 3, with another checkpointing_steps than the one that wrote the damaged one."""
    for step in (2, 3, 4, 9):
        checkpoint.save(tmp_path, step, tensors(step), STATE)
    shutil.rmtree(tmp_path / f"checkpoint-{13 - damaged}")
    DAMAGE[kind](tmp_path / f"checkpoint-{damaged}")
    checkpoint.save(tmp_path, 5, tensors(5), STATE)
    checkpoint.prune(tmp_path, 2, 5)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-3", "checkpoint-5"]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_one_just_written_stays_whatever_the_numbers(tmp_path, limit):
    for step in (7, 8, 9, 3):  # a run that was taken up again at an early step, in the same folder
        checkpoint.save(tmp_path, step, tensors(step), STATE)
    checkpoint.prune(tmp_path, limit, 3)
    names = [path.name for path in checkpoint.found(tmp_path)]
    assert names == ["checkpoint-3", "checkpoint-8", "checkpoint-9"][:1] + ["checkpoint-8", "checkpoint-9"][3 - limit :]


def test_a_kept_one_is_read_once(tmp_path, monkeypatch):
    read, load = [], checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda folder: (read.append(folder.name), load(folder))[1])
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, tensors(step), STATE)
        checkpoint.prune(tmp_path, 3, step)
    assert read == [f"checkpoint-{step}" for step in range(1, 5)]


def test_tensors_are_read_when_they_are_asked_for(tmp_path):
    loaded, _ = checkpoint.load(checkpoint.save(tmp_path, 1, tensors(), STATE))
    assert loaded["weights"].shapes() == {"unet.a": [3, 4], "unet.b": [4]} and len(loaded["weights"]) == 2
    assert "unet.c" not in loaded["weights"]
    with pytest.raises(KeyError, match="unet.c"):
        loaded["weights"]["unet.c"]
