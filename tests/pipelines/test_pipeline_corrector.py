"""Langevin corrector steps in the denoising loop: beside one written by hand, and with all else that a loop does."""

import diffusers
import pytest
import torch
from test_pipeline_mezzotint import PROMPT, close, draw, encode, seeded

from mezzotint import MezzotintImg2ImgPipeline, MezzotintInpaintPipeline


def recorded(pipe) -> list[float]:
    """The timesteps at which the network will have been evaluated."""
    seen: list[float] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(float(args[1])))
    return seen


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_loop_equals_algorithm_5_by_hand(make_pipe, eta):
    pipe, generator = make_pipe(), seeded(0)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(4)

    def guided(x, t):
        cond, uncond = (pipe.unet(x, t, encode(pipe, text)).sample for text in (PROMPT, ""))
        return uncond + 3.0 * (cond - uncond)

    with torch.no_grad():
        x = torch.randn(1, 3, 8, 8, generator=generator)
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(guided(x, t), t, x, eta=eta, generator=generator).prev_sample
            for _ in range(2 if i < 3 else 0):
                level = scheduler.timesteps[i + 1]
                score = scheduler.predict_score(guided(x, level), level, x)
                sigma_2 = 1 - scheduler._alpha_cumprod(level, x)
                epsilon = 2 * scheduler.alphas[int(level)] * 0.3**2 * sigma_2
                x = x + epsilon * score + (2 * epsilon).sqrt() * torch.randn(x.shape, generator=generator)
    call = {"guidance_scale": 3.0, "eta": eta, "output_type": "latent", "corrector_steps": 2, "snr": 0.3}
    close(draw(pipe, **call), x)


def test_none_is_the_default_to_the_bit(make_pipe):
    pipe = make_pipe()
    seen = recorded(pipe)
    plain = draw(pipe)
    assert torch.equal(draw(pipe, corrector_steps=0, snr=0.5, eta=0.0), plain)
    assert len(seen) == 8
    assert (draw(pipe, corrector_steps=1) - plain).abs().max() > 0.01
    assert torch.equal(draw(pipe), plain)


def test_each_correction_is_an_evaluation_and_callbacks_see_steps(make_pipe):
    """Guidance within an interval guides the corrections at those levels, too."""
    pipe, steps = make_pipe(), []
    seen = recorded(pipe)

    def callback(pipe, i, t, tensors):
        steps.append((i, float(t)))
        return {}

    pipe.scheduler.set_timesteps(3)
    times, sigma = pipe.scheduler.timesteps.tolist(), pipe.scheduler.sigmas.tolist()
    call = {"num_inference_steps": 3, "guidance_interval": (sigma[2], sigma[1]), "callback_on_step_end": callback}
    alone = draw(pipe, corrector_steps=2, **call)
    assert steps == list(enumerate(times))
    assert seen == [times[0], *[times[1]] * 3, *[times[2]] * 3]
    guider = diffusers.guiders.ClassifierFreeGuidance(guidance_scale=2.0)
    close(draw(pipe, corrector_steps=2, guider=guider, **call), alone)


def test_each_picture_depends_on_its_own_generator(make_pipe):
    pipe = make_pipe()
    call = {"corrector_steps": 1, "eta": 0.5}
    together = draw(pipe, [PROMPT] * 3, generator=[seeded(i) for i in range(3)], **call)
    close(together[1:2], draw(pipe, generator=[seeded(1)], **call))


@pytest.mark.parametrize("num_resamples", [1, 2])
def test_what_is_known_is_put_back_after_a_correction(make_pipe, num_resamples):
    """A mask of nothing gives the picture back, a mask of all is image to image; between them the known part stays."""
    pipe, picture = make_pipe(), torch.rand(3, 8, 8, generator=seeded(5))
    inpaint = MezzotintInpaintPipeline(**pipe.components)
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    call = {"image": picture, "corrector_steps": 1, "eta": 0.5}
    found = draw(inpaint, mask_image=mask, num_resamples=num_resamples, **call)
    close(found[0, :, :, :4], picture[..., :4])
    assert (found - draw(inpaint, mask_image=mask, num_resamples=num_resamples, image=picture)).abs().max() > 0.01
    if num_resamples == 1:
        all_of_it = draw(inpaint, mask_image=torch.ones(1, 8, 8), strength=0.5, **call)
        assert torch.equal(all_of_it, draw(MezzotintImg2ImgPipeline(**pipe.components), strength=0.5, **call))


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        ({"corrector_steps": -1}, "^corrector_steps must be a whole number of at least 0: got -1$"),
        ({"corrector_steps": 1.5}, "^corrector_steps must be a whole number of at least 0: got 1.5$"),
        ({"corrector_steps": True}, "^corrector_steps must be a whole number of at least 0: got True$"),
        ({"snr": 0}, "^snr must be a finite number above 0: got 0$"),
        ({"snr": float("nan")}, "^snr must be a finite number above 0: got nan$"),
        (
            {"corrector_steps": 1, "sampler": "DDIMScheduler"},
            "^corrector_steps needs a MezzotintScheduler: got DDIMSch",
        ),
    ],
    ids=str,
)
def test_impossible_corrections_are_refused(make_pipe, call, rule):
    pipe = make_pipe()
    if sampler := (call := dict(call)).pop("sampler", None):
        pipe.scheduler = getattr(diffusers, sampler).from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match=rule) as error:
        draw(pipe, **call)
    assert "\n" not in str(error.value)
