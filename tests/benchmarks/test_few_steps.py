"""The benchmark of few steps: closed-form denoisers against densities and brute force, the reference against an
equation with a known solution, the stock solvers against diffusers' own pipelines."""

import json
import math
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from mixtures import mixture, randn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from mezzotint import MezzotintScheduler
from mezzotint_training.benchmarks import few_steps, problems
from mezzotint_training.benchmarks.closed_form import ClosedFormNetwork, Empirical, GaussianMixture, unit_variance
from mezzotint_training.benchmarks.problems import reference
from mezzotint_training.few_steps.network import PipelineNetwork
from mezzotint_training.few_steps.stock_solvers import EXCLUDED, Setting, common_settings, sample, settings, solvers_at


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()
    yield
    diffusers.utils.logging.set_verbosity_warning()


# ----------------------------------------------------------------------------------------------- closed-form denoisers


@pytest.mark.parametrize("ratio", [0.02, 0.7, 30.0])
def test_mixture_is_the_posterior_mean_that_the_density_implies(ratio):
    means, covariances, weights = mixture()
    alpha, sigma = 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
    x = alpha * randn(5, 1, 2, 2, seed=5) + sigma * randn(5, 1, 2, 2, seed=6)
    flat = x.flatten(1).requires_grad_()
    density = MixtureSameFamily(
        Categorical(weights),
        MultivariateNormal(alpha * means.flatten(1), alpha**2 * covariances + sigma**2 * torch.eye(4).double()),
    )
    (score,) = torch.autograd.grad(density.log_prob(flat).sum(), flat)
    expected = (flat.detach() + sigma**2 * score) / alpha  # Tweedie's formula
    actual = GaussianMixture(means, covariances, weights).posterior_mean(x, alpha, sigma)
    torch.testing.assert_close(actual.flatten(1), expected, rtol=1e-8, atol=1e-8)


def test_mixture_of_labels_and_one_component_of_it():
    pictures, labels = randn(60, 1, 2, 2), torch.arange(60) % 3
    whole = GaussianMixture.of(pictures, labels)
    chosen = whole.posterior_mean(pictures[:3], 0.8, 0.6, labels[:3])
    for label in range(3):
        alone = GaussianMixture.of(pictures[labels == label], labels[labels == label])
        floor = 0.01 * (pictures.flatten(1).var(0).mean() - pictures[labels == label].flatten(1).var(0).mean())
        alone.variances += floor  # what is added for pixels that never change is a share of all pictures' variance
        torch.testing.assert_close(chosen[label], alone.posterior_mean(pictures[label : label + 1], 0.8, 0.6)[0])


def test_empirical_set_is_the_softmax_over_pictures():
    pictures, labels, x = randn(7, 1, 2, 2), torch.arange(7) % 2, randn(3, 1, 2, 2, seed=1)
    alpha, sigma = 0.8, 0.6
    for wanted in (None, torch.tensor([0, 1, 1])):
        actual = Empirical(pictures, labels).posterior_mean(x, alpha, sigma, wanted)
        for i in range(3):
            kept = pictures if wanted is None else pictures[labels == wanted[i]]
            p = np.array([math.exp(-float(((x[i] - alpha * q) ** 2).sum()) / (2 * sigma**2)) for q in kept])
            expected = sum(w * q for w, q in zip(p / p.sum(), kept, strict=True))
            torch.testing.assert_close(actual[i], expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="no labels"):
        Empirical(pictures).posterior_mean(x, alpha, sigma, labels[:3])


def test_widened_empirical_set_is_a_mixture_of_round_gaussians():
    pictures, x = randn(7, 1, 2, 2), randn(3, 1, 2, 2, seed=1)
    round_ones = GaussianMixture(pictures, 0.3**2 * torch.eye(4).expand(7, 4, 4), torch.ones(7))
    actual = Empirical(pictures, bandwidth=0.3).posterior_mean(x, 0.8, 0.6)
    torch.testing.assert_close(actual, round_ones.posterior_mean(x, 0.8, 0.6))


