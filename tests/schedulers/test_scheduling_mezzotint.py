"""The scheduler against two oracles: the stock diffusers schedulers, step by step, and Gaussian data, whose
denoiser, score and probability-flow ODE are known in closed form.

Data x_0 ~ N(m, s^2) is x_t ~ N(alpha m, alpha^2 s^2 + sigma^2) at every noise level, and the ODE, being
monotone, keeps each sample at its own quantile of that distribution.
"""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.utils import DummyObject

from mezzotint import MezzotintScheduler

TRAINED_BETAS = np.linspace(0.001, 0.03, 500).tolist()
SCHEDULES = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "trained_betas": {"trained_betas": TRAINED_BETAS, "num_train_timesteps": 500},
    "zero_snr": {"rescale_betas_zero_snr": True},
}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
PAIRS = [(s, p) for s in SCHEDULES for p in PREDICTIONS]
PAIRS.remove(("zero_snr", "epsilon"))  # refused: pure noise does not determine x_0
VARIANCE_TYPE = {DDPMScheduler: "fixed_small", DDIMScheduler: None}
STOCK = {
    name: getattr(diffusers, name + "Scheduler")
    for name in (
        *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
        *("KDPM2Discrete", "KDPM2AncestralDiscrete", "DEISMultistep", "UniPCMultistep"),
        *("DPMSolverMultistep", "DPMSolverSinglestep"),
    )
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed)).to(dtype)


def assert_equal_to(actual: torch.Tensor, expected: torch.Tensor, rel: float) -> None:
    """Equal to `rel` times the largest magnitude, which is what rounding is proportional to."""
    assert actual.shape == expected.shape
    error, magnitude = (actual.double() - expected.double()).abs().max().item(), expected.abs().max().item()
    assert np.isfinite(magnitude) and error <= rel * magnitude


