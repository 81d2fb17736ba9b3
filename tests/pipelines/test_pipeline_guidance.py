"""Guidance in the pipeline: each kind against its formula in a loop written by hand, against diffusers' guiders, and
against distributions that are known in closed form; and how often which network is looked at."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from diffusers.hooks import LayerSkipConfig
from test_pipeline_mezzotint import NEGATIVE, PROMPT, close, draw, encode, load_as_shipped, load_installed, seeded

from mezzotint import MezzotintPipeline, MezzotintScheduler

SIGMAS = [60.0, 6.0, 2.0, 0.5, 0.1]
COMPONENTS = ("unet", "scheduler", "text_encoder", "tokenizer")
CALL = {"timesteps": MezzotintScheduler().sigmas_to_timesteps(torch.tensor(SIGMAS)).tolist(), "output_type": "latent"}


class Affine(torch.nn.Module):
    """A network that multiplies and adds, number by number: the same bits whatever the batch."""

    def __init__(self, gain: float = 0.5):
        super().__init__()
        self.gain, self.dtype, self.device, self.batches = gain, torch.float32, torch.device("cpu"), []
        self.config = SimpleNamespace(
            sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), cross_attention_dim=16,
            sample_mean=(0.0,), sample_std=(1.0,),
        )  # fmt: skip

    def forward(self, sample, timestep, encoder_hidden_states=None, encoder_attention_mask=None, return_dict=True):
        self.batches.append(len(sample))
        shift = encoder_hidden_states[:, 0, :3, None, None] * torch.linspace(0.5, 1, 64).reshape(8, 8)
        return (self.gain * sample + shift * (1 + timestep / 1000),)


def affine(**components) -> tuple[MezzotintPipeline, dict]:
    """A pipeline with such a network, and two prompts and what to steer away from."""
    pipe = MezzotintPipeline(Affine(), MezzotintScheduler(), None, None, **components)
    pipe.set_progress_bar_config(disable=True)
    embeds, negative = (torch.randn(2, 4, 16, generator=seeded(seed)) for seed in (1, 2))
    return pipe, {"prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": negative} | CALL


@torch.no_grad()
def by_hand(pipe, guide, seed=0):
    """The loop with `guide(i, predict)` in place of guidance; `predict(text, network)` looks at a network."""
    pipe.scheduler.set_timesteps(timesteps=CALL["timesteps"])
    latents = torch.randn(1, 3, 8, 8, generator=seeded(seed))
    for i, t in enumerate(pipe.scheduler.timesteps):

        def predict(text, network=pipe.unet, x=latents, t=t):
            return network(x, t, encode(pipe, text)).sample

        latents = pipe.scheduler.step(guide(i, predict), t, latents).prev_sample
    return latents


# ------------------------------------------------------------------------------------------------------- an interval


def plain(cond, uncond, scale):
    return uncond + scale * (cond - uncond)


@pytest.mark.parametrize(
    "interval, guided",
    [((0.3, 10.0), [1, 2, 3]), ((0.0, float("inf")), [0, 1, 2, 3, 4]), ((0.3, 1.0), [3]), ((0.2, 0.3), [])],
)
def test_interval_guides_at_its_noise_levels_and_costs_one_branch_elsewhere(make_pipe, interval, guided):
    pipe, batches = make_pipe(), []
    pipe.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    actual = draw(pipe, negative_prompt=NEGATIVE, guidance_scale=3.0, guidance_interval=interval, **CALL)
    assert batches == [2 if i in guided else 1 for i in range(5)]

    def guide(i, predict):
        return plain(predict(PROMPT), predict(NEGATIVE), 3.0) if i in guided else predict(PROMPT)

    close(actual, by_hand(pipe, guide))


def test_interval_holds_its_upper_end_and_not_its_lower_one():
    pipe, call = affine()
    levels = pipe.scheduler.timesteps_to_sigmas(torch.tensor(CALL["timesteps"]))
    low, high = levels[3].item(), levels[1].item()
    draw(pipe, guidance_interval=(low, high), **call)
    assert pipe.unet.batches == [2, 4, 4, 2, 2]


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "DPMSolverMultistep", "PNDM"])
def test_interval_is_in_sigma_for_stock_schedulers_too(name):
    pipe, call = affine()
    pipe.scheduler = getattr(diffusers, name + "Scheduler").from_config(pipe.scheduler.config)
    del call["timesteps"]
    draw(pipe, guidance_interval=(0.5, 5.0), **call | {"num_inference_steps": 10})
    a = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    sigmas = [((1 - a[int(t)]) / a[int(t)]) ** 0.5 for t in pipe.scheduler.timesteps]
    assert pipe.unet.batches == [4 if 0.5 < sigma <= 5.0 else 2 for sigma in sigmas]
    assert set(pipe.unet.batches) == {2, 4}


# --------------------------------------------------------------------------------------------------- diffusers' guiders


@pytest.mark.parametrize("rescale", [0.0, 0.6])
@pytest.mark.parametrize("interval", [None, (0.3, 10.0)])
def test_own_guidance_is_diffusers_bit_for_bit(rescale, interval):
    guider = ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=rescale)
    outputs = []
    for component, argument in ((None, None), (guider, None), (None, guider)):
        pipe, call = affine(guider=component)
        own = {"guidance_scale": 3.0, "guidance_rescale": rescale} if component is argument is None else {}
        outputs.append(draw(pipe, guider=argument, guidance_interval=interval, **call, **own))
        both = [interval is None or interval[0] < sigma <= interval[1] for sigma in SIGMAS]
        branches = {True: [4], False: [2]} if own else {True: [2, 2], False: [2]}
        if rescale == 0 or interval is None:
            assert pipe.unet.batches == [batch for two in both for batch in branches[two]]
        assert pipe.guidance_scale == 3.0
    assert torch.equal(outputs[1], outputs[2])
    if rescale == 0 or interval is None:  # diffusers' rescales what it does not guide, to what it is up to rounding
        assert torch.equal(outputs[0], outputs[1])
    close(outputs[0], outputs[1])


def test_adaptive_projected_guidance_equals_its_formula(make_pipe):
    """Algorithm 1 of <https://huggingface.co/papers/2410.02416>, with momentum, a threshold and eta."""
    pipe, seen = make_pipe(), {"average": 0.0}
    settings = {"momentum": -0.5, "rescale": 2.6}
    guider = AdaptiveProjectedGuidance(
        guidance_scale=4.0, eta=0.3, **{f"adaptive_projected_guidance_{k}": v for k, v in settings.items()}
    )

    def guide(i, predict):
        cond, uncond = predict(PROMPT).double(), predict(NEGATIVE).double()
        seen["average"] = cond - uncond - 0.5 * seen["average"]
        change = seen["average"] * min(1.0, 2.6 / seen["average"].norm())
        seen.setdefault("bound", []).append(bool(seen["average"].norm() > 2.6))
        parallel = (change * cond).sum() / cond.square().sum() * cond
        return (uncond + 4 * (change - parallel + 0.3 * parallel)).float()

    expected = by_hand(pipe, guide)
    assert set(seen["bound"]) == {True, False}
    close(draw(pipe, negative_prompt=NEGATIVE, guider=guider, **CALL), expected, rel=1e-4)


