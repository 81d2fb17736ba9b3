"""The parts of the benchmark of tasks that could be wrong without anybody seeing it."""

import numpy as np
import torch

from mezzotint_training.benchmarks.attribute_quality import colours, follows
from mezzotint_training.benchmarks.task_quality import evaluations, nearest, quality_of, repaint
from mezzotint_training.benchmarks.task_runs import psnr


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_nearest_known_pixel_fills_a_hole():
    picture = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 12)
    mask = torch.zeros(1, 12)
    mask[:, 2:5], mask[:, 10:] = 1, 1
    assert nearest(picture, mask)[0, 0, [0, 2, 4, 10, 11]].tolist() == [0, 1, 5, 9, 9]


def test_repaint_evaluates_as_often_as_it_says_and_keeps_what_is_known(make_pipe):
    pipe = make_pipe()
    calls, forward = [], pipe.unet.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    pipe.unet.forward = counted
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=seeded(0))
    mask = (torch.rand(2, 8, 8, generator=seeded(1)) > 0.5).float()
    drawn = repaint(pipe, ["a", "b"], pixels, mask, steps=6)
    assert len(calls) == evaluations(6) > 6
    known = mask[:, None].expand_as(pixels) == 0
    assert torch.equal(drawn[known], pixels[known]) and (drawn[~known] != pixels[~known]).float().mean() > 0.9


def test_psnr_is_that_of_its_definition():
    a = torch.randint(0, 256, (3, 1, 5, 5), dtype=torch.uint8, generator=seeded(2))
    b = torch.randint(0, 256, (3, 1, 5, 5), dtype=torch.uint8, generator=seeded(3))
    squares = ((a.numpy().astype(float) - b.numpy()) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(psnr(a, b), 10 * np.log10(255**2 / squares), rtol=1e-5)


def test_segmentations_are_measured_as_known_ones_are():
    """Probabilities that keep their word: coins are thrown by them, and a doubtful pixel is wrong more often."""
    p = torch.rand(40, 32, 32, generator=seeded(4))
    truth = torch.rand(p.shape, generator=seeded(5)) < p
    dice, finds, error = quality_of(p, truth)
    # p is uniform. Half is guessed, 3/4 of it rightly. A pixel u from certainty is wrong with chance u: of wrong and
    # right ones u has the densities 8 u and 8/3 (1 - u) up to 1/2, and is greater among the wrong with chance 13/18
    assert abs(float(dice.split()[0]) - 3 / 4) < 0.01
    assert abs(float(finds) - 13 / 18) < 0.01
    assert float(error) < 0.01
    assert abs(float(quality_of(p**2, truth)[2]) - (1 / 2 - 1 / 3)) < 0.02  # says p^2 where it is p
    assert quality_of(truth.float(), truth)[0].startswith("1.000")


def test_what_is_drawn_follows_what_is_asked_for():
    levels = [1.0, 2.0, 3.0, 4.0]
    assert follows(np.array([[0.5, 1.0, 1.5, 2.0], [1.5, 2.0, 2.5, 3.0]]), levels) == ("100%", "0.50")
    assert follows(np.array([[3.0, 2.0, 2.5, 1.0]]), levels)[0] == "33%"


def test_colours_are_counted():
    picture = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    picture[:, 0, 0], picture[:, 2, 0] = 255, 50
    shares = colours(picture)[0]
    assert shares[0] == 0.75 and shares[5 * 36 + 1] == 0.25 and shares.sum() == 1