def alpha_sigma(scheduler, t) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha_t, sigma_t) in float64 from nothing but the scheduler's betas, log-linear in sigma / alpha
    between timesteps; clean data at t < 0."""
    a = np.cumprod(1 - scheduler.betas.double().numpy()).clip(1e-38)
    t = torch.as_tensor(t, dtype=torch.float64)
    log_ratio = np.interp(t.numpy(), np.arange(len(a)), 0.5 * np.log((1 - a) / a))
    log_ratio = torch.where(t < 0, -torch.inf, torch.as_tensor(log_ratio))
    return torch.sigmoid(-2 * log_ratio).sqrt(), torch.sigmoid(2 * log_ratio).sqrt()


def smooth_network(x: torch.Tensor, t) -> torch.Tensor:
    """Any smooth function will do where two schedulers are compared."""
    return torch.tanh(0.7 * x + float(t) / 500)


class Gaussian:
    """Data N(m, s^2), and the network that a perfect training on it would give."""

    def __init__(self, mean: float = 0.8, std: float = 0.5):
        self.mean, self.std = mean, std

    def network(self, scheduler, x: torch.Tensor, t) -> torch.Tensor:
        alpha, sigma = alpha_sigma(scheduler, t)
        var = alpha**2 * self.std**2 + sigma**2
        x_0 = self.mean + alpha * self.std**2 / var * (x.double() - alpha * self.mean)  # E[x_0 | x_t]
        eps = (x.double() - alpha * x_0) / sigma
        outputs = {"sample": x_0, "epsilon": eps, "v_prediction": alpha * eps - sigma * x_0}
        return outputs[scheduler.config.prediction_type].to(x.dtype)

    def sample(self, scheduler, z: torch.Tensor, n: int, **step_kwargs) -> torch.Tensor:
        scheduler.set_timesteps(n)
        x = z * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            model_output = self.network(scheduler, scheduler.scale_model_input(x, t), t)
            x = scheduler.step(model_output, t, x, **step_kwargs).prev_sample
        return x

    def ode(self, scheduler, z: torch.Tensor) -> torch.Tensor:
        """Where the exact probability-flow ODE takes x_T = z: to the same quantile of the data."""
        alpha, sigma = alpha_sigma(scheduler, scheduler.timesteps[0])
        return self.mean + self.std * (z - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2).sqrt()

    def ode_at(self, scheduler, z: torch.Tensor, t) -> torch.Tensor:
        """The point at timestep t of the trajectory that runs through the quantiles z of a standard normal."""
        alpha, sigma = alpha_sigma(scheduler, t)
        return alpha * self.mean + z * (alpha**2 * self.std**2 + sigma**2).sqrt()


def make_pair(stock_class, **config):
    """Ours and a stock scheduler, every setting said to both."""
    config = {"prediction_type": "epsilon", "clip_sample": False, "timestep_spacing": "trailing"} | config
    ours = MezzotintScheduler(**{"variance_type": VARIANCE_TYPE[stock_class], "solver_order": 1} | config)
    if stock_class is DDIMScheduler and config.get("beta_schedule") == "sigmoid":  # unknown to it by name
        config = config | {"beta_schedule": "linear", "trained_betas": DDPMScheduler(**config).betas.tolist()}
    return ours, stock_class(**config)


def compare_chains(ours, stock, n: int | None, **step_kwargs) -> None:
    """Every step from the same x, and both chains run on their own."""
    if n is not None:
        ours.set_timesteps(n)
        stock.set_timesteps(n)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    x = y = randn(2, 3, 4, 4)
    for i, t in enumerate(ours.timesteps):
        ours_out = ours.step(smooth_network(x, t), t, x, generator=seeded(i), **step_kwargs)
        same_x = stock.step(smooth_network(x, t), t, x, generator=seeded(i), **step_kwargs)
        assert_equal_to(ours_out.prev_sample, same_x.prev_sample, rel=1e-6)
        assert_equal_to(ours_out.pred_original_sample, same_x.pred_original_sample, rel=1e-6)
        x = ours_out.prev_sample
        y = stock.step(smooth_network(y, t), t, y, generator=seeded(i), **step_kwargs).prev_sample
        assert_equal_to(x, y, rel=1e-5)


# -------------------------------------------------------------------------------- step for step as stock ones

SAMPLERS = {
    "ddpm-fixed_small": (DDPMScheduler, {"variance_type": "fixed_small"}, {}),
    "ddpm-fixed_large": (DDPMScheduler, {"variance_type": "fixed_large"}, {}),
    "ddim-0": (DDIMScheduler, {}, {"eta": 0.0}),
    "ddim-0.5": (DDIMScheduler, {}, {"eta": 0.5}),
    "ddim-1": (DDIMScheduler, {}, {"eta": 1.0}),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("schedule", "prediction_type"), PAIRS)
def test_steps_equal_stock(schedule, prediction_type, sampler):
    stock_class, config, step_kwargs = SAMPLERS[sampler]
    ours, stock = make_pair(stock_class, **SCHEDULES[schedule], prediction_type=prediction_type, **config)
    assert torch.equal(ours.betas, stock.betas)
    compare_chains(ours, stock, n=20, **step_kwargs)


@pytest.mark.parametrize(
    ("stock_class", "spacing", "n"),
    [
        *((DDPMScheduler, spacing, n) for spacing in ("leading", "trailing", "linspace") for n in (1, 7, 48)),
        *((DDIMScheduler, "leading", n) for n in (1, 7, 48)),
        *((DDIMScheduler, "trailing", n) for n in (1, 8, 50)),
    ],
)
def test_spacings_equal_stock(stock_class, spacing, n):
    compare_chains(*make_pair(stock_class, timestep_spacing=spacing, prediction_type="v_prediction"), n=n)


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("steps_offset", [0, 1])
def test_last_step_equals_stock(steps_offset, set_alpha_to_one):
    config = {"steps_offset": steps_offset, "set_alpha_to_one": set_alpha_to_one}
    compare_chains(*make_pair(DDIMScheduler, timestep_spacing="leading", **config), n=10, eta=0.5)


@pytest.mark.parametrize(
    "config",
    [
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.4},
        {"thresholding": True, "sample_max_value": 1.7},
        {
            "thresholding": True,
            "dynamic_thresholding_ratio": 0.7,
            "sample_max_value": 100.0,
            "clip_sample": True,
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize(
    ("stock_class", "step_kwargs"),
    [
        (DDPMScheduler, {}),
        (DDIMScheduler, {"eta": 0.5}),
        (DDIMScheduler, {"use_clipped_model_output": True}),
        (DDIMScheduler, {"use_clipped_model_output": True, "eta": 1.0}),
    ],
    ids=str,
)
def test_clipping_equals_stock(stock_class, step_kwargs, prediction_type, config):
    compare_chains(*make_pair(stock_class, prediction_type=prediction_type, **config), n=10, **step_kwargs)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddpm_ends_as_stock(spacing):
    """On clean data, whatever DDIM would end on, and without noise from timestep 0 only."""
    config = {"variance_type": "fixed_large", "timestep_spacing": spacing}
    ours = MezzotintScheduler(set_alpha_to_one=False, **config)
    stock = DDPMScheduler(prediction_type="v_prediction", clip_sample=False, **config)
    compare_chains(ours, stock, n=10)


def test_unset_timesteps_step_by_one_as_stock():
    few = {"trained_betas": TRAINED_BETAS[::10], "num_train_timesteps": 50}
    compare_chains(*make_pair(DDPMScheduler, **few), n=None)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_gives_that_many_timesteps(spacing):
    ours, stock = make_pair(DDPMScheduler, timestep_spacing=spacing)
    for n in range(1, 1001):
        ours.set_timesteps(n)
        stock.set_timesteps(n)  # whose trailing ones are n + 1 for some n, down to -1
        assert ours.timesteps.tolist() == stock.timesteps[:n].tolist()
        assert len(ours.timesteps) == n


# ------------------------------------------------------------------------------ where stock steps do not land


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("spacing", "timesteps"),
    [
        *(("linspace", {"num_inference_steps": n}) for n in (5, 30)),
        *(("trailing", {"num_inference_steps": n}) for n in (7, 30, 61)),
        ("trailing", {"timesteps": [990.25, 640.5, 300.0, 17.125, 0.5]}),
    ],
)
def test_ddim_step_lands_on_the_next_timestep(spacing, timesteps, eta):
    """Stock DDIM goes to t - 1000 // n, which is not on the grid here: so DDIM eq. 12 and 16, in float64."""
    scheduler = MezzotintScheduler(timestep_spacing=spacing, solver_order=1)
    scheduler.set_timesteps(**timesteps)
    grid = scheduler.timesteps.tolist()
    x, noise = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    for t, prev_t in zip(grid, [*grid[1:], -1], strict=True):
        assert scheduler.previous_timestep(t) == scheduler.previous_timestep(torch.tensor(t)) == prev_t
        alpha, sigma = alpha_sigma(scheduler, t)
        alpha_prev, sigma_prev = alpha_sigma(scheduler, prev_t)
        v = smooth_network(x, t)
        x_0, eps = alpha * x - sigma * v, alpha * v + sigma * x
        std = eta * sigma_prev / sigma * (1 - alpha**2 / alpha_prev**2).sqrt()
        expected = alpha_prev * x_0 + (sigma_prev**2 - std**2).clamp(min=0).sqrt() * eps + std * noise
        out = scheduler.step(v, t, x, eta=eta, variance_noise=noise)
        assert_equal_to(out.prev_sample, expected, rel=2e-5)
        assert_equal_to(out.pred_original_sample, x_0, rel=2e-5)
        x = out.prev_sample


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "zero_snr"])
@pytest.mark.parametrize(("variance_type", "eta"), [("fixed_small", 0), (None, 0), (None, 0.5), (None, 1)])
def test_true_x_0_leads_to_the_forward_process(variance_type, eta, schedule):
    """Given the true x_0, x_t ~ q(x_t | x_0) becomes x_prev ~ q(x_prev | x_0), of mean alpha_prev x_0 and
    variance sigma_prev^2 (DDIM, lemma 1)."""
    config = {"variance_type": variance_type, "prediction_type": "sample", "solver_order": 1}
    scheduler = MezzotintScheduler(**config, **SCHEDULES[schedule])
    scheduler.set_timesteps(timesteps=[999, 870.4, 500, 250.75, 100, 3, 1, 0])
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    for t in scheduler.timesteps:
        prev_t = scheduler.previous_timestep(t)
        of_x_0, of_x_t, of_noise = (
            scheduler.step(x_0, t, x_t, eta=eta, variance_noise=noise).prev_sample.double()
            for x_0, x_t, noise in [(one, zero, zero), (zero, one, zero), (zero, zero, one)]
        )
        (alpha, sigma), (alpha_prev, sigma_prev) = alpha_sigma(scheduler, t), alpha_sigma(scheduler, prev_t)
        # beta = 1 - a / a_prev is a difference of float32 numbers near 1, here divided by 1 - a
        torch.testing.assert_close((of_x_0 + of_x_t * alpha).squeeze(), alpha_prev, rtol=0, atol=1e-4)
        variance = (of_x_t**2 * sigma**2 + of_noise**2).squeeze()
        torch.testing.assert_close(variance, sigma_prev**2, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("n", range(1, 41))
def test_full_noise_from_zero_signal_is_finite(n):
    """At a = 0 and eta = 1 the root in DDIM eq. 12 is of a rounded zero: stock DDIM gives NaN for many n."""
    scheduler = MezzotintScheduler(rescale_betas_zero_snr=True)
    scheduler.set_timesteps(n)
    x, v, noise = (randn(1, 1, 4, 4, seed=i) for i in range(3))
    out = scheduler.step(v, 999, x, eta=1.0, variance_noise=noise).prev_sample
    alpha_prev, sigma_prev = alpha_sigma(scheduler, scheduler.previous_timestep(999))
    assert_equal_to(out, -alpha_prev * v + sigma_prev * noise, rel=1e-3)  # x_0 = -v, and all noise is new


# ---------------------------------------------------------------------------------- generators, shapes, types


@pytest.mark.parametrize("variance_type", [None, "fixed_small"])
def test_each_sample_depends_on_its_own_generator(variance_type):
    scheduler = MezzotintScheduler(variance_type=variance_type, solver_order=1)
    scheduler.set_timesteps(10)
    t, x = scheduler.timesteps[4], randn(3, 2, 4, 4)

    def step(rows, seeds):
        generators = [seeded(s) for s in seeds]
        return scheduler.step(smooth_network(rows, t), t, rows, eta=1.0, generator=generators).prev_sample

    together = step(x, [5, 6, 7])
    for i in range(3):
        assert torch.equal(together[i : i + 1], step(x[i : i + 1], [5 + i]))
    assert torch.equal(step(x[[2, 0, 1]], [7, 5, 6]), together[[2, 0, 1]])
    same_rows = step(x[:1].expand(3, -1, -1, -1), [5, 6, 5])
    assert torch.equal(same_rows[0], same_rows[2])
    assert (same_rows[0] - same_rows[1]).abs().max() > 0.1


@pytest.mark.parametrize("variance_type", [None, "fixed_small"])
def test_same_numbers_in_every_form(variance_type):
    """A tuple for an output object, signals and volumes for pictures, bf16 for float32."""
    scheduler = MezzotintScheduler(variance_type=variance_type, thresholding=True, sample_max_value=1.3, solver_order=1)
    scheduler.set_timesteps(10)
    t, x, v, noise = (
        scheduler.timesteps[4],
        *(randn(2, 3, 4, 6, seed=i, dtype=torch.bfloat16) for i in range(3)),
    )

    def step(*tensors, **kwargs):
        return scheduler.step(tensors[0], t, tensors[1], variance_noise=tensors[2], eta=0.7, **kwargs)

    full = step(v.float(), x.float(), noise.float())
    as_tuple = step(v.float(), x.float(), noise.float(), return_dict=False)
    assert type(as_tuple) is tuple
    assert torch.equal(as_tuple[0], full.prev_sample)
    assert torch.equal(as_tuple[1], full.pred_original_sample)
    for shape in [(2, 3, 24), (2, 3, 2, 2, 6)]:
        out = step(*(y.float().reshape(shape) for y in (v, x, noise)))
        assert torch.equal(out.prev_sample, full.prev_sample.reshape(shape))
        assert torch.equal(out.pred_original_sample, full.pred_original_sample.reshape(shape))
    half = step(v, x, noise)
    assert half.prev_sample.dtype == half.pred_original_sample.dtype == torch.bfloat16
    assert_equal_to(half.prev_sample, full.prev_sample, rel=2**-8)
    assert_equal_to(half.pred_original_sample, full.pred_original_sample, rel=2**-8)


# ----------------------------------------------------------------------------------------------- noise levels


@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_forward_process_equals_stock(schedule, method):
    ours, stock = make_pair(DDPMScheduler, **SCHEDULES[schedule], prediction_type="sample")
    timesteps = torch.arange(len(ours))
    x_0, noise = randn(len(ours), 1, 2, 2), randn(len(ours), 1, 2, 2, seed=1)
    expected = getattr(stock, method)(x_0, noise, timesteps)
    assert torch.equal(getattr(ours, method)(x_0, noise, timesteps), expected)
    assert torch.equal(getattr(ours, method)(x_0, noise, timesteps.double()), expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fractional_timesteps_lie_between_their_neighbours(schedule):
    scheduler = MezzotintScheduler(**SCHEDULES[schedule])
    last = len(scheduler) - 1
    below = torch.arange(last, dtype=torch.float32)

    def levels(timesteps):  # alpha_t and sigma_t, as add_noise has them
        one, zero = torch.ones(len(timesteps), 1), torch.zeros(len(timesteps), 1)
        return scheduler.add_noise(one, zero, timesteps), scheduler.add_noise(zero, one, timesteps)

    for low, middle, high in zip(levels(below), levels(below + 0.5), levels(below + 1), strict=True):
        assert ((middle - low) * (high - middle) >= 0).all()
    ratio = scheduler.timesteps_to_sigmas
    assert (ratio(below) < ratio(below + 0.5)).all() and (ratio(below + 0.5) < ratio(below + 1)).all()
    # continuous: a hundredth of a timestep from a neighbour is at about a hundredth of the way (but for the
    # last one on the way to zero signal, where sigma / alpha goes to infinity)
    below = below[:-1]
    for near, far, delta in [(below, below + 1, 0.01), (below + 1, below, -0.01)]:
        for at_near, close, at_far in zip(levels(near), levels(near + delta), levels(far), strict=True):
            assert ((close - at_near).abs() <= 0.1 * (at_far - at_near).abs() + 1e-6).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sigmas_and_timesteps_are_inverse(schedule):
    scheduler = MezzotintScheduler(**SCHEDULES[schedule])
    last = len(scheduler) - 1
    timesteps = (torch.arange(last + 1) + torch.tensor([[0.0], [0.37]])).clamp(max=last)
    sigmas = scheduler.timesteps_to_sigmas(timesteps)
    # 1 - a has 2**-24 / (1 - a) of relative rounding, and sigma moves by little in a timestep
    torch.testing.assert_close(scheduler.sigmas_to_timesteps(sigmas), timesteps, rtol=0, atol=2e-2)
    torch.testing.assert_close(scheduler.timesteps_to_sigmas(scheduler.sigmas_to_timesteps(sigmas)), sigmas)
    assert scheduler.sigmas_to_timesteps(torch.tensor([1e-9, torch.inf])).tolist() == [0, last]


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "trained_betas"])
def test_sigmas_agree_with_stock_solvers(schedule):
    config = SCHEDULES[schedule]
    ours, euler = MezzotintScheduler(**config), EulerDiscreteScheduler(**config)
    dpm = DPMSolverMultistepScheduler(**config)
    a = ours.alphas_cumprod.double().numpy()
    grid = np.sqrt((1 - a) / a)
    sigmas = torch.as_tensor(np.geomspace(grid[0] * 1.01, grid[-1] * 0.99, 200), dtype=torch.float32)
    timesteps = ours.sigmas_to_timesteps(sigmas)
    expected = torch.as_tensor(euler._sigma_to_t(sigmas.double().numpy(), np.log(grid)))
    torch.testing.assert_close(timesteps.double(), expected, rtol=1e-6, atol=1e-3)
    alpha, sigma = dpm._sigma_to_alpha_sigma_t(sigmas)
    one, zero = torch.ones(200, 1), torch.zeros(200, 1)
    torch.testing.assert_close(ours.add_noise(one, zero, timesteps)[:, 0], alpha, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours.add_noise(zero, one, timesteps)[:, 0], sigma, rtol=1e-3, atol=1e-6)


