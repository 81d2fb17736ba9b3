"""The prior's benchmark: measures that no library has, and settings that the programs take."""

import argparse

import pytest
import torch

from mezzotint_training.benchmarks.prior_quality import diversity, settings


@pytest.mark.parametrize("name", ["digits", "emoji-32"])
@pytest.mark.parametrize(
    "part, more, task",
    [
        ("towers", [], None),
        ("decoder", ["--two_towers", "towers"], "unclip"),
        ("prior", ["--decoder", "decoder"], None),
        ("straight", ["--two_towers", "towers"], "unclip"),
        ("ordinary", [], "text_to_image"),
    ],
)
def test_every_part_has_settings_of_its_program(name, part, more, task, tmp_path):
    args = argparse.Namespace(set=name, data=None if name == "digits" else "emoji", text="text")
    config = settings(args, part, tmp_path, *more)
    assert config.output_dir == str(tmp_path / part)
    assert task is None or config.task == task


def test_diversity_is_the_mean_distance_of_two_in_a_group():
    features = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 2.0]]], dtype=torch.float64)
    value, around = diversity(features)
    assert value == pytest.approx((5 + 1) / 2) and around == pytest.approx(1.96 * 8**0.5 / 2**0.5)
