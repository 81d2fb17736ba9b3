"""The loss against the formula written out by hand, and against Gaussian data, whose best possible loss is known.

Of data x_0 ~ N(m, s^2), what can be said best of x_t = alpha x_0 + sigma eps leaves the posterior variance
s^2 sigma^2 / (alpha^2 s^2 + sigma^2) of x_0; noise and velocity follow from x_0 and x_t.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from mezzotint import MezzotintScheduler
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.learning.objective import denoising_loss, draw_timesteps

PREDICTIONS = ["v_prediction", "epsilon", "sample"]
SCHEDULE = {"num_train_timesteps": 400, "beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.03}
MEAN, STD = 0.4, 0.6


def alpha_sigma(timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha_t, sigma_t), shape (B, 1, 1, 1), in float64 from the betas; log(sigma / alpha) is linear between them."""
    a = np.cumprod(1 - np.linspace(0.001**0.5, 0.03**0.5, 400) ** 2)
    log_ratio = np.interp(timesteps.double().numpy(), np.arange(400), 0.5 * np.log((1 - a) / a))
    ratio = torch.from_numpy(np.exp(log_ratio)).reshape(-1, 1, 1, 1)
    return 1 / (1 + ratio**2).sqrt(), ratio / (1 + ratio**2).sqrt()


