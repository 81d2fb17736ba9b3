"""Captions and rows judged by the likelihoods of a mixture of two Gaussians, which are known in closed form."""

import pytest
import torch
from mixtures import randn
from test_likelihood import SIGMA, VARIANCE, captioned_pipe

from mezzotint_training.metrics.outliers import outliers
from mezzotint_training.metrics.pictures import Real
from mezzotint_training.metrics.zero_shot import classify

MEAN = torch.tensor([-1.0, 1.0])  # of "dark" and of "light"


def pixels_of(normal: torch.Tensor) -> torch.Tensor:
    return (((0.5 * normal + 0.1) + 1) * 127.5).round().clamp(0, 255).byte()


@pytest.fixture(scope="module")
def pipe():
    return captioned_pipe()


def test_captions_are_as_probable_as_in_closed_form(pipe):
    """On the way from one mean to the other the odds are known: (x - m_dark)^2 against (x - m_light)^2."""
    sides = torch.linspace(-0.06, 0.06, 7)
    pixels = pixels_of(sides.reshape(-1, 1, 1, 1).expand(-1, 1, 1, 2))
    normal = (pixels / 127.5 - 1 - 0.1) / 0.5
    log_p = -((normal - MEAN[:, None, None, None, None]) ** 2).flatten(2).sum(2).T / (2 * (VARIANCE + SIGMA**2))
    found = classify(pipe, pixels, ["dark", "light"], 7, 0, rounds=400, progress=False)
    probability = found.probabilities[:, 1]
    torch.testing.assert_close(probability.float(), log_p.softmax(1)[:, 1], atol=0.15, rtol=0)
    assert (found.best == log_p.argmax(1))[sides.abs() > 0.02].all()


def test_what_is_clear_is_decided_early_and_whatever_the_batch(pipe):
    normal = MEAN.repeat(20)[:, None, None, None] + VARIANCE**0.5 * randn(40, 1, 1, 2)
    found = classify(pipe, pixels_of(normal), ["light", "dark"], 64, 3, progress=False)
    assert (found.best == torch.tensor([1, 0]).repeat(20)).all()
    assert found.evaluations < 0.3 * 2 * 4 * 32
    again = classify(pipe, pixels_of(normal), ["light", "dark"], 9, 3, progress=False)
    torch.testing.assert_close(again.nats, found.nats)


def test_a_strange_picture_and_a_wrong_caption_are_found(pipe):
    words = ["dark", "light"] * 32
    normal = MEAN.repeat(32)[:, None, None, None] + VARIANCE**0.5 * randn(64, 1, 1, 2, seed=1)
    normal[10] = torch.tensor([-2.0, 0.5])  # no dark one
    words[7], words[20] = "dark", "light"  # which they are not
    known = Real(pixels_of(normal), [[word] for word in words], torch.full((64,), -1), torch.arange(100, 164))
    other = MEAN.repeat(32)[:, None, None, None] + VARIANCE**0.5 * randn(64, 1, 1, 2, seed=2)
    held_out = Real(pixels_of(other), [["dark"], ["light"]] * 32, torch.full((64,), -1), torch.arange(64))
    found = outliers(pipe, known, held_out, 25, 0, deviations=6.0)
    # under the wrong caption a picture is as unlikely as one that is unlike all
    assert {row["row"] for row in found["unlike"]} == {107, 110, 120}
    assert {row["row"]: row["caption"] for row in found["captions"]} == {107: "dark", 120: "light"}
    assert all(row["costs"] > 10 for row in found["captions"])
    assert found["dimensions"] == 2 and found["pictures"] == {"known": 64, "held_out": 64}
    # of the same distribution: nothing is remembered
    low, high = found["told_apart"]["interval"]
    assert low < 0.5 < high
    gaussian = torch.distributions.Normal(127.5 * (1.1 + 0.5 * MEAN.repeat(32)), 127.5 * 0.5 * VARIANCE**0.5)
    bits = -gaussian.log_prob(held_out.pixels[:, 0, 0].T.double()).mean() / torch.log(torch.tensor(2.0))
    assert found["bits_per_dimension"]["held_out"]["value"] == pytest.approx(float(bits), abs=0.15)


def test_rows_that_a_network_knows_by_heart_are_told_apart(pipe):
    """Known pictures at the means, as a network has them that has learned them by heart, and held-out ones three
    standard deviations away: likelier by 4.5 / ln 2 bits a dimension."""
    words, normal = [["dark"], ["light"]] * 32, MEAN.repeat(32)[:, None, None, None].expand(-1, 1, 1, 2)
    sets = (Real(pixels_of(x), words, torch.full((64,), -1)) for x in (normal, normal + 3 * VARIANCE**0.5))
    found = outliers(pipe, *sets, 64, 0, deviations=6.0)
    assert found["told_apart"]["value"] > 0.99 and found["unlike"] == found["captions"] == []
    known, held_out = (found["bits_per_dimension"][name]["value"] for name in ("known", "held_out"))
    assert held_out - known == pytest.approx(4.5 / 0.6931, rel=0.05)