@pytest.mark.parametrize("timestep", [0.0, 412.37, 999.0])
def test_closed_form_network_speaks_v_prediction_at_fractional_timesteps(timestep):
    scheduler, exact, x = MezzotintScheduler(), GaussianMixture(*mixture()), randn(3, 1, 2, 2)
    ratio = float(scheduler.timesteps_to_sigmas(torch.tensor(timestep)))
    alpha, sigma = 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
    labels = torch.tensor([2, 0, 1])
    free, kind = exact.posterior_mean(x, alpha, sigma), exact.posterior_mean(x, alpha, sigma, labels)
    for scale, expected in ((1.0, free), (3.0, free + 3 * (kind - free))):
        v = ClosedFormNetwork(exact, scheduler, scale, labels)(x, torch.tensor(timestep))
        x_0 = scheduler.predict_original_sample(v, timestep, x)
        torch.testing.assert_close(x_0, expected, rtol=1e-4, atol=1e-5)  # the schedule is held in float32
    with pytest.raises(ValueError, match="got 'epsilon'"):
        ClosedFormNetwork(exact, MezzotintScheduler(prediction_type="epsilon"))


def test_pictures_are_brought_to_unit_variance_by_channel():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    data = unit_variance(list(pixels))
    assert data.shape == (5, 3, 4, 6)
    torch.testing.assert_close(data.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.std((0, 2, 3)), torch.ones(3))


# ------------------------------------------------------------------------------------------------------- the reference


def test_reference_solves_a_known_equation_to_third_order():
    """For Gaussian data the equation keeps every sample at its own quantile, at every noise level."""
    means, covariances, _ = mixture()
    scheduler, noise = MezzotintScheduler(), randn(4, 1, 2, 2, seed=3)  # noise in float64, and so is the solution
    exact = GaussianMixture(means[:1], covariances[:1], torch.ones(1))
    high, low = (float(scheduler.timesteps_to_sigmas(torch.tensor(t))) for t in (999.0, 0.0))

    def spread(ratio):  # standard deviation of x_t / alpha_t along each axis of the data
        return (exact.variances + ratio**2).sqrt()

    start = (noise.flatten(1) * math.hypot(1, high) - exact.means) @ exact.axes[0]
    end = (start / spread(high) * spread(low)) @ exact.axes[0].T + exact.means  # x / alpha at the least noise
    alpha, sigma = 1 / math.hypot(1, low), low / math.hypot(1, low)
    expected = exact.posterior_mean((alpha * end).reshape(noise.shape), alpha, sigma)
    network = ClosedFormNetwork(exact, scheduler)
    errors = [float((reference(network, scheduler, noise, n) - expected).abs().max()) for n in (40, 80, 160)]
    assert errors[0] < 1e-3
    assert errors[0] / errors[1] > 6 and errors[1] / errors[2] > 6  # 8 for the third order, in the limit
    with pytest.raises(ValueError, match="4 or more steps: got 3"):
        reference(network, scheduler, noise, 3)


# --------------------------------------------------------------------------------------------------- the stock solvers