# ----------------------------------------------------------------------------------------- target and inverse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("schedule", "prediction_type"), PAIRS)
def test_target_and_inverse_round_trip(prediction_type, schedule, dtype):
    scheduler = MezzotintScheduler(prediction_type=prediction_type, **SCHEDULES[schedule])
    last = len(scheduler) - 1
    timesteps = torch.tensor([last, last - 0.5, 0.7 * last, 333, 12.75, 0.5, 0])
    x_0, noise = randn(7, 3, 4, 4, dtype=dtype), randn(7, 3, 4, 4, seed=1, dtype=dtype)
    x_t = scheduler.add_noise(x_0, noise, timesteps)
    target = scheduler.get_target(x_0, noise, timesteps)
    assert x_t.dtype == target.dtype == dtype
    alpha, sigma = (s.reshape(-1, 1, 1, 1) for s in alpha_sigma(scheduler, timesteps))
    formula = {"epsilon": noise, "sample": x_0, "v_prediction": alpha * noise - sigma * x_0}[prediction_type]
    rounding = torch.finfo(dtype).eps
    assert_equal_to(target, formula, rel=rounding + 1e-5)
    assert_equal_to(x_t, alpha * x_0 + sigma * noise, rel=rounding + 1e-5)
    # x_t and the target are rounded to `dtype`, an error that the inverse divides by alpha or by sigma
    growth = {"epsilon": 1 / alpha, "sample": 1 / sigma, "v_prediction": torch.ones_like(alpha)}
    tolerance = 8 * (rounding + 1e-6) * growth[prediction_type]
    x_0_error = (scheduler.predict_original_sample(target, timesteps, x_t) - x_0).abs()
    noise_error = (scheduler.predict_noise(target, timesteps, x_t) - noise).abs()
    assert (x_0_error <= tolerance).all() and (noise_error <= tolerance).all()


