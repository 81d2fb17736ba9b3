"""Noise in the scheduler's steps: SDE-DPM-Solver++, from the flow to the stochastic differential equation, and the
Langevin corrector. Closed-form mixtures are the oracle for the distribution that they draw from."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from mixtures import randn
from test_multistep import chain, ddim_table
from test_scheduling_mezzotint import PREDICTIONS, assert_equal_to, smooth_network

from mezzotint import MezzotintScheduler
from mezzotint_training.benchmarks.closed_form import ClosedFormNetwork, GaussianMixture


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------- multistep steps


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("order", [1, 2])  # stock's third has a wrong sign in its last weight
def test_steps_of_the_sde_equal_stock(order, prediction_type):
    config = {"prediction_type": prediction_type, "solver_order": order}
    ours = MezzotintScheduler(**config)
    stock = DPMSolverMultistepScheduler(**config, algorithm_type="sde-dpmsolver++", timestep_spacing="trailing")
    for n in (1, 2, 4, 20):
        stock.set_timesteps(n)
        ours.set_timesteps(timesteps=stock.timesteps.tolist())
        x = y = randn(2, 3, 4, 4).float()
        for i, t in enumerate(stock.timesteps):
            z = randn(2, 3, 4, 4, seed=i).float()
            x = ours.step(smooth_network(x, t), t, x, eta=1.0, variance_noise=z).prev_sample
            y = stock.step(smooth_network(y, t), t, y, variance_noise=z).prev_sample
            assert_equal_to(x, y, rel=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_third_order_step(eta):
    """Exact where the prediction is linear in lambda, whose integral is known,
    (1 + k) int e^((1 + k) (lambda - lambda')) D(lambda) dlambda; that of a parabola is k-diffusion's dpmpp_3m_sde."""
    sigmas = [6.0, 3.0, 1.7, 0.8, 0.3, 0.2, 0.1]
    lambdas, zero = -np.log(sigmas), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    h = lambdas[4] - lambdas[3]
    g = h - np.log(1 - eta**2 * (1 - np.exp(-2 * h))) / 2  # (1 + k) h

    def step(prediction) -> float:
        scheduler = MezzotintScheduler(prediction_type="sample", solver_order=3)
        scheduler.set_timesteps(sigmas=sigmas)
        for t, at in zip(scheduler.timesteps[:4], lambdas, strict=False):
            out = scheduler.step(zero + prediction(at), t, zero, eta=eta, variance_noise=zero)
        return out.prev_sample.item() * np.hypot(1, sigmas[4])  # over alpha'

    share = (np.arange(10_000) + 0.5) / 10_000
    integral = (g * np.exp(g * (share - 1)) * (lambdas[3] + share * h - 2)).mean()
    assert step(lambda at: at - 2) == pytest.approx(integral, rel=1e-5)

    newest, newer, old = (lambdas[[3, 2, 1]] - 2) ** 2
    r_0, r_1 = (lambdas[3] - lambdas[2]) / h, (lambdas[2] - lambdas[1]) / h
    d_0, d_1 = (newest - newer) / r_0, (newer - old) / r_1
    phi_2 = np.expm1(-g) / g + 1
    phi_3 = phi_2 / g - 0.5
    change = phi_2 * (d_0 + (d_0 - d_1) * r_0 / (r_0 + r_1)) - phi_3 * (d_0 - d_1) / (r_0 + r_1)
    assert step(lambda at: (at - 2) ** 2) == pytest.approx(-np.expm1(-g) * newest + change, rel=1e-5)


def test_the_first_step_is_ddims_at_any_eta():
    ours, ddim = MezzotintScheduler(), MezzotintScheduler(solver_order=1)
    x, z = randn(1, 1, 4, 4), randn(1, 1, 4, 4, seed=1)
    for eta in (0.0, 0.3, 0.7, 1.0):
        for scheduler in (ours, ddim):
            scheduler.set_timesteps(timesteps=[900.0, 600.5, 200.25])
        a, b = (s.step(smooth_network(x, 900), 900, x, eta=eta, variance_noise=z).prev_sample for s in (ours, ddim))
        assert_equal_to(a, b, rel=1e-5)


def test_noise_in_one_run_leaves_no_trace_in_the_next():
    x, scheduler, fresh = randn(1, 1, 4, 4), MezzotintScheduler(), MezzotintScheduler()
    for s in (scheduler, fresh):
        s.set_timesteps(6)
    for t in scheduler.timesteps:
        scheduler.step(smooth_network(x, t), t, x, eta=1.0, generator=seeded(0))
    scheduler.set_timesteps(6)
    assert torch.equal(chain(scheduler, x), chain(fresh, x))


# ------------------------------------------------------------------------------------------------- the distribution

SIDE, COUNT = 4, 1000


def known() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means, covariances and weights of three Gaussians of 16 numbers."""
    factors = randn(3, SIDE**2, SIDE**2, seed=1)
    covariances = factors @ factors.mT * 0.05 + 0.02 * torch.eye(SIDE**2).double()
    return randn(3, 1, SIDE, SIDE), covariances, torch.tensor([0.5, 0.2, 0.3]).double()


def exact() -> torch.Tensor:
    means, covariances, weights = known()
    kind = torch.multinomial(weights, COUNT, True, generator=seeded(1))
    spread = torch.linalg.cholesky(covariances)[kind] @ randn(COUNT, SIDE**2, 1, seed=2)
    return means.flatten(1)[kind] + spread[..., 0]


def p_value(x: torch.Tensor, y: torch.Tensor) -> float:
    """Of the energy distance between two sets of as many points, among those of 199 random divisions of both: where the
    sets have one distribution, it is uniform."""
    distances = torch.cdist(both := torch.cat([x, y]), both)
    side = torch.ones(len(both), 200, dtype=torch.float64)
    for i in range(200):
        side[torch.randperm(len(both), generator=seeded(i))[: len(x)] if i else slice(len(x)), i] = -1
    energy = -(side * (distances @ side)).sum(0)
    return (energy >= energy[0]).double().mean().item()


def drawn(n: int, eta: float = 0.0, corrector_steps: int = 0, snr: float = 0.16, factor: float = 1.0, **config):
    """Samples of the mixture, with `factor` times the noise that belongs into the steps."""
    scheduler = MezzotintScheduler(**config)
    network = ClosedFormNetwork(GaussianMixture(*known()), scheduler)
    scheduler.set_timesteps(n)
    generator, x = seeded(3), randn(COUNT, 1, SIDE, SIDE, seed=4)
    for i, t in enumerate(scheduler.timesteps):
        for _ in range(corrector_steps if i else 0):
            z = factor * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = scheduler.corrector_step(network(x, t), t, x, snr, noise=z)
        z = factor * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = scheduler.step(network(x, t), t, x, eta=eta, variance_noise=z).prev_sample
    return x.flatten(1)


RIGHT = [
    {"n": 20, "eta": 0.5},
    {"n": 40, "eta": 1.0},
    {"n": 40, "eta": 1.0, "solver_order": 3},
    {"n": 100, "eta": 1.0, "solver_order": 1},
    {"n": 20, "corrector_steps": 1},
    {"n": 20, "corrector_steps": 2, "eta": 0.5},
    {"n": 100, "corrector_steps": 1, "variance_type": "fixed_small"},
]
WRONG = [
    {"n": 40, "eta": 1.0, "factor": 0.8},
    {"n": 20, "corrector_steps": 1, "factor": 0.5},
    {"n": 20, "corrector_steps": 1, "factor": 0.0},
    {"n": 20, "corrector_steps": 2, "snr": 0.7},
]


@pytest.mark.parametrize("kwargs", RIGHT, ids=str)
def test_two_sample_test_cannot_tell_what_is_drawn_with_noise(kwargs):
    assert p_value(drawn(**kwargs), exact()) > 0.02


@pytest.mark.parametrize("kwargs", WRONG, ids=str)
def test_two_sample_test_tells_wrong_noise_and_long_steps(kwargs):
    assert p_value(drawn(**kwargs), exact()) == 0.005  # further than every random division


@pytest.mark.parametrize("variance", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("snr", [0.16, 0.5])
def test_corrector_ends_at_the_known_variance(variance, snr):
    """A Gaussian's Langevin steps, iterated on the map of its variance, whose fixed point is v / (1 - epsilon / 2v)."""
    scheduler, t = MezzotintScheduler(prediction_type="epsilon"), 300
    alpha, sigma = (float(x) for x in scheduler._alpha_sigma(t, torch.zeros(1, dtype=torch.float64)))
    v = alpha**2 * variance + sigma**2
    epsilon = 2 * float(scheduler.alphas[t]) * (snr * sigma) ** 2
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    keep, std = (
        scheduler.corrector_step(sigma * x / v, t, x, snr, noise=z).item() for x, z in ((one, zero), (zero, one))
    )
    end = std**2 / (1 - keep**2)
    assert end == pytest.approx(v / (1 - epsilon / (2 * v)), rel=1e-5)
    assert v < end < v / (1 - snr**2)


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("config", "call", "rule"),
    [
        ({}, {"eta": 1.5}, r"^eta must be in \[0, 1\] for multistep steps: got 1.5$"),
        ({"fitted_schedules": [ddim_table(5)]}, {"eta": 0.5}, "^eta above 0 goes with steps without a table: got the "),
        ({"fitted_schedules": [ddim_table(5)]}, {}, "^a corrector goes with steps without a table: got the fitted sch"),
        ({"consistency_steps": [5]}, {"eta": 0.5}, "^eta must be 0 with consistency_steps, .*: got 0.5$"),
        ({"consistency_steps": [5]}, {}, "^a corrector needs a network that predicts the score: got one with consis"),
    ],
    ids=str,
)
def test_noise_without_a_meaning_is_refused(config, call, rule):
    scheduler = MezzotintScheduler(**config)
    scheduler.set_timesteps(5)
    t, x = scheduler.timesteps[0], randn(1, 1, 4, 4)
    with pytest.raises(ValueError, match=rule) as error:
        scheduler.step(x, t, x, **call) if call else scheduler.corrector_step(x, t, x)
    assert "\n" not in str(error.value)


def test_a_table_begun_in_its_middle_takes_noise():
    """Its steps are DPM-Solver++'s over the table's timesteps."""
    table, plain = MezzotintScheduler(fitted_schedules=[ddim_table(5)]), MezzotintScheduler()
    table.set_timesteps(5)
    plain.set_timesteps(timesteps=table.timesteps.tolist())
    ends = []
    for scheduler in (table, plain):
        scheduler.set_begin_index(2)
        x, generator = randn(1, 1, 4, 4), seeded(0)
        for t in scheduler.timesteps[2:]:
            x = scheduler.step(smooth_network(x, t), t, x, eta=0.5, generator=generator).prev_sample
            x = scheduler.corrector_step(smooth_network(x, t), t, x, generator=generator)
        ends.append(x)
    assert torch.equal(*ends)