def test_every_scheduler_of_diffusers_is_in_the_list_or_said_why_not():
    classes = (getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler"))
    there = {c.__name__ for c in classes if isinstance(c, type) and issubclass(c, SchedulerMixin)}
    listed = {setting.scheduler_class for setting in settings()}
    assert not listed & set(EXCLUDED)
    assert there <= listed | set(EXCLUDED) and listed <= there
    assert len({str(setting) for setting in settings()}) == len(settings())
    assert set(common_settings()) < set(settings())


ONE_A_CLASS = tuple({setting.scheduler_class: setting for setting in reversed(settings())}.values())  # the first


@pytest.mark.parametrize("setting", ONE_A_CLASS, ids=str)
def test_each_solver_is_deterministic_and_comes_to_the_exact_solution(setting):
    """With many steps: the noise schedule, the target and the timesteps are ours."""
    scheduler, noise = MezzotintScheduler(), randn(4, 1, 2, 2, seed=3).float()
    network = ClosedFormNetwork(GaussianMixture(*mixture()), scheduler)
    first, second = (sample(setting.scheduler(scheduler), network, noise, 20)[0] for _ in range(2))
    assert torch.equal(first, second)
    expected = reference(network, scheduler, noise, 100)
    assert float((first - expected).square().mean().sqrt()) < 0.2
    assert float((noise - expected).square().mean().sqrt()) > 0.5


def test_settings_are_what_from_config_makes():
    base = MezzotintScheduler(beta_schedule="scaled_linear", beta_end=0.03, num_train_timesteps=500)
    setting = Setting("UniPCMultistepScheduler", (("solver_order", 3), ("use_karras_sigmas", True)))
    ours, theirs = setting.scheduler(base), diffusers.UniPCMultistepScheduler.from_config(base.config, solver_order=3)
    assert (ours.config.solver_order, ours.config.use_karras_sigmas) == (3, True)
    for name in ("num_train_timesteps", "beta_end", "beta_schedule", "prediction_type", "thresholding"):
        assert ours.config[name] == theirs.config[name] == base.config[name]
    torch.testing.assert_close(ours.alphas_cumprod, base.alphas_cumprod)


def test_schedulers_with_a_time_of_their_own_are_given_ours():
    """EDM's Euler on Karras' levels is EulerDiscreteScheduler on them, whose timesteps are ours to begin with."""
    base, noise = MezzotintScheduler(), randn(4, 1, 2, 2).float()
    network = ClosedFormNetwork(GaussianMixture(*mixture()), base)
    edm, euler = (
        sample(Setting(name, overrides).scheduler(base), network, noise, 6)[0]
        for name, overrides in (
            ("EDMEulerScheduler", (("sigma_schedule", "karras"),)),
            ("EulerDiscreteScheduler", (("timestep_spacing", "linspace"), ("use_karras_sigmas", True))),
        )
    )
    torch.testing.assert_close(edm, euler, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="needs v_prediction: got epsilon"):
        Setting("EDMEulerScheduler").scheduler(MezzotintScheduler(prediction_type="epsilon"))


def test_evaluations_are_counted_and_no_setting_disappears():
    wrong = Setting("DDIMScheduler", (("timestep_spacing", "nowhere"),))
    twin = Setting("DPMSolverMultistepScheduler", (("solver_order", 1), ("timestep_spacing", "trailing")))
    ddim = common_settings()[0]
    among = (ddim, *ONE_A_CLASS, twin, wrong)
    base, noise = MezzotintScheduler(), randn(2, 1, 2, 2).float()
    for evaluations in (5, 6):
        found = solvers_at(evaluations, base, among)
        assert set(found.steps) | set(found.same) | set(found.left_out) == set(among)
        assert not set(found.steps) & (set(found.same) | set(found.left_out))
        assert "nowhere" in found.left_out[wrong]
        # a first-order DPM-Solver++ is DDIM where 1000 is divisible: elsewhere DDIM's stride is not that of its grid
        assert found.same.get(twin) == (ddim if evaluations == 5 else None)
        for setting, steps in found.steps.items():
            calls = []

            def network(x, t, calls=calls):
                calls.append(float(t))
                return 0.1 * x

            _, counted = sample(setting.scheduler(base), network, noise, steps)
            assert len(calls) == counted == evaluations
        by_class = {setting.scheduler_class: steps for setting, steps in found.steps.items()}
        assert by_class["PNDMScheduler"] == evaluations - 1  # its warm-up takes one more
        heun = [s for s in found.left_out if s.scheduler_class == "HeunDiscreteScheduler"]
        if evaluations == 5:
            assert by_class["HeunDiscreteScheduler"] == 3 and not heun  # two a step, and one for the last
        else:
            assert heun and all(found.left_out[s] == "no num_inference_steps makes 6 calls" for s in heun)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_the_loop_is_that_of_the_pipeline(make_pipe, guidance_scale):
    prompts = ["a seven", "two"]
    setting = Setting("DPMSolverMultistepScheduler", (("solver_order", 3), ("use_karras_sigmas", True)))
    pipe = make_pipe(scheduler=setting.scheduler(MezzotintScheduler()))
    noise = randn(4, 3, 8, 8).float()
    network = PipelineNetwork(pipe, prompts, guidance_scale)
    with torch.inference_mode():
        ours, _ = sample(setting.scheduler(MezzotintScheduler()), network, noise, 5)
        theirs = pipe(
            prompts * 2, latents=noise, num_inference_steps=5, guidance_scale=guidance_scale, output_type="latent"
        ).images
        network.batch_size = 2
        halves, _ = sample(setting.scheduler(MezzotintScheduler()), network, noise, 5)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(halves, theirs, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ the bench


def test_the_whole_bench_on_a_small_set(tmp_path, monkeypatch, capsys):
    pictures, labels = randn(120, 1, 4, 4).float() + torch.arange(120).reshape(-1, 1, 1, 1) % 10, torch.arange(120) % 10
    monkeypatch.setattr(problems, "pictures_of", lambda data: (pictures, labels))
    flags = ["--noises", "40", "--evaluations", "4", "8", "--stock", "common", "--reference_steps", "32"]
    output = tmp_path / "few.json"
    assert few_steps.main(["gmm", "--guidance_scale", "2", *flags, "--output", str(output)]) == 0
    (result,) = json.loads(output.read_text())
    assert [cell["evaluations"] for cell in result["cells"]] == [4, 8]
    for cell in result["cells"]:
        listed = set(cell["stock"]) | set(result["same"][str(cell["evaluations"])])
        assert listed | set(result["left_out"][str(cell["evaluations"])]) == {str(s) for s in common_settings()}
        for metric, best in cell["best"].items():
            values = {name: v[metric] for name, v in cell["stock"].items()}
            assert best["value"] == values[best["setting"]] == min(values.values())
            own = best["ratio"]["default"]
            assert own["value"] == pytest.approx(cell["ours"]["default"][metric] / best["value"])
            assert own["interval"][0] <= own["value"] <= own["interval"][1]
    # today's first order is DDIM on trailing timesteps, which is among them
    for row in result["twice"]:
        four, eight = result["cells"]
        expected = four["ours"]["default"][row["metric"]] / eight["best"][row["metric"]]["value"]
        assert row["value"] == pytest.approx(expected) and row["stock"] == eight["best"][row["metric"]]["setting"]
    printed = capsys.readouterr().out
    assert "| 4 (8) |" in printed and "guidance 2, 40 noises" in printed
    with pytest.raises(SystemExit):
        few_steps.main(["gmm", "--noises", "39"])


def test_tables_given_to_the_bench_are_those_that_were_fitted(monkeypatch):
    """Each count is fitted once, on other noises than those of the test, and what the guard refused isn't used."""
    calls = []

    def fit(network, scheduler, ends, held_out, num_inference_steps, guidance_scale):
        calls.append((num_inference_steps, guidance_scale, ends.noise, held_out.noise))
        table = {"num_inference_steps": num_inference_steps}
        return SimpleNamespace(table=None if num_inference_steps == 4 else table, errors={})

    given = []
    monkeypatch.setattr(few_steps, "fit", fit)
    monkeypatch.setattr(few_steps, "with_tables", lambda scheduler, tables: given.append(tables))
    scheduler, noise = MezzotintScheduler(), randn(40, 1, 2, 2).float()
    network = ClosedFormNetwork(GaussianMixture(*mixture()), scheduler)
    problem = problems.Problem("gmm", network, scheduler, noise, None, 1.0)
    few_steps.fitted(problem, SimpleNamespace(fit_noises=6, seed=1000, evaluations=[4, 5]))
    assert given == [[{"num_inference_steps": 5}]]
    assert [call[:2] for call in calls] == [(4, 1.0), (5, 1.0)]
    for _, _, used, held_out in calls:
        assert len(used) == len(held_out) == 6
        assert len(torch.cat([noise, used, held_out]).unique(dim=0)) == 52


def test_a_table_is_its_own_row_where_there_is_one():
    """Of DDIM's coefficients on three levels: the row says what DDIM on these levels gives."""
    sigmas = np.array([100.0, 3.0, 0.2])
    alphas, noises = 1 / np.hypot(1, sigmas), sigmas / np.hypot(1, sigmas)
    ratios = np.append(noises[1:], 0) / noises
    base = MezzotintScheduler()
    table = {
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "sigmas": sigmas.tolist(),
        "taus": base.sigmas_to_timesteps(torch.from_numpy(sigmas)).tolist(),
        "coefficients": [[a, c] for a, c in zip(ratios, np.append(alphas[1:], 1) - ratios * alphas, strict=True)],
        "provenance": {},
    }
    carrying = few_steps.with_tables(base, [table])
    network = ClosedFormNetwork(GaussianMixture(*mixture()), base)
    problem = problems.Problem("gmm", network, carrying, randn(8, 1, 2, 2).float(), None, 1.0)
    ours = few_steps.our_schedulers(problem, SimpleNamespace(fit=False))
    assert few_steps.uses_table(ours["fitted"], 3, {}) and not few_steps.uses_table(ours["fitted"], 4, {})
    assert not few_steps.uses_table(ours["default"], 3, {})
    assert few_steps.with_tables(base, None) is base
    ddim = MezzotintScheduler(solver_order=1)
    ddim.set_timesteps(sigmas=sigmas.tolist())
    expected = problem.noise
    for t in ddim.timesteps:
        expected = ddim.step(network(expected, t), t, expected).prev_sample
    actual, calls = sample(ours["fitted"], network, problem.noise, 3, guidance_scale=1.0)
    assert calls == 3
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
