# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The speed benchmark without its clock: statistics, settings, what is counted, and that the peer really trains."""

import argparse
import json
import os
import random
import re
from unittest import mock

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from scipy.stats import binom
from tiny_run import TEXT_ENCODER, UNET

from mezzotint_training.benchmarks import diffusers_recipe, train_speed
from mezzotint_training.benchmarks.train_speed import Measured, median_interval
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import parse_args
from mezzotint_training.config.settings import TrainConfig


@pytest.mark.parametrize("count", [1, 2, 5, 6, 9, 20, 41])
def test_interval_of_the_median_is_the_narrowest_of_order_statistics_that_covers_enough(count):
    values = list(np.random.default_rng(0).permutation(count).astype(float))  # 0 to count - 1: a value is its rank
    median, low, high, coverage = median_interval(values)
    assert median == (count - 1) / 2 and low + high == count - 1
    # the median of the population lies between them if more than `low` and at most `high` values are below it
    assert coverage == pytest.approx(binom.cdf(high, count, 0.5) - binom.cdf(low, count, 0.5))
    narrower = binom.cdf(high - 1, count, 0.5) - binom.cdf(low + 1, count, 0.5)
    assert narrower < 0.95 and (coverage >= 0.95 or low == 0)


def test_first_window_of_a_run_is_passed_over():
    lines = [{"data_wait": wait, "peak_memory": memory} for wait, memory in ((0.9, 5), (0.1, 6), (0.3, 7))]
    result = train_speed.measured(lines, [100.0, 102.0, 105.0], pictures=20)
    assert result == Measured(images_per_second=40 / 5, peak_memory=7, data_wait=pytest.approx(0.2))


def test_operations_are_those_of_the_convolutions_counted_by_hand():
    unet = {"block_out_channels": [16], "transformer_layers_per_block": [0], "layers_per_block": 1, "in_channels": 3}
    unet |= {"out_channels": 3, "cross_attention_dim": 8}
    side, width, embedding = 4, 16, 64
    # conv_in; down and middle: two convolutions each; up: its first and its shortcut read twice the channels; conv_out
    forward = 9 * (3 * width + 4 * width**2 + 2 * width**2 + width**2 + 3 * width) + 2 * width**2
    forward = forward * side**2 + width * embedding + embedding**2 + 8 * embedding + 3 * embedding * 2 * width
    # backward is twice as much, but what nobody trains has no gradient: picture, time and (normed, trained) text
    whole = 3 * forward - 9 * 3 * width * side**2 - width * embedding
    assert train_speed.picture_flops(TrainConfig(train_data_dir="x", unet=unet), side) == 2 * whole


def test_both_programs_read_the_same_settings(tmp_path):
    args = argparse.Namespace(batch=4, workers=1, mixed_precision="bf16", train_text_encoder=False)
    config = train_speed.settings(args, "tiny", 16, tmp_path / "data")
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    assert parse_args(["--config", str(tmp_path / "run.yaml")], "") == config
    assert (config.size, config.resolution, config.train_batch_size) == (None, [16], 4)
    assert (config.mixed_precision, config.dataloader_num_workers, config.train_text_encoder) == ("bf16", 1, False)
    # nothing that shapes the networks is left to either program
    assert config.unet["cross_attention_dim"] == config.text_encoder["d_model"]
    assert config.unet.keys() >= {"in_channels", "out_channels", "block_out_channels", "layers_per_block"}


