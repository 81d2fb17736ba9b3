"""The scheduler's multistep steps: DPM-Solver++ without a table, and tables of fitted coefficients."""

import base64
import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from test_scheduling_mezzotint import (
    PREDICTIONS,
    SCHEDULES,
    STOCK,
    Gaussian,
    assert_equal_to,
    randn,
    smooth_network,
)

from mezzotint import MezzotintScheduler


def chain(scheduler, start: torch.Tensor, timesteps=None) -> torch.Tensor:
    x = start
    for t in scheduler.timesteps if timesteps is None else timesteps:
        x = scheduler.step(smooth_network(x, t), t, x).prev_sample
    return x


def ddim_table(n: int, guidance_scale: float = 1.0) -> dict:
    """DDIM eq. 12 over uniform timesteps, written as a table: with eps put in terms of x and x_0,
    x' = sigma' / sigma x + (alpha' - sigma' alpha / sigma) x_0."""
    a = MezzotintScheduler().alphas_cumprod.double()
    taus = [1000 - 1000 // n * i - 1 for i in range(n)]
    alpha, sigma = [x.tolist() for x in (a[taus].sqrt(), (1 - a[taus]).sqrt())]
    rows = []
    for i in range(n):
        alpha_next, sigma_next = (alpha[i + 1], sigma[i + 1]) if i + 1 < n else (1.0, 0.0)
        ratio = sigma_next / sigma[i]
        rows.append([ratio, alpha_next - ratio * alpha[i]])
    return {
        "num_inference_steps": n,
        "guidance_scale": guidance_scale,
        "taus": taus,
        "sigmas": [s / a for s, a in zip(sigma, alpha, strict=True)],
        "coefficients": rows,
        "provenance": {"by": "hand"},
    }


# ----------------------------------------------------------------------------------------------- without a table


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "trained_betas"])
@pytest.mark.parametrize("order", [2, 3])
def test_default_steps_equal_dpm_solver(order, schedule, prediction_type):
    config = SCHEDULES[schedule] | {"prediction_type": prediction_type, "solver_order": order}
    ours = MezzotintScheduler(**config)
    stock = DPMSolverMultistepScheduler(**config, timestep_spacing="trailing")
    for n in (1, 2, 3, 4, 9, 14):  # from 15 on stock keeps the order to the last step but one
        stock.set_timesteps(n)
        ours.set_timesteps(timesteps=stock.timesteps.tolist())
        x = y = randn(2, 3, 4, 4)
        for t in stock.timesteps:
            x = ours.step(smooth_network(x, t), t, x).prev_sample
            y = stock.step(smooth_network(y, t), t, y).prev_sample
            assert_equal_to(x, y, rel=2e-5)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_order_of_convergence(prediction_type):
    """On Gaussian data, against the exact flow from one noise level to another, twice the steps divide the error of
    order 2 by 4. Order 3 is better still, but starts with a step of the first order, whose error is of the second."""
    data, errors = Gaussian(), {}
    z = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64).reshape(1, 1, 1, 11)
    for order, n in [(2, 40), (2, 80), (3, 80)]:
        scheduler = MezzotintScheduler(prediction_type=prediction_type, solver_order=order)
        sigmas = torch.logspace(1.5, -1, n + 1, dtype=torch.float64)
        scheduler.set_timesteps(sigmas=[*sigmas.tolist(), 0.05, 0.02])  # the order is lowered in the last two only
        x = data.ode_at(scheduler, z, scheduler.timesteps[0])
        for t in scheduler.timesteps[:n]:
            x = scheduler.step(data.network(scheduler, x, t), t, x).prev_sample
        errors[order, n] = (x - data.ode_at(scheduler, z, scheduler.timesteps[n])).abs().max().item()
    assert errors[2, 40] / errors[2, 80] == pytest.approx(4, rel=0.25)
    assert errors[3, 80] < errors[2, 80] / 2


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_default_noise_levels_are_uniform_in_log_sigma(schedule, n):
    scheduler = MezzotintScheduler(**SCHEDULES[schedule])
    scheduler.set_timesteps(n)
    assert scheduler.timesteps[0] == len(scheduler) - 1
    log_sigmas = scheduler.sigmas[:-1].double().log().numpy()
    first = 1 if schedule == "zero_snr" else 0  # pure noise, at no finite log sigma
    gaps = -np.diff([*log_sigmas[first:], float(scheduler.log_sigmas[0])])
    if n > first:
        np.testing.assert_allclose(gaps, gaps[-1] / 1.5 * np.array([1.0] * (n - first - 1) + [1.5]), rtol=2e-3)
    assert torch.isfinite(chain(scheduler, randn(1, 1, 4, 4))).all()


