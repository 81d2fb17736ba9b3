"""The power-function averages: what they are of a trajectory, that they go on from a file, and their snapshots."""

import os

import pytest
import torch
from averages_by_hand import average_of, walk
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mezzotint_training.learning import averages
from mezzotint_training.learning.averages import (
    LENGTHS,
    LONGEST,
    PowerFunctionAverages,
    gamma_of,
    save_snapshot,
    snapshots,
)


def test_length_and_gamma_are_each_others_inverse():
    for gamma in (1e-3, 0.72, 1.0, 6.94, 16.97, 100.0):
        # the standard deviation of the distribution Beta(gamma + 1, 1)                                       (Eq. 123)
        length = ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5
        assert length < LONGEST and gamma_of(length) == pytest.approx(gamma, rel=1e-6, abs=1e-9)
    # Figure 24
    for length, gamma in {0.25: 0.72, 0.20: 1.83, 0.15: 3.56, 0.10: 6.94, 0.05: 16.97}.items():
        assert gamma_of(length) == pytest.approx(gamma, abs=0.005)


def test_the_averages_are_those_of_the_trajectory():
    trajectory = walk(50)
    kept = PowerFunctionAverages({name: x + 100 for name, x in trajectory[0].items()})  # where it began has no weight
    for step, place in enumerate(trajectory, 1):
        kept.update(place, step)
    tensors = kept.tensors()
    assert set(tensors) == {f"{length}/unet.{x}" for length in ("0.05", "0.1") for x in "ab"}
    for length in LENGTHS:
        for name, expected in average_of(trajectory, length).items():
            torch.testing.assert_close(tensors[f"{length:g}/{name}"].double(), expected, rtol=0, atol=1e-5)


def test_they_go_on_from_a_file_bit_for_bit(tmp_path):
    trajectory = walk(30)
    kept, resumed = PowerFunctionAverages(trajectory[0]), PowerFunctionAverages(trajectory[7])
    for step, place in enumerate(trajectory, 1):
        kept.update(place, step)
        if step == 12:
            save_file(kept.tensors(), tmp_path / "averages.safetensors")
    resumed.load(load_file(tmp_path / "averages.safetensors"))
    for step, place in enumerate(trajectory[12:], 13):
        resumed.update(place, step)
    a, b = kept.tensors(), resumed.tensors()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_what_is_averaged_is_left_alone():
    place = {"unet.a": torch.nn.Parameter(torch.ones(3))}
    kept = PowerFunctionAverages(place)
    kept.update({"unet.a": torch.zeros(3)}, 2)
    assert torch.equal(place["unet.a"], torch.ones(3)) and not kept.tensors()["0.1/unet.a"].requires_grad


# ----------------------------------------------------------------------------------------------------------- snapshots


def test_a_snapshot_holds_the_averages_in_half_precision(tmp_path):
    place = {"unet.a": torch.randn(64, 64), "unet.large": torch.tensor([1e5, 1.0])}
    kept = PowerFunctionAverages(place)
    path = save_snapshot(tmp_path, 20, kept.tensors())
    assert path == tmp_path / "ema" / "step-000020.safetensors" and snapshots(tmp_path) == {20: path}
    stored = load_file(path)
    assert stored["0.05/unet.a"].dtype == torch.float16
    for key, x in kept.tensors().items():
        torch.testing.assert_close(stored[key].float(), x, rtol=2**-11, atol=1e-7)
    assert stored["0.1/unet.large"].dtype == torch.float32  # float16 ends at 65504
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"step": "20"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_snapshots_are_found_in_order_and_those_of_an_abandoned_continuation_go(tmp_path):
    assert snapshots(tmp_path) == {}
    tensors = {"0.05/a": torch.ones(2)}
    for step in (1_000_000, 20, 9, 100):
        save_snapshot(tmp_path, step, tensors)
    for other in ("step-best.safetensors", ".step-000300.safetensors", "notes.txt"):
        (tmp_path / "ema" / other).write_text("")
    assert list(snapshots(tmp_path)) == [9, 20, 100, 1_000_000]
    averages.drop_snapshots_after(tmp_path, 20)
    assert list(snapshots(tmp_path)) == [9, 20]
    averages.drop_snapshots_after(tmp_path, 1_000_000)
    assert list(snapshots(tmp_path)) == [9, 20]


@pytest.mark.parametrize("stage", ["save_file", "fsync", "replace"])
def test_a_write_that_stops_half_way_leaves_the_last_one(tmp_path, monkeypatch, stage):
    path = save_snapshot(tmp_path, 5, {"0.05/a": torch.ones(2)})

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr({"save_file": averages, "fsync": os, "replace": type(tmp_path)}[stage], stage, full)
        with pytest.raises(OSError, match="no space left"):
            save_snapshot(tmp_path, 5, {"0.05/a": torch.zeros(2)})
    assert snapshots(tmp_path) == {5: path} and torch.equal(load_file(path)["0.05/a"], torch.ones(2).half())
    save_snapshot(tmp_path, 5, {"0.05/a": torch.zeros(2)})
    assert torch.equal(load_file(path)["0.05/a"], torch.zeros(2).half())
    assert [p.name for p in path.parent.iterdir()] == [path.name]