@pytest.mark.parametrize(("schedule", "prediction_type"), PAIRS)
def test_score_is_the_gradient_of_the_log_density(prediction_type, schedule):
    scheduler, data = MezzotintScheduler(prediction_type=prediction_type, **SCHEDULES[schedule]), Gaussian()
    last = len(scheduler) - 1
    for t in [last, last - 0.5, 0.64 * last, 200, 31.7, 2]:
        alpha, sigma = alpha_sigma(scheduler, t)
        std = (alpha**2 * data.std**2 + sigma**2).sqrt()
        x = (alpha * data.mean + std * randn(2, 1, 5, 5, dtype=torch.float64)).requires_grad_()
        log_density = torch.distributions.Normal(alpha * data.mean, std).log_prob(x).sum()
        (expected,) = torch.autograd.grad(log_density, x)
        with torch.no_grad():
            score = scheduler.predict_score(data.network(scheduler, x, t), torch.full((2,), t), x)
        assert_equal_to(score, expected, rel=1e-3)


# ---------------------------------------------------------------------------------------------- Gaussian data


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_ddim_is_a_first_order_solver_of_the_ode(prediction_type):
    scheduler, data = MezzotintScheduler(prediction_type=prediction_type, solver_order=1), Gaussian()
    z = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64).reshape(1, 1, 1, 11)
    errors = []
    for n in (50, 100, 200):
        x = data.sample(scheduler, z, n)
        errors.append((x - data.ode(scheduler, z)).abs().max().item())
    assert errors[2] < 0.04 * data.std
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], abs=0.1)