def test_default_beats_ddim_and_lands_on_the_data():
    data, z = Gaussian(), torch.linspace(-2.5, 2.5, 11, dtype=torch.float64).reshape(1, 1, 1, 11)
    error = {}
    for order in (1, 2, 3):
        scheduler = MezzotintScheduler(solver_order=order)
        error[order] = (data.sample(scheduler, z, 20) - data.ode(scheduler, z)).abs().max().item()
    assert error[3] < error[2] < error[1] / 3
    assert error[2] < 0.04 * data.std


@pytest.mark.parametrize("kwargs", [{"clip_sample": True, "clip_sample_range": 0.5}, {"thresholding": True}], ids=str)
def test_clipped_predictions_enter_the_step(kwargs):
    scheduler = MezzotintScheduler(prediction_type="sample", **kwargs)
    scheduler.set_timesteps(4)
    limit = 0.5 if "clip_sample" in kwargs else 1.0
    x = 3 * randn(1, 1, 8, 8)
    for t in scheduler.timesteps:
        out = scheduler.step(2 * x, t, x)
        assert out.pred_original_sample.abs().max() == pytest.approx(limit, rel=1e-6)
        x = out.prev_sample
    assert torch.equal(x, out.pred_original_sample)  # the last step goes to x_0 itself


def test_half_precision_is_stepped_in_float32():
    scheduler = MezzotintScheduler()
    scheduler.set_timesteps(6)
    full = chain(scheduler, randn(1, 1, 4, 4).half().float())
    scheduler.set_timesteps(6)
    x = randn(1, 1, 4, 4).half()
    for t in scheduler.timesteps:
        x = scheduler.step(smooth_network(x.float(), t), t, x).prev_sample
        assert x.dtype == torch.float16
    assert_equal_to(x, full, rel=5e-3)


# ---------------------------------------------------------------------------------------------------- with tables


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_table_of_ddims_coefficients_is_ddim(prediction_type):
    ours = MezzotintScheduler(prediction_type=prediction_type, fitted_schedules=[ddim_table(5)])
    stock = DDIMScheduler(prediction_type=prediction_type, clip_sample=False, timestep_spacing="trailing")
    ours.set_timesteps(5)
    stock.set_timesteps(5)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    z = randn(2, 3, 4, 4)
    assert_equal_to(chain(ours, z), chain(stock, z), rel=1e-5)


def test_a_table_is_what_its_numbers_say():
    """x[i+1] = a x[i] + sum_j c_j D[i-j], with the network asked at tau[i]; worked out beside it in float64."""
    table = {
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "taus": [950.5, 400.25, 30.0],
        "sigmas": [50.0, 1.0, 0.1],
        "coefficients": [[0.9, 0.3], [0.5, 0.8, -0.2], [0.1, 1.2, -0.4, 0.05]],
    }
    scheduler = MezzotintScheduler(fitted_schedules=[table])
    scheduler.set_timesteps(3)
    assert scheduler.fitted_schedule == table
    assert scheduler.sigmas.tolist() == [50.0, 1.0, pytest.approx(0.1), 0.0]
    z = randn(2, 1, 4, 4)
    x, history = z.double(), []
    for tau, (a, *c) in zip(table["taus"], table["coefficients"], strict=True):
        v = smooth_network(x, tau)
        history.insert(0, scheduler.predict_original_sample(v, tau, x).double())
        x = a * x + sum(weight * d for weight, d in zip(c, history, strict=True))
    assert_equal_to(chain(scheduler, z), x, rel=1e-6)


