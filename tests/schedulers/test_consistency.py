"""The scheduler's steps for a distilled network: multistep consistency sampling, beside diffusers' LCMScheduler."""

import json
import math

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from test_scheduling_mezzotint import PREDICTIONS, randn, smooth_network

from mezzotint import MezzotintScheduler


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("timesteps", [[999], [999, 500], [999, 759, 499, 259]])
def test_steps_equal_lcm(timesteps, prediction_type):
    """LCM's boundary condition is all but met from its smallest timestep here on: 1 - c_out < 2e-7."""
    ours = MezzotintScheduler(prediction_type=prediction_type, consistency_steps=[len(timesteps)])
    stock = LCMScheduler.from_config(ours.config)
    ends = []
    for scheduler in (ours, stock):
        scheduler.set_timesteps(timesteps=timesteps)
        generator, x = torch.Generator().manual_seed(3), randn(2, 3, 8, 8).double()
        for t in scheduler.timesteps:
            x = scheduler.step(smooth_network(x, t), t, x, generator=generator).prev_sample
        ends.append(x)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [None, 1.0, 4.0])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_timesteps_are_uniform_in_the_angle(n, shift):
    scheduler = MezzotintScheduler(consistency_steps=[2, 4], **{} if shift is None else {"consistency_shift": shift})
    scheduler.set_timesteps(n)
    shift = shift or 1
    angles = (scheduler.timesteps_to_sigmas(scheduler.timesteps.float()).double() / shift).atan()
    most = math.atan(scheduler.timesteps_to_sigmas(torch.tensor(999.0)) / shift)
    expected = most * torch.arange(n, 0, -1).double() / n
    torch.testing.assert_close(angles, expected, rtol=0, atol=1e-5)
    assert scheduler.timesteps[0] == 999


def test_the_last_step_is_the_prediction_and_each_one_before_has_fresh_noise():
    scheduler = MezzotintScheduler(consistency_steps=[2], set_alpha_to_one=False)
    scheduler.set_timesteps(2)
    x, v, (first, last) = randn(200, 1, 8, 8), randn(200, 1, 8, 8, seed=1), scheduler.timesteps
    step = scheduler.step(v, first, x, generator=torch.Generator().manual_seed(0))
    x_0 = scheduler.predict_original_sample(v, first, x)
    alpha, sigma = scheduler._alpha_sigma(last, x)
    noise = (step.prev_sample - alpha * x_0) / sigma
    expected = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step.pred_original_sample, x_0)
    end = scheduler.step(v, last, x).prev_sample
    torch.testing.assert_close(end, scheduler.predict_original_sample(v, last, x), rtol=0, atol=0)


def test_they_are_in_the_config_and_stock_schedulers_carry_them_along(tmp_path, log):
    MezzotintScheduler(consistency_steps=[2, 1, 4], consistency_shift=3.0).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_consistency_steps"] == [2, 1, 4]
    again = MezzotintScheduler.from_pretrained(tmp_path)
    stock = DDIMScheduler.from_config(again.config)
    assert again.consistency_steps == MezzotintScheduler.from_config(stock.config).consistency_steps == [2, 1, 4]
    assert again.consistency_shift == MezzotintScheduler.from_config(stock.config).consistency_shift == 3
    assert MezzotintScheduler.from_config(again.config, consistency_shift=2.0).consistency_shift == 2
    assert MezzotintScheduler.from_config(again.config, consistency_steps=None).consistency_steps is None
    assert MezzotintScheduler.from_config(DDIMScheduler().config).consistency_steps is None
    assert not log.records


@pytest.mark.parametrize(
    "config, words",
    [
        ({"consistency_steps": []}, r"consistency_steps must be a list of numbers in \[1, 1000\]: got \[\]"),
        ({"consistency_steps": [2, 0]}, r"consistency_steps must be a list of numbers in \[1, 1000\]: got \[2, 0\]"),
        ({"consistency_steps": [2], "consistency_shift": 0}, "consistency_shift must be a number above 0: got 0"),
        (
            {"consistency_steps": [2], "consistency_shift": "far"},
            "consistency_shift must be a number above 0: got 'far'",
        ),
        ({"consistency_steps": "24"}, "consistency_steps must be a list of numbers in .* got '24'"),
        (
            {"consistency_steps": [2], "variance_type": "fixed_small"},
            "consistency_steps are all the steps that a distilled network takes: got variance_type 'fixed_small' too",
        ),
    ],
)
def test_what_is_no_such_list_is_refused(config, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        MezzotintScheduler(**config)
