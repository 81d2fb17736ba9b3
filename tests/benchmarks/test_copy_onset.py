"""When copies begin: what is read of a log, and runs whose sets lie within one another."""

import argparse

import datasets
import pytest

from mezzotint_training.benchmarks import copy_onset, quality
from mezzotint_training.config.settings import TrainConfig


@pytest.mark.parametrize(
    "copying, expected",
    [
        ([False, False, True, False], {"last": 20, "seen": 30, "least": 20}),
        ([True, True, True, True], {"last": 0, "seen": 10, "least": 20}),
        ([False, False, False, False], {"last": 40, "seen": None, "least": 20}),
    ],
)
def test_the_onset_is_the_first_look_at_which_copies_are_seen(copying, expected):
    losses = [0.3, 0.2, 0.25, 0.4]
    lines = [
        {"step": 10 * (i + 1), "copying": one, "held_out_loss": loss}
        for i, (one, loss) in enumerate(zip(copying, losses, strict=True))
    ]
    assert copy_onset.onset(lines) == expected


def test_runs_go_over_their_sets_as_often_as_is_asked(tmp_path, monkeypatch):
    rows = {"text": [f"caption {i}" for i in range(100)]}
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "data" / f"{split}.parquet")
    asked = []

    def prepare(scale, data, folder, text):
        asked.append(data)
        return TrainConfig(train_data_dir=data, text_encoder_name_or_path=text, output_dir=str(folder))

    monkeypatch.setattr(copy_onset, "prepare", prepare)
    args = argparse.Namespace(data=str(tmp_path / "data"), text="text", passes=16, look_every=4, dropout=0.1)
    shared = copy_onset.settings(args, tmp_path)
    mixed = datasets.load_dataset(asked[0], split="train")["text"]
    assert sorted(mixed) == sorted(rows["text"]) and list(mixed) != rows["text"]
    small, large = (copy_onset.of(shared, count, args, 3, tmp_path / str(count)) for count in (40, 80))
    assert (small.max_train_samples, small.max_train_steps, small.validation_steps) == (40, 20, 5)
    assert (large.max_train_samples, large.max_train_steps, large.validation_steps) == (80, 40, 10)
    assert small.seed == 3 and small.unet["dropout"] == 0.1 and quality.SCALES["emoji-32"].ours != small.unet