def test_which_table_is_taken():
    tables = [ddim_table(5, 1.0), ddim_table(5, 2.0), ddim_table(5, 7.5), ddim_table(8, 2.0)]
    scheduler = MezzotintScheduler(fitted_schedules=tables)
    for n, guidance_scale, taken in [
        (5, 1.0, (5, 1.0)),
        (5, 0.0, (5, 1.0)),
        (5, 1.9, (5, 2.0)),
        (5, 3.5, (5, 2.0)),
        (5, 20.0, (5, 7.5)),
        (8, 1.0, (8, 2.0)),
        (6, 2.0, None),
    ]:
        scheduler.set_timesteps(n, guidance_scale=guidance_scale)
        table = scheduler.fitted_schedule
        assert (table and (table["num_inference_steps"], table["guidance_scale"])) == taken
    plain = MezzotintScheduler()
    plain.set_timesteps(6)
    scheduler.set_timesteps(6, guidance_scale=2.0)
    assert torch.equal(plain.timesteps, scheduler.timesteps)
    z = randn(1, 1, 4, 4)
    assert torch.equal(chain(plain, z), chain(scheduler, z))
    scheduler.set_timesteps(timesteps=[900, 500, 100, 50, 20])  # custom ones have no table
    assert scheduler.fitted_schedule is None


def test_tables_do_not_touch_ddpm():
    scheduler = MezzotintScheduler(fitted_schedules=[ddim_table(5)], variance_type="fixed_small")
    scheduler.set_timesteps(5)
    assert scheduler.fitted_schedule is None and scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]


@pytest.mark.parametrize("tables", [None, [ddim_table(5)]], ids=["default", "table"])
@pytest.mark.parametrize("by", ["set_begin_index", "timestep"])
def test_a_run_may_begin_in_the_middle(by, tables):
    """From a noised picture: the steps that are left are those of a run over their timesteps alone."""
    ours, rest = MezzotintScheduler(fitted_schedules=tables), MezzotintScheduler()
    ours.set_timesteps(5)
    if by == "set_begin_index":
        ours.set_begin_index(2)
    rest.set_timesteps(timesteps=ours.timesteps[2:].tolist())
    x = randn(1, 1, 4, 4)
    assert_equal_to(chain(ours, x, ours.timesteps[2:]), chain(rest, x), rel=1e-6)
    assert ours.step_index == 5
    fresh = MezzotintScheduler(fitted_schedules=tables)
    for scheduler in (ours, fresh):  # and nothing of it is left in the next run
        scheduler.set_timesteps(5)
    assert torch.equal(chain(ours, x), chain(fresh, x))


def test_a_run_like_the_last_one_is_told_from_others():
    """Timesteps that print alike are not the same, nor is a number under another config; and what was put in the place
    of the timesteps goes with the next call."""
    scheduler = MezzotintScheduler()
    for last in (0.00001, 0.00002):
        scheduler.set_timesteps(timesteps=torch.tensor([900.0, last]))
        assert scheduler.timesteps[1] == pytest.approx(last)
    scheduler.set_timesteps(5)
    expected = scheduler.timesteps.clone()
    scheduler.timesteps = expected[2:]
    scheduler.set_timesteps(5)
    assert torch.equal(scheduler.timesteps, expected)
    scheduler.register_to_config(solver_order=1)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]


def test_no_more_predictions_are_kept_than_are_read():
    for tables, kept in ((None, 2), ([ddim_table(5)], 1)):
        scheduler = MezzotintScheduler(fitted_schedules=tables)
        scheduler.set_timesteps(5)
        chain(scheduler, randn(1, 1, 4, 4))
        assert len(scheduler._predictions) == kept


def test_one_step_too_many_is_refused():
    scheduler = MezzotintScheduler()
    scheduler.set_timesteps(3)
    x = chain(scheduler, randn(1, 1, 4, 4))
    with pytest.raises(ValueError, match="^all 3 steps have been taken: call set_timesteps before another run$"):
        scheduler.step(x, 0, x)