@pytest.mark.parametrize(
    ("config", "step_kwargs"),
    [
        ({"variance_type": "fixed_small"}, {}),
        ({"variance_type": "fixed_large", "timestep_spacing": "leading"}, {}),
        ({}, {"eta": 1.0}),
        ({"rescale_betas_zero_snr": True}, {"eta": 0.5}),
    ],
    ids=str,
)
def test_stochastic_samples_have_the_mean_and_the_variance_of_the_data(config, step_kwargs):
    scheduler, data = MezzotintScheduler(**config), Gaussian()
    x = data.sample(scheduler, randn(1, 1, 100, 200), n=500, generator=seeded(1), **step_kwargs)
    # four standard errors of 20000 samples, and 1 % of bias from the finite steps
    assert abs(x.mean().item() - data.mean) < 4 * data.std / 20000**0.5
    assert abs(x.std().item() / data.std - 1) < 4 / 40000**0.5 + 0.01


# ------------------------------------------------------------------------------------------- stock schedulers


def public(scheduler) -> dict:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", STOCK)
def test_stock_schedulers_take_our_config(name, log, tmp_path):
    default = MezzotintScheduler()
    default.save_pretrained(tmp_path)
    reloaded = MezzotintScheduler.from_pretrained(tmp_path)
    fitted = MezzotintScheduler(trained_betas=TRAINED_BETAS, timestep_spacing="linspace", steps_offset=1)
    others = MezzotintScheduler(
        num_train_timesteps=500, beta_start=0.001, beta_schedule="scaled_linear", prediction_type="epsilon"
    )
    for ours in (default, reloaded, fitted, others):
        stock = STOCK[name].from_config(ours.config)
        shared = public(ours).keys() & public(stock).keys()
        assert shared >= {"prediction_type", "beta_schedule", "trained_betas", "num_train_timesteps"}
        assert ("timestep_spacing" in shared) or name == "DPMSolverSinglestep"
        said = {k for k in shared if ours.config[k] is not None}
        assert {k: ours.config[k] for k in said} == {k: stock.config[k] for k in said}
        assert torch.equal(ours.betas, stock.betas)
        assert stock.config.num_train_timesteps == len(ours.betas)
    assert [record.getMessage() for record in log.records] == []