def drawn(count: int, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples, noise, timesteps."""
    generator = torch.Generator().manual_seed(seed)
    samples = MEAN + STD * torch.randn(count, 1, size, size, generator=generator)
    noise = torch.randn(count, 1, size, size, generator=generator)
    return samples, noise, 399 * torch.rand(count, generator=generator)


class Network:
    """Any function of the noisy sample and its timestep, which remembers what it was asked."""

    def __init__(self, function):
        self.function = function

    def __call__(self, sample, timestep, encoder_hidden_states, encoder_attention_mask, return_dict):
        assert return_dict is False
        self.asked = (sample, timestep, encoder_hidden_states, encoder_attention_mask)
        return (self.function(sample, timestep),)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_it_is_the_formula(prediction):
    samples, noise, timesteps = drawn(6, 4)
    timesteps[:2] = torch.tensor([0.0, 399.0])  # both ends of the schedule
    text, mask = torch.randn(6, 3, 8), torch.ones(6, 3, dtype=torch.bool)
    network = Network(lambda x, t: torch.tanh(x) + t.reshape(-1, 1, 1, 1) / 400)
    scheduler = MezzotintScheduler(prediction_type=prediction, **SCHEDULE)
    loss = denoising_loss(network, scheduler, samples, noise, timesteps, text, mask)

    alpha, sigma = alpha_sigma(timesteps)
    noisy = alpha * samples + sigma * noise
    target = {"v_prediction": alpha * noise - sigma * samples, "epsilon": noise, "sample": samples}[prediction]
    expected = [
        sum((a - b) ** 2 for a, b in zip(out.flatten().tolist(), wanted.flatten().tolist(), strict=True)) / 16
        for out, wanted in zip(torch.tanh(noisy) + timesteps.reshape(-1, 1, 1, 1) / 400, target, strict=True)
    ]
    assert loss.shape == (6,) and loss.dtype == torch.float32
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    np.testing.assert_allclose(network.asked[0], noisy, atol=1e-5)
    np.testing.assert_allclose(network.asked[1], timesteps, atol=1e-4)
    assert network.asked[2] is text and network.asked[3] is mask


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_best_network_has_the_loss_that_is_left(prediction):
    samples, noise, timesteps = drawn(200, 64)
    alpha, sigma = alpha_sigma(timesteps)
    left = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # the variance of x_0 given x_t
    # eps = (x_t - alpha x_0) / sigma and v = (alpha x_t - x_0) / sigma
    left = (left * {"v_prediction": 1 / sigma**2, "epsilon": alpha**2 / sigma**2, "sample": 1}[prediction]).flatten()

    def best(x, t):
        x_0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)  # E[x_0 | x_t]
        return {"v_prediction": (alpha * x - x_0) / sigma, "epsilon": (x - alpha * x_0) / sigma, "sample": x_0}[
            prediction
        ]

    scheduler = MezzotintScheduler(prediction_type=prediction, **SCHEDULE)
    loss = denoising_loss(Network(best), scheduler, samples, noise, timesteps).double()
    ratio = loss / left  # of 4,096 squares of standard normals each
    assert (ratio - 1).abs().max() < 5 * (2 / 4096) ** 0.5
    assert abs(ratio.mean() - 1) < 4 * (2 / 4096 / 200) ** 0.5

    # the best is better than any other: one that is off by d everywhere loses d^2
    off = denoising_loss(Network(lambda x, t: best(x, t) + 0.5), scheduler, samples, noise, timesteps).double()
    # whose cross term is twice 0.5 times a mean of 4,096 normals of variance `left`
    assert ((off - loss - 0.25).abs() < 5 * (left / 4096) ** 0.5).all()


def test_unit_gaussian_data_teach_no_velocity():
    """At unit variance velocity and noisy sample are uncorrelated: the best v is 0 and its loss 1 at every level."""
    _, noise, timesteps = drawn(50, 64)
    samples = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    loss = denoising_loss(Network(lambda x, t: torch.zeros_like(x)), MezzotintScheduler(), samples, noise, timesteps)
    assert (loss - 1).abs().max() < 5 * (2 / 4096) ** 0.5
    loss_by_half = denoising_loss(Network(lambda x, t: 0.5 * x), MezzotintScheduler(), samples, noise, timesteps)
    assert (loss_by_half - 1.25).abs().max() < 0.15


def test_a_sample_keeps_its_loss_in_any_batch(make_unet):
    """So that gradients may be accumulated: the mean over eight is the mean of the means over four twos."""
    unet = make_unet(in_channels=1, out_channels=1).train()
    samples, noise, timesteps = drawn(8, 8)
    text = torch.randn(8, 5, 16, generator=torch.Generator().manual_seed(2))
    mask = torch.arange(5)[None] < torch.tensor([5, 1, 3, 2, 4, 5, 5, 1])[:, None]
    scheduler = MezzotintScheduler()

    def loss(part: slice) -> torch.Tensor:
        return denoising_loss(unet, scheduler, samples[part], noise[part], timesteps[part], text[part], mask[part])

    whole = loss(slice(8))
    whole.mean().backward()
    gradients = [p.grad.clone() for p in unet.parameters()]
    unet.zero_grad()
    parts = [loss(slice(i, i + 2)) for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-6)
    for part in parts:
        (part.mean() / 4).backward()
    assert len(gradients) > 50
    for parameter, gradient in zip(unet.parameters(), gradients, strict=True):
        scale = max(gradient.abs().max().item(), 1e-4)
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-4 * scale)


def test_the_loss_of_half_precision_is_in_full():
    samples, noise, timesteps = drawn(4, 8)
    scheduler = MezzotintScheduler()
    network = Network(lambda x, t: torch.zeros_like(x, dtype=torch.bfloat16))
    loss = denoising_loss(network, scheduler, samples, noise, timesteps)
    expected = denoising_loss(Network(lambda x, t: torch.zeros_like(x)), scheduler, samples, noise, timesteps)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


# --------------------------------------------------------------------------------------------------- which noise level


def drawn_levels(count: int = 20_000, **settings) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps of evenly spread numbers, and log sigma at each."""
    config, scheduler = TrainConfig(dataset_name="digits", **settings), MezzotintScheduler()
    timesteps = draw_timesteps(config, scheduler, (torch.arange(count) + 0.5) / count)
    assert timesteps.shape == (count,) and timesteps.min() >= 0 and timesteps.max() <= 999
    assert (timesteps.diff() >= 0).all()  # a larger number is a higher noise level
    return timesteps.numpy(), scheduler.timesteps_to_sigmas(timesteps.float()).log().numpy()


@pytest.mark.parametrize(
    ("scheme", "law"),
    [("logit_normal", stats.norm(-0.4, 0.9)), ("laplace", stats.laplace(-0.4, 0.9 / 2**0.5))],
)
def test_noise_levels_follow_the_law(scheme, law):
    _, levels = drawn_levels(weighting_scheme=scheme, logit_mean=-0.4, logit_std=0.9)
    inside = (levels > -4.5) & (levels < 4.9)  # the schedule has log sigma from -4.6 to 5.1
    expected = law.ppf((np.arange(len(levels)) + 0.5) / len(levels))
    assert inside.mean() > 0.99
    np.testing.assert_allclose(levels[inside], expected[inside], atol=2e-3)


def test_by_default_any_timestep_is_as_likely():
    timesteps, _ = drawn_levels(1000, weighting_scheme="none")
    np.testing.assert_allclose(timesteps, 999 * (np.arange(1000) + 0.5) / 1000, rtol=1e-6)


def test_ends_of_the_range_are_finite():
    scheduler = MezzotintScheduler(rescale_betas_zero_snr=True)
    for scheme in ("logit_normal", "laplace"):
        config = TrainConfig(dataset_name="digits", weighting_scheme=scheme, logit_std=30)
        assert draw_timesteps(config, scheduler, torch.tensor([0.0, 1 - 2**-24])).tolist() == [0, 999]
    with pytest.raises(UserError, match="logit_std must be a number above 0: got 0"):
        TrainConfig(dataset_name="digits", logit_std=0)


@pytest.mark.parametrize("scheme", ["logit_normal", "laplace"])
@pytest.mark.parametrize(("mean", "std"), [(1e308, 1.0), (-1e308, 1.0), (0.0, 1e308), (1e308, 1e308), (0.0, 1e-300)])
def test_levels_are_levels_whatever_they_are_drawn_around(scheme, mean, std):
    config = TrainConfig(dataset_name="digits", weighting_scheme=scheme, logit_mean=mean, logit_std=std)
    timesteps = draw_timesteps(config, MezzotintScheduler(), torch.linspace(0, 1, 101)[:-1])
    assert bool(((timesteps >= 0) & (timesteps <= 999)).all())