def test_tables_survive_saving_and_other_schedulers(tmp_path, recwarn):
    ours = MezzotintScheduler(fitted_schedules=[ddim_table(5), ddim_table(8, 2.0)])
    ours.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_fitted_schedules"][0] == ddim_table(5)
    z = randn(1, 1, 4, 4)
    samples = []
    stock = DPMSolverMultistepScheduler.from_config(ours.config)
    for scheduler in (
        ours,
        MezzotintScheduler.from_pretrained(tmp_path),
        MezzotintScheduler.from_config(ours.config),
        MezzotintScheduler.from_config(json.loads(ours.to_json_string())),
        MezzotintScheduler.from_config(stock.config, fitted_schedules=ours.fitted_schedules),
    ):
        scheduler.set_timesteps(5)
        assert scheduler.fitted_schedule["provenance"] == {"by": "hand"}
        samples.append(chain(scheduler, z))
    assert all(torch.equal(sample, samples[0]) for sample in samples)
    stock.set_timesteps(5)
    assert torch.isfinite(chain(stock, z)).all()


@pytest.mark.parametrize("name", STOCK)
def test_tables_survive_every_stock_scheduler(name, log, tmp_path):
    """By way of configs and of files, ours saved first or the stock one, in one direction and in the other."""
    ours = MezzotintScheduler(fitted_schedules=[ddim_table(5), ddim_table(8, 2.0)])
    ours.save_pretrained(tmp_path / "ours")
    by_config = STOCK[name].from_config(ours.config)
    by_config.save_pretrained(tmp_path / "stock")
    by_file = STOCK[name].from_pretrained(tmp_path / "ours")
    for back in (
        MezzotintScheduler.from_config(by_config.config),
        MezzotintScheduler.from_config(by_file.config),
        MezzotintScheduler.from_pretrained(tmp_path / "stock"),
        MezzotintScheduler.from_config(STOCK[name].from_pretrained(tmp_path / "stock").config),
        MezzotintScheduler.from_config(DDIMScheduler.from_config(by_config.config).config),
    ):
        assert back.fitted_schedules == ours.fitted_schedules
        back.set_timesteps(8, guidance_scale=2.0)
        assert back.fitted_schedule == ddim_table(8, 2.0)
    assert MezzotintScheduler.from_config(by_config.config, fitted_schedules=None).fitted_schedules is None
    assert [record.getMessage() for record in log.records] == []


def test_files_of_before_tables_had_a_private_name_are_read(tmp_path):
    MezzotintScheduler().save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fitted_schedules": [ddim_table(5)]}))
    loaded = MezzotintScheduler.from_pretrained(tmp_path)
    assert loaded.fitted_schedules == [ddim_table(5)]
    stock = DPMSolverMultistepScheduler.from_config(loaded.config)
    assert MezzotintScheduler.from_config(stock.config).fitted_schedules == [ddim_table(5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taus": None}, "must hold num_inference_steps, .*: got none of taus$"),
        ({"num_inference_steps": 4}, "of 4 steps must hold 4 of each: got {'taus': 5, 'sigmas': 5, 'coefficients': 5}"),
        ({"sigmas": [3.0, 2.0, 1.0]}, "must hold 5 of each: got .*'sigmas': 3"),
        ({"coefficients": [[1.0, 1.0, 1.0]] + [[0.5, 0.5]] * 4}, r"row i .* 2 to i \+ 2 .*: got \[3, 2, 2, 2, 2\]"),
        ({"coefficients": [[1.0]] + [[0.5, 0.5]] * 4}, r"row i .* 2 to i \+ 2 .*: got \[1, 2, 2, 2, 2\]"),
        ({"coefficients": [[0.5, float("nan")]] * 5}, "must hold finite numbers"),
        ({"guidance_scale": float("inf")}, "must hold finite numbers"),
        ({"guidance_scale": "two"}, "must hold finite numbers"),
        ({"taus": 5}, "must hold lists of numbers"),
        ({"coefficients": [1, 2, 3, 4, 5]}, "must hold lists of numbers"),
        ({"num_inference_steps": [5]}, r"steps must hold \[5\] of each"),
        ({"taus": [999, 600, 601, 100, 1]}, r"must descend: got \[999, 600, 601, 100, 1\]"),
        ({"sigmas": [9.0, 8.0, 7.0, 6.0, 6.0]}, "must descend: got .*6.0, 6.0"),
        ({"taus": [1000, 600, 500, 100, 1]}, r"taus .* must be in \[0, 999\]"),
        ({"taus": [999, 600, 500, 100, -1]}, r"taus .* must be in \[0, 999\]"),
    ],
    ids=str,
)
def test_what_is_no_table_is_refused(change, message):
    table = {k: v for k, v in (ddim_table(5) | change).items() if v is not None}
    with pytest.raises(ValueError, match=message) as error:
        MezzotintScheduler(fitted_schedules=[table])
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------ and a correction