def test_runs_alternate_and_the_table_has_the_ratio_of_ours_to_the_peers(capsys, monkeypatch):
    order = []

    def run(name, config, flags, threads):
        assert (config.max_train_steps, config.logging_steps) == (20, 4)  # five windows, the first of which warms up
        order.append((name, *flags))
        return {"ours": Measured(30.0, 1e9, 0.02), "peer": Measured(20.0, 2e9, 0.1)}[name]

    monkeypatch.setattr(train_speed, "run", run)
    monkeypatch.setattr(train_speed, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    train_speed.main(
        ["--sizes", "tiny", "--resolutions", "8", "16", "--pictures", "2", "--steps", "16", "--repeats", "2"]
        + ["--cached_text", "--", "--compile"]
    )
    assert order == [("ours", "--compile"), ("peer", "--cached_text")] * 4
    table = [re.split(r" *\| *", line)[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[0] for row in table[2:]] == ["tiny", "tiny"] and [row[2] for row in table[2:]] == ["8", "16"]
    for row in table[2:]:
        assert row[3:6] == ["30", "20", "1.50 (1.50 to 1.50, 50 %)"]
        assert row[6:9] == ["1,000", "2,000", "0.50 (0.50 to 0.50, 50 %)"]
        assert row[9:11] == ["2.0 %", "10.0 %"]
    assert len({len(row) for row in table}) == 1


def test_run_is_a_process_of_its_own_whose_log_is_read_and_whose_files_are_removed(tmp_path, monkeypatch):
    program = """
import json, os, pathlib, sys, time, yaml
config = yaml.safe_load(open(sys.argv[2]))
output = pathlib.Path(config["output_dir"])
output.mkdir()
with open(output / "metrics.jsonl", "a") as log:
    for step in range(5):
        threads = int(os.environ["OMP_NUM_THREADS"])
        print(json.dumps({"peak_memory": threads, "data_wait": len(sys.argv) - 4}), file=log, flush=True)
        time.sleep(0.1)
"""
    (tmp_path / "stand_in.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(train_speed, "PROGRAMS", {"ours": "stand_in"})
    config = TrainConfig(train_data_dir="x", output_dir=str(tmp_path / "run"), train_batch_size=3, logging_steps=7)
    result = train_speed.run("ours", config, ["--compile"], threads=3)
    assert (result.peak_memory, result.data_wait) == (3, 0)  # of the threads and flags that it was given
    assert 0 < result.images_per_second < 21 / 0.05  # four windows of 21 pictures; each lasts 0.1 s or more
    assert not (tmp_path / "run").exists()


def test_failed_run_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(train_speed, "PROGRAMS", {"ours": "no_such_module"})
    with pytest.raises(UserError, match="failed with code 1: .*No module named no_such_module"):
        train_speed.run("ours", TrainConfig(train_data_dir="x", output_dir=str(tmp_path / "run")), [], threads=1)


# ------------------------------------------------------------------------------------------------------------ the peer


def test_pictures_are_transformed_as_by_torchvision():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    same = diffusers_recipe.transform(Image.fromarray(pixels), resolution=8, flip=False)
    # ToTensor and Normalize([0.5], [0.5])
    assert torch.equal(same, (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.5)
    # the shorter side is scaled to the resolution, and a square of the longer one is cut out at random
    stripes = np.zeros((4, 8, 3), dtype=np.uint8) + np.arange(8, dtype=np.uint8)[:, None] * 10
    random.seed(0)
    starts = set()
    for _ in range(100):
        crop = diffusers_recipe.transform(Image.fromarray(stripes), resolution=4, flip=True)
        row = (crop[0, 0] * 0.5 + 0.5).mul(255).round().int().tolist()
        assert row in [list(range(first, first + 40, 10))[::sign] for first in range(0, 50, 10) for sign in (1, -1)]
        starts.add((min(row), row[0] > row[1]))
    assert len(starts) == 10  # five places, each also mirrored
    assert diffusers_recipe.transform(Image.new("L", (30, 20)), resolution=10, flip=False).shape == (3, 10, 10)


@pytest.mark.parametrize("flags", [[], ["--no-train_text_encoder"], ["--no-train_text_encoder", "--cached_text"]])
def test_peer_trains_and_logs(tmp_path, flags):
    rows = {"image": [Image.new("RGB", (8, 8), "black")] * 64, "text": [["dark", "night"], ["black"]] * 32}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))})
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data/train.parquet")
    unet = UNET | {"in_channels": 3, "out_channels": 3}
    settings = {"unet": unet, "text_encoder": TEXT_ENCODER, "train_data_dir": tmp_path / "data"}
    settings |= {"output_dir": tmp_path / "run", "max_text_length": 12, "train_batch_size": 64, "max_train_steps": 4}
    settings |= {"logging_steps": 1, "learning_rate": 1e-2, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    argv = [part for name, value in settings.items() for part in (f"--{name}", text(value))]
    with (
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache"),
        mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true"}),
    ):
        try:
            assert diffusers_recipe.main([*argv, *flags]) == 0
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    # A new network says 0, and v = sqrt(abar) noise - sqrt(1 - abar) x_0 has E v^2 = abar + (1 - abar) = 1 at x_0 = -1
    assert lines[0]["loss"] == pytest.approx(1, abs=0.05)
    assert lines[-1]["loss"] < 0.95 * lines[0]["loss"]
    for line in lines:
        assert line["images_per_second"] > 0 and 0 < line["data_wait"] < 1 and line["peak_memory"] > 1e8


def text(value) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)