@pytest.mark.parametrize("name", STOCK)
def test_stock_samplers_land_on_the_data(name):
    stock = STOCK[name].from_config(MezzotintScheduler().config)
    data, stochastic = Gaussian(), "Ancestral" in name or name == "DDPM"
    z = torch.distributions.Normal(0, 1).icdf((torch.arange(10000) + 0.5) / 10000).reshape(1, 1, 100, 100)
    x = data.sample(stock, z, n=250, **({"generator": seeded(0)} if stochastic else {}))
    assert abs(x.mean().item() - data.mean) < 0.02 * data.std
    assert abs(x.std().item() / data.std - 1) < 0.04
    if not stochastic:  # sample by sample, out to four standard deviations
        torch.testing.assert_close(x.double(), data.ode(stock, z.double()), rtol=0, atol=0.06 * data.std)


def test_compatibles_are_ours_and_the_stock_ones():
    compatibles = MezzotintScheduler().compatibles
    assert MezzotintScheduler in compatibles
    assert set(STOCK.values()) <= set(compatibles)


@pytest.mark.parametrize("variance_type", [None, "fixed_small"])
@pytest.mark.parametrize("schedule", ["linear", "trained_betas", "zero_snr"])
def test_save_and_load(schedule, variance_type, tmp_path):
    config = {"variance_type": variance_type, "prediction_type": "sample", "solver_order": 1}
    ours = MezzotintScheduler(**SCHEDULES[schedule], **config)
    ours.save_pretrained(tmp_path)
    loaded = MezzotintScheduler.from_pretrained(tmp_path)
    assert public(loaded) == public(ours)
    assert dict(loaded.config) | {"_use_default_values": []} == dict(ours.config)
    assert "_use_default_values" not in loaded.config  # a file says all
    assert torch.equal(loaded.betas, ours.betas)
    compare_chains(loaded, ours, n=5)


@pytest.mark.parametrize("name", STOCK)
def test_round_trip_through_a_stock_config(name):
    ours = MezzotintScheduler(
        beta_start=0.001, clip_sample_range=2.0, set_alpha_to_one=False, variance_type="fixed_large"
    )
    stock = STOCK[name].from_config(ours.config)
    back = MezzotintScheduler.from_config(stock.config)
    assert {key: value for key, value in public(back).items() if key in ours.config} == public(ours)
    notes = "_use_default_values"  # of what was left at a default, as diffusers keeps them
    assert back.config.get(notes) == (ours.config[notes] if notes in stock.config else None)