def corrected(table: dict, sizes: list[list[int]], weights: list[torch.Tensor]) -> dict:
    numbers = np.concatenate([weight.numpy().astype("<f2").ravel() for weight in weights])
    return table | {"correction": {"shapes": sizes, "weights": base64.b64encode(numbers.tobytes()).decode()}}


def kernels(axes: int, channels: int, predictions: int, width: int = 5) -> tuple[list[list[int]], list[torch.Tensor]]:
    places, seen = [3] * axes, (2 + predictions) * channels
    sizes = [[width, seen, *places], [width], [width, width, *places], [width], [channels, width, *places], [channels]]
    return sizes, [(0.3 * randn(*size, seed=i)).half().float() for i, size in enumerate(sizes)]


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_correction_is_the_network_that_its_weights_say(axes):
    """Beside layers of torch on a run that is kept here: the states and predictions of the same steps without it."""
    sizes, weights = kernels(axes, 2, 1)
    plain = MezzotintScheduler(fitted_schedules=[ddim_table(5)])
    ours = MezzotintScheduler(fitted_schedules=[corrected(ddim_table(5), sizes, weights)])
    layer = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[axes - 1]
    layers = [layer(k[1], k[0], 3, padding=1) for k in sizes[::2]]
    for one, kernel, bias in zip(layers, weights[::2], weights[1::2], strict=True):
        one.weight.data, one.bias.data = kernel, bias
    plain.set_timesteps(5)
    ours.set_timesteps(5)
    x = same = randn(3, 2, *[4] * axes, seed=9)
    for t in plain.timesteps:
        before = x
        x, x_0 = plain.step(smooth_network(x, t), t, x, return_dict=False)
        same = ours.step(smooth_network(same, t), t, same).prev_sample
        if t != plain.timesteps[-1]:
            assert torch.equal(same, x)
    hidden = torch.nn.functional.silu(layers[0](torch.cat([x, before, x_0], 1)))
    hidden = hidden + torch.nn.functional.silu(layers[1](hidden))
    assert_equal_to(same, x + layers[2](hidden), rel=1e-5)
    assert (same - x).abs().mean() > 0.1


def test_a_correction_is_of_whole_runs_of_its_table():
    """Not of one that begins in the middle, nor of another number of steps; float16 samples are corrected in float32;
    and it goes with its table through files and other schedulers."""
    table = corrected(ddim_table(5), *kernels(2, 1, 1))
    ours, plain = MezzotintScheduler(fitted_schedules=[table]), MezzotintScheduler(fitted_schedules=[ddim_table(5)])
    z = randn(2, 1, 4, 4)
    for count, equal in ((5, False), (4, True), (5, False)):
        for scheduler in (ours, plain):
            scheduler.set_timesteps(count)
        assert torch.equal(chain(ours, z), chain(plain, z)) == equal
    middle = []
    for scheduler in (ours, plain):
        scheduler.set_timesteps(5)
        scheduler.set_begin_index(2)
        x = z
        for t in scheduler.timesteps[2:]:
            x = scheduler.step(smooth_network(x, t), t, x).prev_sample
        middle.append(x)
    assert torch.equal(*middle)
    back = MezzotintScheduler.from_config(DDIMScheduler.from_config(ours.config).config)
    for scheduler in (ours, back):
        scheduler.set_timesteps(5)
    assert back.fitted_schedules == [table] and torch.equal(chain(back, z), chain(ours, z))
    ours.set_timesteps(5)
    x = z.half()
    for t in ours.timesteps:
        x = ours.step(smooth_network(x.float(), t), t, x).prev_sample
    ours.set_timesteps(5)
    assert x.dtype == torch.float16
    assert_equal_to(x, chain(ours, z.half().float()), rel=5e-3)


