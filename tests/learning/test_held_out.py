"""The held-out loss against its definition, and its verdicts on courses that are made up."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mezzotint import MezzotintScheduler
from mezzotint_training.learning.held_out import LEVELS, HeldOutLoss, LossHistory, _difference


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def items(count: int, sizes=((8, 8),)) -> list[dict]:
    generator = torch.Generator().manual_seed(5)
    return [
        {"sample": torch.randn(1, *sizes[i % len(sizes)], generator=generator), "caption": f"picture {i}"}
        for i in range(count)
    ]


class Echo(torch.nn.Module):
    """A network that says what it was given, shifted by its text."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, sample, timesteps, encoder_hidden_states=None, encoder_attention_mask=None, return_dict=True):
        self.calls.append((sample, timesteps))
        return (sample + encoder_hidden_states[:, :1, :1, None],)


def encode(captions):
    return torch.tensor([float(c.split()[1]) / 10 for c in captions])[:, None, None], None


def test_it_is_the_loss_at_fixed_levels_and_noise(accelerator):
    scheduler, pictures = MezzotintScheduler(), items(5)
    losses = HeldOutLoss(pictures, 3, accelerator).losses(Echo(), scheduler, encode)
    assert losses.shape == (5, 4)
    a = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for number, item in enumerate(pictures):
        for i, u in enumerate(LEVELS):
            noise = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(4 * number + i)).numpy()
            level = np.interp(u * 999, np.arange(1000), np.log(1 / a - 1))
            alpha, sigma = (1 + np.exp(level)) ** -0.5, (1 + np.exp(-level)) ** -0.5
            x = item["sample"].numpy()
            error = (alpha * x + sigma * noise + number / 10) - (alpha * noise - sigma * x)
            assert losses[number, i] == pytest.approx((error**2).mean(), rel=1e-4)


def test_how_it_is_batched_does_not_matter(accelerator):
    pictures = items(7, sizes=((8, 8), (8, 16), (4, 4)))
    expected = HeldOutLoss(pictures, 1, accelerator).losses(Echo(), MezzotintScheduler(), encode)
    unet = Echo()
    losses = HeldOutLoss(pictures, 5, accelerator).losses(unet, MezzotintScheduler(), encode)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert max(len(sample) for sample, _ in unet.calls) == 5
    assert sum(len(sample) for sample, _ in unet.calls) == 28


@pytest.mark.parametrize("count, world", [(5, 3), (1, 3), (4, 2)])
def test_processes_share_it_out(accelerator, count, world):
    """Each process's losses, laid one after the other as `gather` does, are put back in order."""
    pictures = items(count, sizes=((8, 8), (4, 4)))
    expected = HeldOutLoss(pictures, 2, accelerator).losses(Echo(), MezzotintScheduler(), encode)

    class Process:
        device, num_processes, autocast = torch.device("cpu"), world, accelerator.autocast

        def __init__(self, rank, gather):
            self.process_index, self.gather = rank, gather

    parts, calls = [], []
    for rank in range(world):
        probe = HeldOutLoss(pictures, 2, Process(rank, lambda x: (parts.append(x), x.repeat(world))[1]))
        probe.losses(Echo(), MezzotintScheduler(), encode)
        calls.append(len(probe.batches))
    assert len({len(part) for part in parts}) == 1 and len(set(calls)) == 1
    whole = HeldOutLoss(pictures, 2, Process(0, lambda x: torch.cat(parts)))
    np.testing.assert_allclose(whole.losses(Echo(), MezzotintScheduler(), encode), expected, rtol=1e-6)


def course(*figures: tuple[float, float], noise: float = 0.0) -> list[str | None]:
    """The verdicts on (held-out, seen) losses of 64 pictures that differ among themselves far more."""
    rng = np.random.default_rng(0)
    level, history = rng.uniform(0.2, 2, (64, 4)), LossHistory()
    pairs = [[level * x + noise * rng.standard_normal((64, 4)) for x in figure] for figure in figures]
    return [history.verdict(step, *pair)["verdict"] for step, pair in enumerate(pairs)]


def test_verdicts():
    assert course((1, 1), (0.99, 0.99), (0.98, 0.98), noise=1e-3) == [None, "improving", "improving"]
    assert course((1, 1), (1, 0.99), (1, 0.98), noise=1e-2) == [None, "flat", "flat"]
    assert course((1, 1), (0.9, 0.9), (0.91, 0.8), (0.95, 0.7), noise=1e-3) == [None, "improving", *["overfitting"] * 2]
    assert course((1, 1), (1.1, 1.1), noise=1e-3) == [None, "worse"]
    assert course((1, 1), (np.nan, np.nan)) == [None, "worse"]
    # against the best before, not the last
    assert course((1, 1), (1.1, 1.1), (1.05, 1.05), noise=1e-3) == [None, "worse", "worse"]


def test_a_course_goes_on_from_its_state():
    rng = np.random.default_rng(0)
    first, second = LossHistory(), LossHistory()
    losses = [rng.uniform(0.5, 1, (16, 4)) for _ in range(6)]
    for step in range(3):
        first.verdict(step, losses[step], losses[-1 - step])
    second = LossHistory(first.state)
    for step in range(3, 6):
        pair = losses[step], losses[-1 - step]
        assert first.verdict(step, *pair) == second.verdict(step, *pair)
    assert LossHistory(LossHistory().state).verdict(0, losses[0], losses[1])["verdict"] is None


def test_a_difference_is_one_beyond_two_standard_errors():
    base = np.linspace(1, 2, 100)
    noise = np.tile([1.0, -1.0], 50)  # its standard error is 0.1 * sqrt(100 / 99)
    for mean, sign in [(0.19, 0), (0.21, 1), (-0.19, 0), (-0.21, -1)]:
        assert _difference(list(base + noise + mean), list(base)) == sign
    assert _difference([1.0], [2.0]) == 0  # of one picture nothing can be said
    assert _difference([1.0, 1.0], [1.0, 1.0]) == 0