@pytest.mark.parametrize("stock_class", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("config", [{}, {"beta_end": 0.03, "prediction_type": "v_prediction"}], ids=str)
def test_stock_config_becomes_ours(config, stock_class):
    """What a stock scheduler was left at arrives too: its network predicts epsilon, whatever ours would."""
    stock = stock_class(**config)
    ours = MezzotintScheduler.from_config(stock.config, variance_type=VARIANCE_TYPE[stock_class], solver_order=1)
    compare_chains(ours, stock, n=20)


# scheduler/scheduler_config.json of Stable Diffusion 1.5, as it was published
STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


@pytest.mark.parametrize("name", [*STOCK, "Absent"])
def test_a_config_that_leaves_keys_out_means_its_own_class(name, log, monkeypatch, tmp_path):
    """A network of Stable Diffusion predicts the noise, which its scheduler's config does not say."""
    config = STABLE_DIFFUSION | {"_class_name": name + "Scheduler"}
    if name == "Absent":  # as diffusers shows a class whose package is not installed

        class AbsentScheduler(metaclass=DummyObject):
            _backends = ["absent"]

            def __init__(self, *args, **kwargs):
                raise ImportError

        monkeypatch.setattr(diffusers, "AbsentScheduler", AbsentScheduler, raising=False)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    ours = MezzotintScheduler.from_pretrained(tmp_path)
    assert ours.config.prediction_type == MezzotintScheduler.from_config(config).config.prediction_type == "epsilon"
    if name != "Absent":
        stock = STOCK[name].from_pretrained(tmp_path)
        shared = (public(ours).keys() & public(stock).keys()) - {"solver_order"}
        assert {k: ours.config[k] for k in shared} == {k: stock.config[k] for k in shared}
        assert torch.equal(ours.alphas_cumprod, stock.alphas_cumprod)
    assert [record.getMessage() for record in log.records] == []


def test_a_config_of_ours_that_leaves_keys_out_means_ours(tmp_path):
    for config in ({"beta_end": 0.03}, {"beta_end": 0.03, "_class_name": "MezzotintScheduler"}):
        assert public(MezzotintScheduler.from_config(config)) == public(MezzotintScheduler(beta_end=0.03))


# ----------------------------------------------------------------------------------- custom timesteps, errors


def test_custom_timesteps_and_sigmas():
    scheduler = MezzotintScheduler()
    scheduler.set_timesteps(timesteps=[900, 500, 20])
    assert scheduler.timesteps.dtype == torch.int64
    assert scheduler.timesteps.tolist() == [900, 500, 20]
    assert [scheduler.previous_timestep(t) for t in (900, 500, 20)] == [500, 20, -1]
    assert scheduler.previous_timestep(700) == 700 - 1000 // 3  # off the grid: by its stride
    scheduler.set_timesteps(timesteps=[0.0015, 0.001, 0.0005])  # closer than rounded timesteps may be
    assert [round(scheduler.previous_timestep(t), 4) for t in scheduler.timesteps] == [0.001, 0.0005, -1]
    for sigmas in ([80.0, 5.0, 0.7, 0.05], [80.0, 5.0, 0.7, 0.05, 0.0]):
        scheduler.set_timesteps(sigmas=sigmas)
        back = scheduler.timesteps_to_sigmas(scheduler.timesteps)
        torch.testing.assert_close(back, torch.tensor(sigmas[:4]), rtol=1e-4, atol=0)
    data, z = Gaussian(), torch.linspace(-2, 2, 5).reshape(1, 1, 1, 5)
    scheduler.set_timesteps(sigmas=np.geomspace(150, 0.02, 200).tolist())
    x = z
    for t in scheduler.timesteps:
        x = scheduler.step(data.network(scheduler, x, t), t, x).prev_sample
    assert_equal_to(x, data.ode(scheduler, z), rel=0.02)


def assert_one_line(error) -> None:
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "v_prediction"),
        ("variance_type", "fixed_large"),
        ("timestep_spacing", "trailing"),
    ],
)
def test_unknown_name_is_refused_with_the_choices(name, choice):
    with pytest.raises(ValueError, match=rf"^{name} must be one of .*'{choice}'.*: got 'new'$") as error:
        MezzotintScheduler(**{name: "new"})
    assert_one_line(error)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_end": 1.5}, r"^betas must be in \(0, 1\]: got values from 0.0001 to 1.5$"),
        (
            {"beta_start": -0.1, "beta_schedule": "scaled_linear"},
            r"^betas must be in \(0, 1\]: got values from 0 to 0.02$",
        ),
        ({"beta_end": "0.02"}, "^beta_end must be a finite number: got '0.02'$"),
        ({"beta_start": float("nan")}, "^beta_start must be a finite number: got nan$"),
        ({"num_train_timesteps": -1}, "^num_train_timesteps must be a whole number from 1 to 1000000: got -1$"),
        ({"num_train_timesteps": "1000"}, "^num_train_timesteps must be a whole number .*: got '1000'$"),
        ({"num_train_timesteps": 1e3}, "^num_train_timesteps must be a whole number .*: got 1000.0$"),
        ({"num_train_timesteps": 10**12}, "^num_train_timesteps must be a whole number .*: got 1000000000000$"),
        ({"steps_offset": None}, "^steps_offset must be a whole number from 0 to 1000000: got None$"),
        ({"clip_sample": "no"}, "^clip_sample must be true or false: got 'no'$"),
        ({"clip_sample_range": [1.0]}, r"^clip_sample_range must be a finite number: got \[1.0\]$"),
        ({"dynamic_thresholding_ratio": 1.5}, r"^dynamic_thresholding_ratio must be in \[0, 1\]: got 1.5$"),
        ({"trained_betas": "betas"}, "^trained_betas must be a list of numbers: got 'betas'$"),
        ({"trained_betas": []}, r"^trained_betas must be a list of numbers: got \[\]$"),
        ({"trained_betas": [[0.1], [0.2]]}, r"^trained_betas must be a list of numbers: got \[\[0.1\], \[0.2\]\]$"),
        ({"trained_betas": [0.1, float("nan")]}, r"^betas must be in \(0, 1\]: got values from nan to nan$"),
        ({"fitted_schedules": "four"}, "^fitted_schedules must be a list of tables: got 'four'$"),
        ({"fitted_schedules": ["four"]}, "^a fitted schedule must hold num_inference_steps, .*: got 'four'$"),
        ({"trained_betas": [0.0, 0.1]}, r"^betas must be in \(0, 1\]: got values from 0 to 0.1$"),
        ({"rescale_betas_zero_snr": True}, "zero terminal signal.*got 'epsilon', possible.*'v_prediction'"),
        ({"trained_betas": [0.1, 0.5, 1.0]}, "zero terminal signal.*got 'epsilon', possible.*'v_prediction'"),
    ],
)
def test_impossible_schedule_is_refused(config, message):
    with pytest.raises(ValueError, match=message) as error:
        MezzotintScheduler(prediction_type="epsilon", **config)
    assert_one_line(error)