SIZES, WEIGHTS = kernels(2, 1, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": SIZES[:5]},
        {"shapes": [*SIZES[:5], [2]]},
        {"shapes": [[5, 3, 3], *SIZES[1:]]},
        dict(zip(("shapes", "weights"), corrected({}, *kernels(2, 1, 2))["correction"].values(), strict=True)),
        {"shapes": [[5, -3, 3, 3], *SIZES[1:]]},
        {"shapes": [[5, 3, 3, 3.0], *SIZES[1:]]},
        {"shapes": [[10**20, 3, 3, 3], *SIZES[1:]]},
        {"shapes": 7},
        {"weights": "AAAA"},
        {"weights": "not base64"},
        {"weights": "ä"},
        {"weights": 7},
        {"weights": None},
    ],
    ids=str,
)
def test_what_is_no_correction_is_refused(change):
    table = corrected(ddim_table(5), SIZES, WEIGHTS)
    table["correction"] |= change
    message = "^correction of the fitted schedule of 5 steps must hold shapes, .*: got {"
    with pytest.raises(ValueError, match=message) as error:
        MezzotintScheduler(fitted_schedules=[table])
    assert "\n" not in str(error.value) and len(str(error.value)) < 360
    for wrong in ("text", [1], corrected({}, SIZES, [w * float("nan") for w in WEIGHTS])["correction"]):
        with pytest.raises(
            ValueError, match="^correction of the fitted schedule of 5 steps must hold shapes, .*: got "
        ):
            MezzotintScheduler(fitted_schedules=[table | {"correction": wrong}])


@pytest.mark.parametrize(
    ("shape", "got"), [((1, 2, 4, 4), "2 and 2"), ((1, 1, 4), "1 and 1"), ((1, 1, 4, 4, 4), "3 and 1")]
)
def test_samples_that_a_correction_was_not_made_for_are_refused(shape, got):
    scheduler = MezzotintScheduler(fitted_schedules=[corrected(ddim_table(5), SIZES, WEIGHTS)])
    scheduler.set_timesteps(5)
    with pytest.raises(
        ValueError, match=f"^the fitted schedule in use corrects samples of 2 axes and 1 channels: got {got}$"
    ):
        chain(scheduler, randn(*shape))


def test_two_tables_of_a_kind_and_unknown_orders_are_refused():
    with pytest.raises(ValueError, match="one table for each"):
        MezzotintScheduler(fitted_schedules=[ddim_table(5), ddim_table(5)])
    with pytest.raises(ValueError, match="^solver_order must be 1, 2 or 3: got 4$"):
        MezzotintScheduler(solver_order=4)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_of_noise_alone_nothing_is_guided(prediction_type):
    """It has no signal of the class; the division by alpha = 0 would make it infinite."""
    scheduler = MezzotintScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=True)
    output, gradient = randn(2, 1, 4, 4), randn(2, 1, 4, 4, seed=1)
    found = scheduler.guide(output, torch.tensor([999, 500]), gradient)
    assert torch.equal(found[0], output[0]) and found.isfinite().all() and not torch.equal(found[1], output[1])


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_guide_adds_to_the_score(prediction_type):
    scheduler = MezzotintScheduler(prediction_type=prediction_type)
    x, output, gradient = randn(2, 1, 4, 4), randn(2, 1, 4, 4, seed=1), randn(2, 1, 4, 4, seed=2)
    t = torch.tensor([30.5, 700.0])
    before = scheduler.predict_score(output, t, x)
    after = scheduler.predict_score(scheduler.guide(output, t, gradient), t, x)
    torch.testing.assert_close(after - before, gradient, rtol=2e-3, atol=2e-4)
