"""The state of an unfinished run: what is written comes back bit for bit, and what was damaged is not believed."""

import json
import os

import pytest
import torch

from mezzotint_training import checkpoint
from mezzotint_training.config import UserError

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


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=f"must be a checkpoint folder with a state.json: got {folder}$"):
            checkpoint.load(folder)
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / "none") is None


@pytest.mark.parametrize("stage", ["save_file", "fsync", "rename"])
def test_a_write_that_stops_half_way_leaves_the_last_one(tmp_path, monkeypatch, stage):
    checkpoint.save(tmp_path, 5, tensors(5), STATE)

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    place = {"save_file": checkpoint, "fsync": os, "rename": type(tmp_path)}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(place, stage, full)
        with pytest.raises(OSError, match="no space left"):
            checkpoint.save(tmp_path, 10, tensors(10), STATE)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-5"]
    assert checkpoint.latest(tmp_path)[1]["step"] == 5
    checkpoint.save(tmp_path, 10, tensors(10), STATE)  # over the remains
    assert_bits_equal(checkpoint.latest(tmp_path)[0], tensors(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5"]


# ------------------------------------------------------------------------------------------------------------- several


def test_the_newest_is_the_one_of_the_highest_number(tmp_path):
    for step in (9, 100, 20):
        checkpoint.save(tmp_path, step, tensors(step), STATE)
    for name in (
        "checkpoint-best",
        "checkpoint-200-copy",
        ".checkpoint-300",
    ):  # the last: a write that stopped half-way
        checkpoint.save(tmp_path, 1, tensors(), STATE).rename(tmp_path / name)
    (tmp_path / "checkpoint-400").mkdir()
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert checkpoint.latest(tmp_path)[1]["step"] == 100


@pytest.mark.parametrize("limit, left", [(None, [1, 2, 10]), (1, [10]), (2, [2, 10]), (3, [1, 2, 10]), (9, [1, 2, 10])])
def test_the_oldest_are_removed(tmp_path, limit, left):
    others = ["checkpoint-best", "checkpoint-3-copy", "samples"]
    for step in (10, 1, 2):
        checkpoint.save(tmp_path, step, tensors(), STATE)
    for name in others:
        (tmp_path / name).mkdir()
    checkpoint.prune(tmp_path, limit)
    assert [path.name for path in checkpoint.found(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert all((tmp_path / name).is_dir() for name in others)
    checkpoint.prune(tmp_path, 1)
    checkpoint.prune(tmp_path, 1)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-10"]


# ----------------------------------------------------------------------------------------------------------- optimizer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_goes_on_where_it_was(tmp_path, kind):
    def made():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        return model, kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))

    def step(model, optimizer, i):
        model(torch.full((2, 3), 0.1 * i)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = made()
    for i in range(3):
        step(model, optimizer, i)
    state = {"weights": dict(model.named_parameters()), "optimizer": checkpoint.optimizer_tensors(optimizer)}
    checkpoint.save(tmp_path, 3, state, {})
    for i in range(3, 6):
        step(model, optimizer, i)

    other, resumed = made()
    loaded, _ = checkpoint.latest(tmp_path)
    other.load_state_dict(loaded["weights"])
    checkpoint.load_optimizer(resumed, loaded["optimizer"])
    for i in range(3, 6):
        step(other, resumed, i)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert_bits_equal(*({"": checkpoint.optimizer_tensors(x)} for x in (optimizer, resumed)))