ONE_OF_THREE = "exactly one of num_inference_steps, timesteps and sigmas"
IN_RANGE = r"timesteps must descend within \[0, 999\]: got "
POSITIVE = r"sigmas must be positive \(a closing 0 aside\): got "


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, ONE_OF_THREE),
        ({"num_inference_steps": 3, "timesteps": [2, 1, 0]}, ONE_OF_THREE),
        ({"timesteps": [2, 1, 0], "sigmas": [3.0, 2.0, 1.0]}, ONE_OF_THREE),
        ({"num_inference_steps": 0}, r"num_inference_steps must be in \[1, 1000\]: got 0"),
        ({"num_inference_steps": 1001}, r"num_inference_steps must be in \[1, 1000\]: got 1001"),
        ({"num_inference_steps": 1000}, IN_RANGE + r"\[1001, 1000, "),  # leading, with an offset of 2
        ({"num_inference_steps": 2.5}, "num_inference_steps must be a whole number: got 2.5"),
        ({"num_inference_steps": True}, "num_inference_steps must be a whole number: got True"),
        ({"timesteps": []}, r"timesteps must be a list of numbers: got \[\]"),
        ({"timesteps": "321"}, "timesteps must be a list of numbers: got '321'"),
        ({"timesteps": [None]}, r"timesteps must be a list of numbers: got \[None\]"),
        ({"timesteps": [float("nan")]}, IN_RANGE + r"\[nan\]"),
        ({"sigmas": 3.0}, "sigmas must be a list of numbers: got 3.0"),
        ({"sigmas": [5.0, float("nan")]}, POSITIVE + r"\[5.0, nan\]"),
        ({"timesteps": [10, 20]}, IN_RANGE + r"\[10.0, 20.0\]"),
        ({"timesteps": [20, 20]}, IN_RANGE + r"\[20.0, 20.0\]"),
        ({"timesteps": [999.5, 20]}, IN_RANGE + r"\[999.5, 20.0\]"),
        ({"timesteps": [20, -1]}, IN_RANGE + r"\[20.0, -1.0\]"),
        ({"sigmas": [1.0, 5.0]}, IN_RANGE),
        ({"sigmas": [0.0]}, POSITIVE + r"\[\]"),
        ({"sigmas": [5.0, -1.0]}, POSITIVE + r"\[5.0, -1.0\]"),
    ],
)
def test_impossible_timesteps_are_refused(kwargs, message):
    scheduler = MezzotintScheduler(timestep_spacing="leading", steps_offset=2, solver_order=1)
    with pytest.raises(ValueError, match=message) as error:
        scheduler.set_timesteps(**kwargs)
    assert_one_line(error)


def test_two_sources_of_noise_are_refused():
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match="a generator or variance_noise, not both") as error:
        MezzotintScheduler().step(x, 5, x, generator=seeded(0), variance_noise=x)
    assert_one_line(error)


@pytest.mark.parametrize("text", ['"user/scheduler"', "[]", "null", "3", "[" * 100_000])
def test_a_config_file_that_is_no_object_is_refused_and_nothing_is_fetched(tmp_path, text):
    (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises(ValueError, match="scheduler_config.json must hold a JSON object: got ") as error:
        MezzotintScheduler.from_pretrained(tmp_path)
    assert_one_line(error)


@pytest.mark.parametrize("name", ["MezzotintUNetModel", ["x", "MezzotintPipeline"], 3, None])
def test_a_config_file_of_another_kind_is_refused(tmp_path, name):
    MezzotintScheduler().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config | {"_class_name": name}))
    with pytest.raises(ValueError, match="must be the configuration of a scheduler: got _class_name") as error:
        MezzotintScheduler.from_pretrained(tmp_path)
    assert_one_line(error)