def only_values(attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
    """Self-attention in which each position attends to itself alone: <https://huggingface.co/papers/2403.17377>."""
    return attn.to_out[0](attn.to_v(hidden_states))


@pytest.mark.parametrize("what", ["layer", "attention", "feed-forward", "scores"])
def test_guider_that_needs_a_crippled_network_cripples_it_and_lets_it_be(make_pipe, monkeypatch, what):
    pipe = make_pipe()
    layer = pipe.unet.mid_block.transformer_layers[0]
    skip = {"skip_attention": what in ("layer", "attention"), "skip_ff": what in ("layer", "feed-forward")}
    config = LayerSkipConfig([0], "mid_block.transformer_layers", **skip, skip_attention_scores=what == "scores")
    if what == "scores":
        both = {"perturbed_guidance_scale": 1.5, "perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 1.0}
        guider = PerturbedAttentionGuidance(guidance_scale=3.0, perturbed_guidance_config=config, **both)
    else:
        both = {"skip_layer_guidance_scale": 1.5, "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
        guider = SkipLayerGuidance(guidance_scale=3.0, skip_layer_config=config, **both)
    skipped = {"layer": layer, "attention": layer.attn1, "feed-forward": layer.ff}

    def guide(i, predict):
        cond, uncond = predict(PROMPT), predict(NEGATIVE)
        with monkeypatch.context() as patch:
            if what == "scores":
                patch.setattr(layer.attn1, "processor", only_values)
            else:
                patch.setattr(skipped[what], "forward", lambda hidden_states, *rest: hidden_states)
            crippled = predict(PROMPT)
        assert (crippled - cond).abs().max() > 0.01
        return plain(cond, uncond, 3.0) + (1.5 * (cond - crippled) if i > 0 else 0)  # diffusers leaves the first out

    expected = by_hand(pipe, guide)
    close(draw(pipe, negative_prompt=NEGATIVE, guider=guider, **CALL), expected)
    close(draw(pipe, negative_prompt=NEGATIVE, guider=guider, **CALL), expected)


def test_networks_that_keep_features_are_shared_by_threads(make_pipe):
    pipe, blocks = make_pipe(), ("mid_block", "up_blocks")
    names = {"spatial_attention_block_identifiers": blocks, "cross_attention_block_identifiers": blocks}
    skips = {"spatial_attention_block_skip_range": 2, "current_timestep_callback": lambda: 500}
    plain = draw(pipe)
    pipe.unet.enable_cache(diffusers.PyramidAttentionBroadcastConfig(**names, **skips))
    expected = [draw(pipe, seed=i, guidance_scale=1.0 + i % 2) for i in range(4)]
    assert not torch.equal(expected[0], plain)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: draw(pipe, seed=i % 4, guidance_scale=1.0 + i % 2), range(24)))
    assert all(torch.equal(x, expected[i % 4]) for i, x in enumerate(found))


def test_taylorseer_keeps_features_of_each_branch(make_pipe):
    pipe = make_pipe()
    plain = draw(pipe, guidance_scale=3.0)
    seer = {"disable_cache_before_step": 2, "taylor_factors_dtype": torch.float32}
    pipe.unet.enable_cache(diffusers.TaylorSeerCacheConfig(cache_interval=1, **seer))
    assert torch.equal(draw(pipe, guidance_scale=3.0), plain)  # every step is looked at
    pipe.unet.disable_cache()
    pipe.unet.enable_cache(diffusers.TaylorSeerCacheConfig(cache_interval=3, **seer))
    expected = draw(pipe, guidance_scale=3.0)
    assert (expected - plain).abs().max() > 1e-3
    assert torch.equal(draw(pipe, guidance_scale=3.0), expected)  # nothing is left of the call before
    close(draw(pipe, guider=ClassifierFreeGuidance(guidance_scale=3.0)), expected)  # branch by branch, not in one batch


def test_pyramid_attention_broadcast_is_refused_where_batches_differ(make_pipe):
    pipe = make_pipe()
    skips = {"spatial_attention_block_skip_range": 2, "current_timestep_callback": lambda: 500}
    names = ("mid_block", "up_blocks")
    pipe.unet.enable_cache(
        diffusers.PyramidAttentionBroadcastConfig(spatial_attention_block_identifiers=names, **skips)
    )
    for wrong in ({"guider": ClassifierFreeGuidance()}, {"guidance_scale": 3.0, "guidance_interval": (0.5, 5.0)}):
        with pytest.raises(ValueError, match="^pyramid attention broadcast keeps the attention of one batch for all"):
            draw(pipe, **wrong)


def test_guider_comes_back_as_it_was():
    guider = ClassifierFreeGuidance(guidance_scale=3.0)
    pipe, call = affine(guider=guider)
    before = guider.get_state()
    with pytest.raises(ZeroDivisionError):
        draw(pipe, guidance_interval=(0.3, 10.0), callback_on_step_end=lambda *_: 1 / 0, **call)
    assert guider.get_state() == before and before["enabled"]
    guider.disable()
    pipe.unet.batches.clear()
    draw(pipe, guidance_interval=(0.3, 10.0), **call)
    assert pipe.unet.batches == [2] * 5 and not guider.get_state()["enabled"]


# ------------------------------------------------------------------------------------------------------ autoguidance


@pytest.mark.parametrize("interval, guided", [(None, [0, 1, 2, 3, 4]), ((0.3, 10.0), [1, 2, 3])])
@pytest.mark.parametrize("by_guider", [False, True])
def test_worse_network_stands_where_the_negative_text_stood(make_pipe, make_unet, interval, guided, by_guider):
    pipe, looks = make_pipe(), []
    pipe.guidance_unet = worse = make_unet(transformer_layers_per_block=(0, 1))
    for name in ("unet", "guidance_unet"):
        hook = lambda _, args, name=name: looks.append((name, len(args[0])))  # noqa: E731
        getattr(pipe, name).register_forward_pre_hook(hook)
    own = {"guider": ClassifierFreeGuidance(guidance_scale=3.0)} if by_guider else {"guidance_scale": 3.0}
    actual = draw(pipe, guidance_interval=interval, **own, **CALL)
    assert sorted(looks) == [("guidance_unet", 1)] * len(guided) + [("unet", 1)] * 5

    def guide(i, predict):
        return plain(predict(PROMPT), predict(PROMPT, worse), 3.0) if i in guided else predict(PROMPT)

    close(actual, by_hand(pipe, guide))
    assert draw(pipe, guidance_scale=1.0, **CALL).sub(actual).abs().max() > 0.1
    with pytest.raises(ValueError, match="guidance_unet stands where a negative prompt would"):
        draw(pipe, negative_prompt=NEGATIVE)


def test_network_without_text_is_guided_by_a_worse_one(make_pipe, make_unet):
    pipe = make_pipe(cross_attention_dim=None)
    pipe.guidance_unet = make_unet(cross_attention_dim=None, layers_per_block=2)
    latents = torch.randn(1, 3, 8, 8, generator=seeded())
    pipe.scheduler.set_timesteps(timesteps=CALL["timesteps"])
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            output = plain(pipe.unet(latents, t).sample, pipe.guidance_unet(latents, t).sample, 1.8)
            latents = pipe.scheduler.step(output, t, latents).prev_sample
    close(draw(pipe, None, guidance_scale=1.8, **CALL), latents)


@pytest.mark.parametrize("load", [load_installed, load_as_shipped])
def test_guider_and_worse_network_are_saved_and_loaded(make_pipe, make_unet, tmp_path, monkeypatch, load):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe = make_pipe()
    pipe.register_modules(guider=ClassifierFreeGuidance(guidance_scale=3.0))
    pipe.register_modules(guidance_unet=make_unet(transformer_layers_per_block=(0, 1)))
    expected = draw(pipe)
    pipe.save_pretrained(tmp_path / "pipe")
    assert len(list((tmp_path / "pipe/guidance_unet").glob("unet_mezzotint_v*.py"))) == 1
    loaded = load(tmp_path / "pipe")
    assert type(loaded.guider) is ClassifierFreeGuidance and loaded.guider.config.guidance_scale == 3.0
    assert torch.equal(draw(loaded), expected)
    again = type(loaded).from_pipe(loaded)
    assert again.guidance_unet is loaded.guidance_unet and again.guider is loaded.guider
    # what is given takes the place of what is there, also of plain diffusers
    mine = AdaptiveProjectedGuidance()
    options = {"trust_remote_code": True} if load is load_as_shipped else {}
    other = (DiffusionPipeline if options else MezzotintPipeline).from_pretrained(
        tmp_path / "pipe", guider=mine, guidance_unet=None, **options
    )
    assert other.guider is mine and other.guidance_unet is None
    # and what was saved before there were such components still loads
    index = json.loads((tmp_path / "pipe/model_index.json").read_text())
    for name in ("guider", "guidance_unet", "classifier"):
        del index[name]
    (tmp_path / "pipe/model_index.json").write_text(json.dumps(index))
    older = load(tmp_path / "pipe")
    assert older.guider is older.guidance_unet is older.classifier is None
    assert torch.equal(draw(older), draw(MezzotintPipeline(*(pipe.components[x] for x in COMPONENTS))))


# -------------------------------------------------------------------------------------------------------- a classifier


class Observation(torch.nn.Module):
    """Of data that is standard normal, x_0 seen through noise of a deviation: p(y | x_t) is normal around E[x_0 | x_t],
    which is alpha_t x_t, with the variance of x_0 given x_t, sigma_t^2, and the noise's."""

    def __init__(self, classes: torch.Tensor, deviation: float):
        super().__init__()
        self.classes, self.deviation, self.scheduler = classes, deviation, MezzotintScheduler()
        self.dtype, self.device = classes.dtype, classes.device

    def get_label_ids(self, labels):
        return torch.tensor([labels] if isinstance(labels, int) else labels)

    def score(self, sample, timestep, class_labels):
        alpha, sigma = self.scheduler._alpha_sigma(timestep, like=sample)
        y = self.classes[class_labels].reshape(-1, 1, 1, 1)
        return alpha * (y - alpha * sample) / (sigma**2 + self.deviation**2)


class Normal(torch.nn.Module):
    """The exact prediction for standard normal data: E[x_0 | x_t] = alpha_t x_t and E[eps | x_t] = sigma_t x_t."""

    def __init__(self, prediction_type: str):
        super().__init__()
        self.prediction_type, self.dtype, self.device = prediction_type, torch.float32, torch.device("cpu")
        self.config = SimpleNamespace(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), cross_attention_dim=None,
            sample_mean=(0.0,), sample_std=(1.0,),
        )  # fmt: skip
        self.scheduler = MezzotintScheduler()

    def forward(self, sample, timestep, return_dict=True):
        alpha, sigma = self.scheduler._alpha_sigma(timestep, like=sample)
        gain = {"epsilon": sigma, "sample": alpha, "v_prediction": alpha * sigma - sigma * alpha}
        return (gain[self.prediction_type] * sample,)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_classifier_draws_from_the_posterior(prediction_type):
    """x_0 standard normal and y = x_0 + r noise: p(x_0 | y) is normal around y / (1 + r^2), its variance is
    r^2 / (1 + r^2), and the probability flow takes each noise to its quantile."""
    classes, r = torch.tensor([-1.5, 0.7, 2.0]), 0.8
    scheduler = MezzotintScheduler(prediction_type=prediction_type)
    pipe = MezzotintPipeline(Normal(prediction_type), scheduler, None, None, classifier=Observation(classes, r))
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 250, "output_type": "latent", "num_images_per_prompt": 2}
    noise = torch.randn(4, 1, 8, 8, generator=seeded())
    drawn = pipe(class_labels=[2, 0], latents=noise, **call).images
    y = classes[torch.tensor([2, 2, 0, 0])].reshape(-1, 1, 1, 1)
    expected = y / (1 + r**2) + noise * r / (1 + r**2) ** 0.5
    assert (drawn - expected).abs().max() < 0.03
    assert torch.equal(pipe(class_labels=torch.tensor([2, 0]), latents=noise, **call).images, drawn)
    # and without it, or outside the interval, there is no steering
    for other in (
        {},
        {"class_labels": 1, "guidance_interval": (1e4, 1e5)},
        {"class_labels": 1, "classifier_scale": 0.0},
    ):
        unguided = pipe(latents=noise[:2], **call, **other).images
        assert (unguided - noise[:2]).abs().max() < 0.03


