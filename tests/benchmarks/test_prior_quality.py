"""Measures of the prior's benchmark that no library has."""

import pytest
import torch

from mezzotint_training.benchmarks.prior_quality import diversity


def test_diversity_is_the_mean_distance_of_two_in_a_group():
    features = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 2.0]]], dtype=torch.float64)
    value, around = diversity(features)
    assert value == pytest.approx((5 + 1) / 2) and around == pytest.approx(1.96 * 8**0.5 / 2**0.5)
