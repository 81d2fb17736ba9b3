"""The parts of the benchmark of tasks that could be wrong without anybody seeing it."""

import numpy as np
import torch

from mezzotint_training.benchmarks.task_quality import evaluations, nearest, repaint
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