# ----------------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    "kwargs, rule",
    [
        ({"guidance_interval": (2.0, 0.3)}, r"two noise levels, 0 <= low < high: got \(2.0, 0.3\)"),
        ({"guidance_interval": (-1.0, 0.3)}, r"two noise levels, 0 <= low < high: got \(-1.0, 0.3\)"),
        ({"guider": ClassifierFreeGuidance(guidance_scale="3")}, "the guider's guidance_scale must be a .*: got '3'"),
        ({"guider": ClassifierFreeGuidance(guidance_rescale=None)}, "the guider's guidance_rescale .*: got None"),
        ({"guider": ClassifierFreeGuidance(guidance_scale=float("nan"))}, "the guider's guidance_scale .*: got nan"),
        ({"guidance_scale": 10**400}, "guidance_scale must be a finite number: got 1000000000"),
        ({"class_labels": 3}, "class_labels are for a network that reads them, or a classifier, which this"),
    ],
)
def test_guidance_that_cannot_be_is_refused(make_pipe, kwargs, rule):
    with pytest.raises(ValueError, match=rule) as error:
        draw(make_pipe(), **kwargs)
    assert "\n" not in str(error.value)


def test_classifier_needs_a_scheduler_that_guides_and_a_label_for_each_prompt(make_pipe):
    pipe = make_pipe()
    pipe.classifier = Observation(torch.zeros(3), 1.0)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="need a scheduler that can guide, such as MezzotintScheduler: got DDIMSch"):
        draw(pipe, class_labels=1)
    pipe.scheduler.guide = lambda output, *_: output
    with pytest.raises(ValueError, match="one entry, or one for each of 1 prompts: got 2"):
        draw(pipe, class_labels=[1, 2])


def test_interval_needs_noise_levels(make_pipe):
    pipe = make_pipe()
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(ValueError, match="guidance_interval needs a scheduler with alphas_cumprod: got EDMEuler"):
        draw(pipe, guidance_interval=(0.3, 2.0))
