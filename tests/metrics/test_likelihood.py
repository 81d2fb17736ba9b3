"""Likelihoods beside those of Gaussian mixtures, whose networks and densities are known in closed form."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mixtures import mixture, randn

from mezzotint import MezzotintScheduler
from mezzotint_training.benchmarks.closed_form import ClosedFormNetwork, GaussianMixture
from mezzotint_training.metrics.likelihood import flow_log_density, likelihood, variational_bound
from mezzotint_training.metrics.pictures import Real

VARIANCE = 0.05
SAID = {"dark": -1.0, "light": 1.0, "": torch.nan}  # means that captions name
SIGMA = 0.01  # sigma_0 / alpha_0 of the default schedule


@pytest.fixture(scope="module")
def known():
    """Samples of a mixture (8, 1, 2, 2), its network of the default schedule, and its density at the least noise."""
    scheduler = MezzotintScheduler()
    assert float(scheduler.log_sigmas[0].exp()) == pytest.approx(SIGMA, rel=1e-3)
    means, covariances, weights = mixture()
    kinds = torch.arange(8) % 3
    noise = torch.linalg.cholesky(covariances)[kinds] @ randn(8, 4, 1, seed=7)
    samples = means[kinds] + noise.reshape(8, 1, 2, 2)
    parts = torch.distributions.MultivariateNormal(means.flatten(1), covariances + SIGMA**2 * torch.eye(4).double())
    density = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), parts)
    denoise = ClosedFormNetwork(GaussianMixture(means, covariances, weights), scheduler)

    def network(x, timesteps):
        if len(timesteps.unique()) == 1:
            return denoise(x, timesteps[0])
        return torch.cat([denoise(x[i : i + 1], timesteps[i]) for i in range(len(x))])

    return SimpleNamespace(
        scheduler=scheduler, network=network, samples=samples, log_density=lambda x: density.log_prob(x.flatten(1))
    )


def test_the_flow_has_the_density_of_a_mixture(known):
    found = flow_log_density(known.network, known.scheduler, known.samples, None)
    torch.testing.assert_close(found, known.log_density(known.samples), rtol=5e-3, atol=5e-3)


def test_solvers_and_tolerances_agree(known):
    first = flow_log_density(known.network, known.scheduler, known.samples, None)
    finer = flow_log_density(known.network, known.scheduler, known.samples, None, 1e-6)
    other = flow_log_density(known.network, known.scheduler, known.samples, None, 1e-6, "DOP853")
    torch.testing.assert_close(first, finer, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(other, finer, rtol=1e-3, atol=1e-3)


def test_hutchinsons_mean_is_the_exact_trace(known):
    exact = flow_log_density(known.network, known.scheduler, known.samples[:1], None)
    one = known.samples[:1].expand(1000, -1, -1, -1)
    found = flow_log_density(known.network, known.scheduler, one, randn(1, 1000, 1, 2, 2, seed=3).sign())
    error = float(found.std()) / 1000**0.5
    assert 0.001 < error < 0.1 and abs(float(found.mean() - exact)) < 3 * error
    # of several probes for each sample, the mean
    several = flow_log_density(known.network, known.scheduler, one[:250], randn(4, 250, 1, 2, 2, seed=4).sign())
    assert float(several.std()) == pytest.approx(float(found.std()) / 2, rel=0.25)


def test_the_bound_is_the_density_after_the_least_noise_and_lies_above(known):
    found = []
    for seed in range(8):
        generators = [torch.Generator().manual_seed(8 * seed + i) for i in range(8)]
        terms = variational_bound(known.network, known.scheduler, known.samples, generators)
        assert terms["diffusion"].shape == (8, 64) and terms["prior"].max() < 1e-3
        found.append(terms["prior"] + terms["reconstruction"] + terms["diffusion"].sum(1))
    found = torch.stack(found)
    noisy = known.samples + SIGMA * randn(4096, 1, 1, 2, 2)[:, :, 0, None]
    after = -known.log_density(noisy.flatten(0, 1)).reshape(-1, 8).mean(0)
    error = found.std(0) / 8**0.5
    assert ((found.mean(0) - after).abs() < 4 * error + 0.02).all()
    assert abs(float(found.mean() - after.mean())) < 0.01 * abs(float(after.mean())) + 3 * float(error.norm()) / 8
    assert found.mean() > -known.log_density(known.samples).mean()


class Captioned(torch.nn.Module):
    """A network of pictures of two pixels, both around -1 or both around 1 with variance `VARIANCE`: which of the two,
    the captions "dark" and "light" say."""

    config = SimpleNamespace(cross_attention_dim=1, sample_mean=(0.1,), sample_std=(0.5,))
    dtype = torch.float32
    scheduler = MezzotintScheduler()

    def forward(self, x, timesteps, texts, encoder_attention_mask, return_dict):
        angle = self.scheduler.timesteps_to_sigmas(timesteps).atan().reshape(-1, 1, 1, 1)
        alpha, sigma = angle.cos(), angle.sin()
        variance = alpha**2 * VARIANCE + sigma**2  # of x_t
        mean = (alpha * x.sum((1, 2, 3), keepdim=True) / variance).tanh()
        said = texts.reshape(-1, 1, 1, 1)
        mean = torch.where(said.isnan(), mean, said)
        x_0 = mean + alpha * VARIANCE / variance * (x - alpha * mean)
        return ((alpha * x - x_0) / sigma,)


def captioned_pipe():
    return SimpleNamespace(
        unet=Captioned(), scheduler=Captioned.scheduler, device=torch.device("cpu"), modality="image", word="picture",
        encode_prompt=lambda captions, *_, **__: (torch.tensor([SAID[x] for x in captions]), None, None, None),
    )  # fmt: skip


def test_bits_are_of_bytes_and_a_caption_saves_what_it_says():
    """Two far Gaussians, of which a caption names one: it saves 1 bit a picture."""
    pipe = captioned_pipe()
    captions = ["dark", "light"] * 8
    normal = torch.tensor([-1.0, 1.0] * 8)[:, None, None, None] + VARIANCE**0.5 * randn(16, 1, 1, 2)
    pixels = (((0.5 * normal + 0.1) + 1) * 127.5).round().byte()
    pictures = Real(pixels, [[text] for text in captions], torch.full((16,), -1))
    found = likelihood(pipe, pictures, 0, 1e-4, batch_size=5, seed=0, progress=False)

    spread = (VARIANCE + SIGMA**2) ** 0.5 * 0.5 * 127.5
    center = (1 + 0.1 + 0.5 * torch.tensor([-1.0, 1.0] * 8)) * 127.5
    gaussian = torch.distributions.Normal(center[:, None, None, None].double(), spread)
    bits = -gaussian.log_prob(pixels.double()) / np.log(2)
    assert found["dimensions"] == 2 and found["pictures"] == 16
    assert found["with_caption"]["flow"]["value"] == pytest.approx(float(bits.mean()), rel=2e-3)
    assert found["without_caption"]["flow"]["value"] == pytest.approx(float(bits.mean()) + 0.5, rel=2e-3)
    assert found["caption_saves"]["flow"]["value"] == pytest.approx(1, abs=0.01)
    for of in ("with_caption", "without_caption"):
        assert found[of]["bound"]["value"] == pytest.approx(found[of]["flow"]["value"], abs=0.2)
        assert len(found[of]["diffusion"]) == 4
        total = found[of]["prior"] + found[of]["reconstruction"] + sum(found[of]["diffusion"])
        assert total == pytest.approx(found[of]["bound"]["value"])
    whole = likelihood(pipe, pictures, 0, 1e-4, batch_size=16, seed=0, progress=False)
    assert whole["with_caption"]["bound"]["value"] == pytest.approx(found["with_caption"]["bound"]["value"])
    assert whole["with_caption"]["flow"]["value"] == pytest.approx(found["with_caption"]["flow"]["value"], rel=1e-3)


class Several(torch.nn.Module):
    """A network without text of a few values (K, C, L) with weights (K,), each with a variance (C, 1) around it, in
    [-1, 1] units, which may be 0."""

    dtype = torch.float32
    scheduler = MezzotintScheduler()

    def __init__(self, values, weights, variances, std):
        super().__init__()
        self.config = SimpleNamespace(cross_attention_dim=None, sample_mean=(0.1,) * len(std), sample_std=std)
        std = torch.tensor(std)[:, None]
        self.values, self.weights, self.variances = (values - 0.1) / std, weights, variances / std**2

    def forward(self, x, timesteps, texts, encoder_attention_mask, return_dict):
        angle = self.scheduler.timesteps_to_sigmas(timesteps).atan().reshape(-1, 1, 1, 1)
        alpha, sigma = angle.cos(), angle.sin()
        variance = alpha**2 * self.variances + sigma**2  # (B, 1, C, 1), of x_t around each
        away = x[:, None] - alpha * self.values  # (B, K, C, L)
        of_each = (self.weights.log() - (away**2 / variance).flatten(2).sum(2) / 2).softmax(1)[:, :, None, None]
        x_0 = (of_each * (self.values + alpha * self.variances / variance * away)).sum(1)
        return ((alpha[:, 0] * x - x_0) / sigma[:, 0],)


def of_several(network, modality, content):
    pipe = SimpleNamespace(
        unet=network, scheduler=Several.scheduler, device=torch.device("cpu"), modality=modality, encode_prompt=None
    )
    pictures = Real(content, [["what"]] * len(content), torch.full((len(content),), -1))
    return likelihood(pipe, pictures, 0, 1e-5, batch_size=len(content), seed=0, progress=False)["without_caption"]


def test_bits_that_are_single_cost_what_their_probability_says():
    """Strings of two bits, as molecules are of more: of probabilities 1/2, 1/4 and twice 1/8."""
    values = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])[:, None]  # (K, 1, 2)
    network = Several(values, torch.tensor([0.5, 0.25, 0.125, 0.125]), torch.zeros(1, 1), (0.9,))
    content = (255 * (values > 0)).byte()
    for row, bits in enumerate((1, 2, 3, 3)):
        found = of_several(network, "molecules", content[[row] * 16])
        assert found["flow"]["value"] == pytest.approx(bits / 2, abs=4e-3)
        low, high = found["bound"]["interval"]
        assert found["bound"]["value"] == pytest.approx(bits / 2, abs=0.25) and low < bits / 2 + 0.05 < high + 0.1
        assert found["reconstruction"] == pytest.approx(0, abs=1e-9)


def test_sounds_are_of_16_bits_with_one_that_says_where_they_are():
    """A sound of one number, normally distributed, that is there in three of four."""
    values, variances = torch.tensor([[0.1, 1.0], [0.1, -1.0]])[..., None], torch.tensor([[0.04], [0.0]])
    network = Several(values, torch.tensor([0.75, 0.25]), variances, (0.2, 0.8))
    wave = (6000 * randn(16, 1, 1, seed=5) + 3277).round().clamp(-32768, 32767)
    content = torch.cat([wave, torch.full_like(wave, 32767)], 1).to(torch.int16)  # (N, 2, 1)
    found = of_several(network, "audio", content)
    normal = torch.distributions.Normal(32768 * 0.1, 32768 * (0.04 + (SIGMA * 0.2) ** 2) ** 0.5)
    bits = -normal.log_prob(wave.double()) / np.log(2) - np.log2(0.75)
    assert found["flow"]["value"] == pytest.approx(float(bits.mean()) / 2, rel=1e-3)
    assert found["bound"]["value"] == pytest.approx(float(bits.mean()) / 2, abs=0.3)


def test_a_network_without_finite_answers_is_said(known):
    with pytest.raises(ValueError, match="^the network's velocity or its divergence is not finite at sigma 0.01$"):
        flow_log_density(lambda x, timesteps: x * float("nan"), known.scheduler, known.samples, None)
