"""The pipeline against the same loop written by hand, against networks whose predictions are known in closed form, and
against itself called in another way that must not matter (batched, from embeddings, saved and loaded)."""

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers.modeling_utils
from diffusers import DiffusionPipeline
from diffusers.guiders import AdaptiveProjectedGuidance, SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from transformers import BertConfig, BertModel, BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mezzotint import MezzotintPipeline, MezzotintScheduler

PROMPT, NEGATIVE = "a red boot", "something else, and longer"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipe, prompt=PROMPT, seed=0, **kwargs) -> torch.Tensor:
    """A short call, as tensors."""
    kwargs = {"num_inference_steps": 4, "generator": seeded(seed), "output_type": "pt"} | kwargs
    return pipe(prompt, **kwargs).images


def close(actual, expected, rel: float = 1e-5) -> None:
    """Equal to `rel` times the largest magnitude, which is what rounding is proportional to."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    assert expected.isfinite().all() and expected.std() > 0.05
    torch.testing.assert_close(actual, expected, rtol=0, atol=rel * expected.abs().max().item())


def encode(pipe, text: str) -> torch.Tensor:
    """What the byte-level T5 makes of a text: its bytes after three special tokens, then the end token."""
    ids = [byte + 3 for byte in text.encode()] + [1]
    return pipe.text_encoder(torch.tensor([ids])).last_hidden_state


@torch.no_grad()
def by_hand(pipe, timesteps, prompt=PROMPT, negative="", guidance_scale=2.0, rescale=0.0, seed=0, change=None, **step):
    """The denoising loop, each text through the network on its own and without padding. `change(i, latents)` may
    replace the latents and the guidance scale after step i."""
    scheduler = pipe.scheduler
    generator = seeded(seed)
    latents = torch.randn(1, 3, 8, 8, generator=generator) * scheduler.init_noise_sigma
    step = {k: generator if k == "generator" else v for k, v in step.items()}
    for i, t in enumerate(timesteps):
        x = scheduler.scale_model_input(latents, t)
        output = cond = pipe.unet(x, t, encode(pipe, prompt)).sample
        if guidance_scale > 1:
            uncond = pipe.unet(x, t, encode(pipe, negative)).sample
            output = rescale_noise_cfg(uncond + guidance_scale * (cond - uncond), cond, rescale)
        latents = scheduler.step(output, t, latents, **step).prev_sample
        if change is not None:
            latents, guidance_scale = change(i, latents, guidance_scale)
    return latents


# -------------------------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize(
    "kwargs",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0},
        {"guidance_scale": 3.0, "negative": NEGATIVE},
        {"guidance_scale": 3.0, "negative": NEGATIVE, "rescale": 0.7},
        {"eta": 0.8, "generator": None},
    ],
)
def test_loop_equals_hand_written(make_pipe, kwargs):
    pipe = make_pipe()
    pipe.scheduler.set_timesteps(4)
    expected = by_hand(pipe, pipe.scheduler.timesteps, **kwargs)
    kwargs = {k: v for k, v in kwargs.items() if k != "generator"}
    names = {"negative": "negative_prompt", "rescale": "guidance_rescale"}
    close(draw(pipe, output_type="latent", **{names.get(k, k): v for k, v in kwargs.items()}), expected)


@pytest.mark.parametrize("custom", [{"timesteps": [950.5, 400.25, 10.0]}, {"sigmas": [60.0, 3.0, 0.2]}])
def test_custom_timesteps_equal_hand_written(make_pipe, custom):
    pipe = make_pipe()
    timesteps = custom.get("timesteps")
    if timesteps is None:  # the timesteps whose noise levels these are
        timesteps = pipe.scheduler.sigmas_to_timesteps(torch.tensor(custom["sigmas"])).tolist()
    pipe.scheduler.set_timesteps(timesteps=timesteps)
    expected = by_hand(pipe, pipe.scheduler.timesteps)
    pipe.scheduler = MezzotintScheduler()
    close(draw(pipe, output_type="latent", **custom), expected)
    assert pipe.num_timesteps == 3


@pytest.mark.parametrize(
    "name, config, kwargs",
    [
        ("DDIM", {}, {"eta": 0.8, "generator": None}),
        ("DDPM", {}, {"generator": None}),
        ("EulerAncestralDiscrete", {}, {"generator": None}),
        ("EulerDiscrete", {"timestep_spacing": "leading"}, {}),
        ("HeunDiscrete", {"timestep_spacing": "leading"}, {}),
        ("PNDM", {}, {}),
    ],
)
def test_stock_sampler_gets_its_noise_level_eta_and_generator(make_pipe, name, config, kwargs):
    pipe = make_pipe()
    pipe.scheduler = getattr(diffusers, name + "Scheduler").from_config(pipe.scheduler.config, **config)
    call = {"eta": 0.8} if "eta" in kwargs else {}
    first, second = (draw(pipe, output_type="latent", **call) for _ in range(2))
    assert torch.equal(first, second)  # a call leaves nothing behind that the next one reads
    pipe.scheduler.set_timesteps(4)
    close(first, by_hand(pipe, pipe.scheduler.timesteps, **kwargs))


def test_stock_sampler_starts_at_the_custom_noise_level(make_pipe):
    pipe, sigmas = make_pipe(), [5.0, 1.0, 0.2, 0.0]
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    first = draw(pipe, output_type="latent", sigmas=sigmas)
    pipe.scheduler.set_timesteps(sigmas=sigmas)
    assert pipe.scheduler.init_noise_sigma == 5.0
    close(first, by_hand(pipe, pipe.scheduler.timesteps))


@pytest.mark.parametrize("guidance_scale, batches", [(1.0, [2] * 4), (0.0, [2] * 4), (2.0, [4] * 4)])
def test_guidance_of_one_costs_one_branch(make_pipe, guidance_scale, batches):
    pipe, seen = make_pipe(), []
    pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    draw(pipe, [PROMPT, "b"], guidance_scale=guidance_scale)
    assert seen == batches and pipe.guidance_scale == guidance_scale


def test_guidance_between_equal_texts_changes_nothing(make_pipe):
    pipe = make_pipe()
    expected = draw(pipe, NEGATIVE, guidance_scale=1.0)
    close(draw(pipe, NEGATIVE, negative_prompt=NEGATIVE, guidance_scale=7.0), expected, rel=1e-4)
    close(draw(pipe, "", guidance_scale=7.0), draw(pipe, "", guidance_scale=1.0), rel=1e-4)


# ------------------------------------------------------------------------------------------- batches and generators


@pytest.mark.parametrize("variance_type", [None, "fixed_small"])
def test_picture_depends_on_its_own_generator_alone(make_pipe, variance_type):
    pipe = make_pipe(scheduler=MezzotintScheduler(variance_type=variance_type))
    prompts = ["a", NEGATIVE, PROMPT]
    singles = torch.cat([draw(pipe, prompt, generator=seeded(i)) for i, prompt in enumerate(prompts)])
    for order in ([0, 1, 2], [2, 0, 1], [1, 2]):
        batch = draw(pipe, [prompts[i] for i in order], generator=[seeded(i) for i in order])
        close(batch, singles[order])
    assert (draw(pipe, "a", seed=1) - singles[0]).abs().max() > 0.1


def test_single_generator_is_reproducible(make_pipe):
    pipe = make_pipe(scheduler=MezzotintScheduler(variance_type="fixed_small"))
    first = draw(pipe, ["a", "a"])
    assert torch.equal(draw(pipe, ["a", "a"]), first)
    assert (first[0] - first[1]).abs().max() > 0.1


def test_pictures_of_a_prompt_stand_side_by_side(make_pipe):
    pipe, order = make_pipe(), [(0, 0), (0, 1), (1, 2), (1, 3)]
    prompts, negatives = ["a", PROMPT], [NEGATIVE, "c"]
    singles = [draw(pipe, prompts[i], negative_prompt=negatives[i], generator=seeded(s)) for i, s in order]
    generators = [seeded(s) for _, s in order]
    batch = draw(pipe, prompts, negative_prompt=negatives, num_images_per_prompt=2, generator=generators)
    close(batch, torch.cat(singles))


@pytest.mark.parametrize("name", [None, "EulerDiscrete"])
def test_latents_take_the_place_of_the_generators_draw(make_pipe, name):
    pipe = make_pipe()
    if name is not None:
        pipe.scheduler = getattr(diffusers, name + "Scheduler").from_config(pipe.scheduler.config)
    latents = torch.randn(2, 3, 8, 8, generator=seeded(5))
    kept = latents.clone()
    assert torch.equal(draw(pipe, ["a", "b"], latents=latents), draw(pipe, ["a", "b"], seed=5))
    assert torch.equal(latents, kept)


# ------------------------------------------------------------------------------------------------------------ text


def test_embeddings_equal_prompts(make_pipe):
    pipe = make_pipe()
    prompts = ["a", PROMPT]
    expected = draw(pipe, prompts, negative_prompt=NEGATIVE, num_images_per_prompt=2)
    positive, negative, mask, negative_mask = pipe.encode_prompt(prompts, negative_prompt=NEGATIVE)
    assert mask.sum(1).tolist() == [2, 11] and negative_mask.sum(1).tolist() == [27, 27]
    kwargs = {"prompt_embeds": positive, "prompt_attention_mask": mask, "num_images_per_prompt": 2}
    close(draw(pipe, None, negative_prompt=NEGATIVE, **kwargs), expected)
    kwargs |= {"negative_prompt_embeds": negative, "negative_prompt_attention_mask": negative_mask}
    close(draw(pipe, None, **kwargs), expected)
    one = {"negative_prompt_embeds": encode(pipe, NEGATIVE)}  # one for all, and no mask: every token counts
    close(draw(pipe, None, **kwargs | one | {"negative_prompt_attention_mask": None}), expected)


def test_prompts_can_be_encoded_before_there_is_a_network(make_pipe):
    pipe = make_pipe()
    first = MezzotintPipeline(None, None, pipe.text_encoder, pipe.tokenizer)
    positive, negative, mask, negative_mask = first.encode_prompt(PROMPT, negative_prompt=NEGATIVE)
    masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": negative_mask}
    then = MezzotintPipeline(pipe.unet, pipe.scheduler, None, None)
    output = draw(then, None, prompt_embeds=positive, negative_prompt_embeds=negative, **masks)
    close(output, draw(pipe, negative_prompt=NEGATIVE))


@pytest.mark.parametrize("prompt", ["", " ", "déjà 漢字 🎨", "a\nb"])
def test_any_text_is_its_bytes(make_pipe, prompt):
    pipe = make_pipe()
    expected = draw(pipe, None, prompt_embeds=encode(pipe, prompt), negative_prompt_embeds=encode(pipe, ""))
    close(draw(pipe, prompt), expected)


def test_overlong_prompt_is_cut_with_a_warning(make_pipe, caplog):
    pipe = make_pipe()
    text = "a red boot and so on, " * 5
    expected = draw(pipe, text[:47])  # and the end token
    close(draw(pipe, [text, "b"])[:1], draw(pipe, [text[:47], "b"])[:1])
    (warning,) = (record.getMessage() for record in caplog.records if record.name.startswith("mezzotint.pipelines."))
    assert warning.endswith(f"takes 48 tokens; this part of a prompt was cut off: {text[47:]!r}")
    close(draw(pipe, text), expected)


def test_what_was_cut_off_is_named_by_its_beginning(make_pipe, caplog):
    pipe = make_pipe()
    text = "a red boot and so on, " * 5000
    draw(pipe, text, num_inference_steps=1)
    (warning,) = (record.getMessage() for record in caplog.records if record.name.startswith("mezzotint.pipelines."))
    assert warning.endswith(f"was cut off: {text[47:147]!r} and so on, {len(text) - 47} characters")


def tiny_clip(folder):
    vocabulary = [*"abdehort", *(c + "</w>" for c in "abdehort"), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 18, "eos_token_id": 19, "pad_token_id": 19}
    config = CLIPTextConfig(vocab_size=20, max_position_embeddings=12, **size, **special)
    return CLIPTextModel(config).eval(), tokenizer, [18, 8, 17, 1, 5, 5, 15, 19]  # a red b o o t


def tiny_bert(folder):
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "boo", "##t"])
    )
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=9, max_position_embeddings=12, **size)).eval(), tokenizer, [2, 5, 6, 7, 8, 3]


@pytest.mark.parametrize("make", [tiny_clip, tiny_bert])
def test_other_text_encoders_work_and_round_trip(make_pipe, tmp_path, make):
    text_encoder, tokenizer, ids = make(tmp_path)
    pipe = make_pipe(text_encoder=text_encoder, tokenizer=tokenizer)
    positive, negative, mask, negative_mask = pipe.encode_prompt(PROMPT)
    assert mask.sum() == len(ids) and negative_mask.sum() == 2
    close(positive, text_encoder(torch.tensor([ids])).last_hidden_state)
    close(negative[:, :2], text_encoder(torch.tensor([[ids[0], ids[-1]]])).last_hidden_state)
    expected = draw(pipe, [PROMPT, "a"])
    close(expected[1:], draw(pipe, "a", latents=torch.randn(2, 3, 8, 8, generator=seeded())[1:]))
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = MezzotintPipeline.from_pretrained(tmp_path / "pipe")
    assert type(loaded.text_encoder) is type(text_encoder)
    assert torch.equal(draw(loaded, [PROMPT, "a"]), expected)
    close(draw(loaded, "a red " * 9)[0], draw(loaded, "a red " * 5)[0])  # both end at the 12 positions there are


# ---------------------------------------------------------------------------------------------------------- pixels


class GaussianUNet(torch.nn.Module):
    """Predicts the velocity exactly for data that is normal around a picture: E[x_0 | x_t] in closed form."""

    def __init__(self, mean: torch.Tensor, std: float, **config):
        super().__init__()
        self.register_buffer("mean", mean)
        self.std = std
        self.dtype, self.device = mean.dtype, mean.device
        defaults = {
            "block_out_channels": (8, 16),
            "cross_attention_dim": None,
            "sample_mean": (0.0,),
            "sample_std": (1.0,),
        }
        size = {"sample_size": tuple(mean.shape[1:]), "in_channels": len(mean), "out_channels": len(mean)}
        self.config = SimpleNamespace(**defaults | size | config)
        a = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        self.log_sigmas = 0.5 * np.log((1 - a) / a)

    def forward(self, sample, timestep, encoder_hidden_states=None, encoder_attention_mask=None, return_dict=True):
        ratio = float(np.exp(np.interp(float(timestep), np.arange(1000), self.log_sigmas)))
        alpha, sigma = 1 / (1 + ratio**2) ** 0.5, ratio / (1 + ratio**2) ** 0.5
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        x_0 = self.mean + gain * (sample - alpha * self.mean)
        eps = (sample - alpha * x_0) / sigma
        return (alpha * eps - sigma * x_0,)


def known_picture(channels: int = 3, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.rand(channels, height, width, generator=seeded(3))


@pytest.mark.parametrize(
    "name, steps",
    [
        *((name, 200) for name in (None, "DDIM", "EulerDiscrete")),
        *((name, 400) for name in ("DDPM", "EulerAncestralDiscrete")),
        *((name, 50) for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep")),
        *((name, 50) for name in ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "LMSDiscrete")),
        ("PNDM", 100),
    ],
)
def test_sampler_lands_on_the_datas_mean_and_deviation(name, steps):
    mean = 2 * known_picture(1) - 1
    pipe = MezzotintPipeline(GaussianUNet(mean, std=0.4), MezzotintScheduler(), None, None)
    pipe.set_progress_bar_config(disable=True)
    if name is not None:
        pipe.scheduler = getattr(diffusers, name + "Scheduler").from_config(pipe.scheduler.config)
    kwargs = {"num_images_per_prompt": 4, "num_inference_steps": steps, "output_type": "latent"}
    rest = draw(pipe, None, **kwargs) - mean  # 16384 draws: the mean is uncertain by 0.003, the deviation by 0.5 %
    assert rest.mean().abs() < 0.02 and abs(rest.std() / 0.4 - 1) < 0.04
    assert np.corrcoef(rest.mean(0).flatten(), mean.flatten())[0, 1] < 0.1


@pytest.mark.parametrize(
    "scale",
    [
        {"sample_mean": (-0.2, 0.1, 0.3), "sample_std": (0.5, 0.25, 0.75)},
        {"sample_mean": (0.4,), "sample_std": (0.5,)},
        {"sample_mean": [0.0], "sample_std": [1.0]},
    ],
)
def test_data_scale_is_undone(scale):
    picture = known_picture(3, 8, 12)  # in [0, 1]
    mean, std = (torch.tensor(x).reshape(-1, 1, 1) for x in scale.values())
    pipe = MezzotintPipeline(
        GaussianUNet((2 * picture - 1 - mean) / std, 0.0, **scale), MezzotintScheduler(), None, None
    )
    pipe.set_progress_bar_config(disable=True)
    close(draw(pipe, None)[0], picture, rel=1e-5)
    image = draw(pipe, None, output_type="pil")[0]
    assert np.array_equal(np.asarray(image), (picture.permute(1, 2, 0) * 255).round().byte().numpy())


def test_pixels_beyond_the_range_are_clipped():
    pipe = MezzotintPipeline(GaussianUNet(4 * known_picture(3, 8, 8) - 2, 0.0), MezzotintScheduler(), None, None)
    pipe.set_progress_bar_config(disable=True)
    close(draw(pipe, None)[0], (2 * known_picture(3, 8, 8) - 0.5).clamp(0, 1))


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_output_types_agree(make_pipe, channels, mode):
    scale = {"sample_mean": (0.1,) * channels, "sample_std": (0.2,) * channels}
    pipe = make_pipe(in_channels=channels, out_channels=channels, **scale)
    pt, array, pil, latent = (draw(pipe, ["a", "b"], output_type=kind) for kind in ("pt", "np", "pil", "latent"))
    assert isinstance(array, np.ndarray)
    close(array, pt.permute(0, 2, 3, 1), rel=1e-6)
    close(((latent * 0.2 + 0.1 + 1) / 2).clamp(0, 1), pt, rel=1e-6)
    assert [image.mode for image in pil] == [mode] * 2 and pt.shape == (2, channels, 8, 8)
    for image, values in zip(pil, array, strict=True):
        assert np.array_equal(np.asarray(image).reshape(values.shape), (values * 255).round())
    assert torch.equal(
        pipe("a", generator=seeded(), num_inference_steps=4, output_type="pt", return_dict=False)[0], draw(pipe, "a")
    )


@pytest.mark.parametrize("height, width", [(7, 5), (9, 16), (1, 1)])
def test_odd_size_is_the_crop_of_a_larger_picture(make_pipe, height, width):
    pipe = make_pipe()
    larger = draw(pipe, height=height + height % 2, width=width + width % 2)
    assert torch.equal(draw(pipe, height=height, width=width), larger[..., :height, :width])
    assert draw(pipe, height=height, width=width, output_type="pil")[0].size == (width, height)


@pytest.mark.parametrize("height, width", [(16, 8), (9, 13)])
def test_patches_are_the_networks_affair(make_pipe, height, width):
    """The pipeline draws the noise of whole patches at the lowest level, and a picture of the size that was asked for,
    which is that of the network without patches on the noise's patches."""
    pipe = make_pipe(patch_size=4)
    sides = tuple(-(-side // 8) * 8 for side in (height, width))
    noise, seen = torch.randn(1, 3, *sides, generator=seeded()), []
    plain = make_pipe(in_channels=48, out_channels=48, sample_mean=(0.0,), sample_std=(1.0,))
    plain.unet.load_state_dict(pipe.unet.state_dict())
    options = {"num_inference_steps": 4, "output_type": "latent"}
    patches = torch.nn.functional.pixel_unshuffle(noise, 4)
    expected = plain("a", latents=patches, height=sides[0] // 4, width=sides[1] // 4, **options).images
    pipe.unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0].shape), with_kwargs=True)
    found = pipe("a", generator=seeded(), height=height, width=width, **options).images
    close(found, torch.nn.functional.pixel_shuffle(expected, 4), rel=1e-4)
    assert {shape[2:] for shape in seen} == {sides}
    drawn = draw(pipe, "a", height=height, width=width)
    assert drawn.shape[2:] == (height, width)
    assert torch.equal(drawn, draw(pipe, "a", height=sides[0], width=sides[1])[..., :height, :width])


@pytest.mark.parametrize("sample_size", [(4, 12), [4, 12], 8])
def test_default_size_is_the_networks(make_pipe, sample_size):
    pipe = make_pipe(sample_size=sample_size)
    height, width = (8, 8) if sample_size == 8 else sample_size
    assert torch.equal(draw(pipe), draw(pipe, height=height, width=width))


# -------------------------------------------------------------------------------------------------------- callbacks


def test_callback_sees_and_replaces_the_latents(make_pipe):
    pipe, seen = make_pipe(), []

    def halve(pipe, i, t, tensors):
        seen.append((i, float(t), tensors["latents"].clone()))
        return {"latents": tensors["latents"] / 2} if i == 1 else {}

    output = draw(pipe, callback_on_step_end=halve, output_type="latent")
    pipe.scheduler.set_timesteps(4)
    timesteps = pipe.scheduler.timesteps
    expected = []

    def change(i, latents, guidance_scale):
        expected.append((i, float(timesteps[i]), latents))
        return latents / 2 if i == 1 else latents, guidance_scale

    close(output, by_hand(pipe, timesteps, change=change))
    for (i, t, latents), (*known, known_latents) in zip(seen, expected, strict=True):
        assert [i, t] == known
        close(latents, known_latents)


def test_callback_turns_guidance_off_midway(make_pipe):
    pipe, batches = make_pipe(), []
    pipe.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))

    def off(pipe, i, t, tensors):
        if i != 1:
            return {}
        pipe._guidance_scale = 1.0
        return {k: tensors[k].chunk(2)[1] for k in ("prompt_embeds", "prompt_attention_mask")}

    names = ["prompt_embeds", "prompt_attention_mask"]
    kwargs = {"callback_on_step_end": off, "callback_on_step_end_tensor_inputs": names, "output_type": "latent"}
    output = draw(pipe, negative_prompt=NEGATIVE, guidance_scale=3.0, **kwargs)
    assert batches == [2, 2, 1, 1]
    pipe.scheduler.set_timesteps(4)

    def change(i, latents, guidance_scale):
        return latents, 1.0 if i == 1 else guidance_scale

    close(output, by_hand(pipe, pipe.scheduler.timesteps, negative=NEGATIVE, guidance_scale=3.0, change=change))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("name", ["Mezzotint", "DDIM", "EulerDiscrete", "DPMSolverMultistep"])
def test_callback_is_handed_the_prediction_of_clean_data(make_pipe, monkeypatch, name, prediction_type):
    if (name, prediction_type) == ("EulerDiscrete", "sample"):
        pytest.skip("diffusers has no such step")
    pipe, given, expected = make_pipe(), [], []
    cls = MezzotintScheduler if name == "Mezzotint" else getattr(diffusers, f"{name}Scheduler")
    pipe.scheduler = cls.from_config(MezzotintScheduler(prediction_type=prediction_type).config)
    stock = cls.step

    def step(self, model_output, timestep, sample, return_dict=True, **kwargs):
        if name == "DPMSolverMultistep":  # which tells nobody
            if self.step_index is None:
                self._init_step_index(timestep)
            expected.append(self.convert_model_output(model_output, sample=sample))
            return stock(self, model_output, timestep, sample, return_dict=return_dict, **kwargs)
        output = stock(self, model_output, timestep, sample, **kwargs)
        expected.append(output.pred_original_sample)
        return (output.prev_sample,)

    monkeypatch.setattr(cls, "step", step)
    names = ["latents", "pred_original_sample"]
    keep = {"callback_on_step_end": lambda pipe, i, t, tensors: given.append(tensors["pred_original_sample"])}
    draw(pipe, guidance_scale=2.0, callback_on_step_end_tensor_inputs=names, **keep)
    assert len(given) == len(expected) == 4
    for found, wanted in zip(given, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_interrupt_keeps_what_was_reached(make_pipe):
    pipe, reached = make_pipe(), []
    expected = draw(pipe, output_type="latent")

    def stop(pipe, i, t, tensors):
        reached.append(tensors["latents"])
        pipe._interrupt = i == 1
        return {}

    output = draw(pipe, callback_on_step_end=stop, output_type="latent")
    assert len(reached) == 2 and torch.equal(output, reached[1])
    assert torch.equal(draw(pipe, output_type="latent"), expected)  # the next call runs to its end


def test_interrupting_one_call_interrupts_no_other(make_pipe):
    """Neither one within its callback, nor that which it is in; from outside all of them."""
    pipe = make_pipe()
    alone = [draw(pipe, seed=seed, num_inference_steps=steps, output_type="latent") for seed, steps in ((0, 4), (1, 3))]
    within = []

    def inner(run, i, t, tensors):
        run._interrupt = i == 0
        return {}

    def outer(run, i, t, tensors):
        within.append(draw(pipe, seed=1, num_inference_steps=3, output_type="latent", guidance_scale=2.0))
        draw(pipe, seed=2, guidance_scale=5.0, callback_on_step_end=inner)
        return {}

    assert torch.equal(draw(pipe, output_type="latent", callback_on_step_end=outer), alone[0])
    assert len(within) == 4 and all(torch.equal(x, alone[1]) for x in within)

    def stop(run, i, t, tensors):
        pipe._interrupt = i == 1
        return {}

    stopped = draw(pipe, output_type="latent", callback_on_step_end=stop)
    assert not torch.equal(stopped, alone[0])


SKIP = {"skip_layer_guidance_scale": 1.5, "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
MOMENTUM = {"adaptive_projected_guidance_momentum": -0.5}


@pytest.mark.parametrize("name", [None, "DPMSolverMultistep", "UniPCMultistep", "HeunDiscrete", "EulerDiscrete"])
def test_threads_share_a_pipeline(make_pipe, name):
    """200 calls over 8 threads, each with its own steps, guidance, guider, prompts: the bits of each alone."""
    pipe = make_pipe(block_out_channels=(16,), transformer_layers_per_block=(1,))
    if name is not None:
        pipe.scheduler = getattr(diffusers, name + "Scheduler").from_config(pipe.scheduler.config)
    skipped = LayerSkipConfig([0], "mid_block.transformer_layers")

    def call(i: int) -> torch.Tensor:
        guiders = {1: lambda: SkipLayerGuidance(3.0, skip_layer_config=skipped, **SKIP)}
        guiders[2] = lambda: AdaptiveProjectedGuidance(3.0, **MOMENTUM)
        options = {"guider": guiders[i % 5]()} if i % 5 in guiders else {"guidance_scale": (1.0, 2.0, 5.0)[i % 3]}
        prompts = [PROMPT[: i % 11], NEGATIVE][: 1 + i % 2]
        return draw(pipe, prompts, seed=i, num_inference_steps=1 + i % 3, **options)

    kinds = 30 if name is None else 6  # of calls: each comes several times
    expected = [call(i) for i in range(kinds)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: call(i % kinds), range(200 if name is None else 40)))
    assert sum(not torch.equal(x, expected[i % kinds]) for i, x in enumerate(found)) == 0


def test_a_call_leaves_the_scheduler_set_for_it(make_pipe):
    """As users of diffusers know it: the timesteps of the last call, at no cost when asked for again."""
    pipe, steps = make_pipe(), []
    draw(pipe, num_inference_steps=3, callback_on_step_end=lambda run, *_: steps.append(run.scheduler.step_index) or {})
    assert steps == [1, 2, 3] and len(pipe.scheduler.timesteps) == pipe.num_timesteps == 3
    rows = pipe.scheduler._rows
    draw(pipe, num_inference_steps=3)
    assert pipe.scheduler._rows is rows


def test_progress_bar_counts_the_networks_steps(make_pipe):
    pipe, text = make_pipe(), io.StringIO()
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=False, file=text)
    draw(pipe)
    assert re.findall(r"(\d+)/(\d+)", text.getvalue())[-1] == ("7", "7")  # Heun looks twice at all steps but the last


# ------------------------------------------------------------------------------------ nothing but the network's work


def test_device_is_looked_up_once_a_call_and_anew_in_the_next(make_pipe, monkeypatch):
    pipe, looked = make_pipe(), []
    found = DiffusionPipeline._execution_device.fget  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(DiffusionPipeline, "_execution_device", property(lambda x: looked.append(x) or found(x)))
    first = draw(pipe)
    assert len(looked) == 1
    torch.testing.assert_close(draw(pipe), first)
    assert len(looked) == 2


def test_text_is_read_once_a_call_and_again_when_a_callback_replaces_it(make_pipe):
    pipe, calls = make_pipe(), []
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2.to_k"):
            module.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    draw(pipe)
    assert calls == [2] * 5  # both branches at once, in each of the five units

    def change(pipe, i, t, tensors):
        return {"prompt_embeds": torch.cat([encode(pipe, "c"), encode(pipe, "d")])} if i == 1 else {}

    calls.clear()
    prompts = {"prompt": "a", "negative_prompt": "b", "guidance_scale": 3.0, "output_type": "latent"}
    changed = draw(pipe, **prompts, callback_on_step_end=change)
    assert calls == [2] * 10
    texts = iter(["a", "a", "d", "d"])
    negatives = iter(["b", "b", "c", "c"])
    pipe.scheduler.set_timesteps(4)
    latents = torch.randn(1, 3, 8, 8, generator=seeded())
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            cond, uncond = (pipe.unet(latents, t, encode(pipe, next(x))).sample for x in (texts, negatives))
            latents = pipe.scheduler.step(uncond + 3 * (cond - uncond), t, latents).prev_sample
    close(changed, latents)


@pytest.mark.parametrize("interval", [None, (0.5, 5.0)])
def test_text_read_ahead_gives_the_bits_of_text_read_at_every_step(make_pipe, monkeypatch, interval):
    pipe = make_pipe()
    expected = draw(pipe, [PROMPT, "b"], guidance_interval=interval)
    monkeypatch.setattr(type(pipe.unet), "project_text", lambda *_: None)
    assert torch.equal(draw(pipe, [PROMPT, "b"], guidance_interval=interval), expected)
    monkeypatch.delattr(type(pipe.unet), "project_text")  # as of any other network
    assert torch.equal(draw(pipe, [PROMPT, "b"], guidance_interval=interval), expected)


def test_compiled_network_draws_the_same_bits(make_pipe):
    pipe = make_pipe(block_out_channels=(16,), transformer_layers_per_block=(1,))
    expected = draw(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    assert torch.equal(draw(pipe), expected)


def test_channels_last_draws_the_same(make_pipe):
    pipe = make_pipe()
    expected = draw(pipe)
    pipe.unet.to(memory_format=torch.channels_last)
    close(draw(pipe), expected)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete", "HeunDiscrete"])
def test_no_timestep_is_looked_up(make_pipe, monkeypatch, name):
    """Each look-up would wait for the device."""
    pipe, cls = make_pipe(), getattr(diffusers, name + "Scheduler")
    pipe.scheduler = cls.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(4)
    expected = by_hand(pipe, pipe.scheduler.timesteps)
    monkeypatch.setattr(cls, "index_for_timestep", lambda *_, **__: 1 / 0)
    close(draw(pipe, output_type="latent"), expected)


class Waits(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the numbers that are read from tensors: on an accelerator the program would wait for each."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_steps_wait_for_nothing(make_pipe, prediction_type):
    pipe = make_pipe(scheduler=MezzotintScheduler(solver_order=2, prediction_type=prediction_type))
    counts = []
    with Waits() as waits:
        pipe.unet.register_forward_pre_hook(lambda *_: counts.append(waits.count))
        pipe(PROMPT, num_inference_steps=6, guidance_interval=(0.1, 5.0), output_type="latent")
    assert len(counts) == 6 and len(set(counts)) == 1


@pytest.mark.parametrize("guidance_scale, fitted_at", [(1.0, 1.0), (1.4, 1.0), (2.9, 3.0), (3.0, 3.0)])
def test_schedule_fitted_at_the_nearest_guidance_is_taken_and_named_once(make_pipe, caplog, guidance_scale, fitted_at):
    pipe = make_pipe()
    asked = []

    class Fitted(MezzotintScheduler):
        def set_timesteps(self, num_inference_steps=None, device=None, guidance_scale=1.0, **kwargs):
            asked.append(guidance_scale)
            super().set_timesteps(num_inference_steps, device, **kwargs)
            self.fitted_schedule = {"guidance_scale": min((1.0, 3.0), key=lambda scale: abs(scale - guidance_scale))}

    pipe.scheduler = Fitted()
    for _ in range(2):
        draw(pipe, guidance_scale=guidance_scale)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("mezzotint.pipelines.")]
    assert asked == [guidance_scale] * 2
    rule = f"4 steps was fitted at guidance_scale {fitted_at:g}, the nearest to {guidance_scale:g}"
    assert len(said) == (guidance_scale != fitted_at) and all(rule in line for line in said)


@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_guided_samples_are_thresholded_as_by_diffusers(make_pipe, guidance_scale):
    pipe = make_pipe(scheduler=MezzotintScheduler(thresholding=True, sample_max_value=1.5, solver_order=1))
    actual = draw(pipe, guidance_scale=guidance_scale, output_type="latent")
    assert actual.abs().max() <= 1  # the last step ends on the thresholded prediction
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    close(actual, draw(pipe, guidance_scale=guidance_scale, output_type="latent"))


# -------------------------------------------------------------------------------------------- precision and storage


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_half_precision_draws_nearly_the_same(make_pipe, dtype, tolerance):
    expected = draw(make_pipe())
    pipe = make_pipe().to(dtype)
    images = draw(pipe)
    assert pipe.unet.dtype == pipe.text_encoder.dtype == dtype and images.dtype == torch.float32
    assert 0 < (images - expected).abs().mean() < tolerance


def test_half_precision_ends_at_the_network(make_pipe):
    pipe, outputs = make_pipe().to(torch.bfloat16), []
    pipe.unet.register_forward_hook(lambda _, args, output: outputs.append(output[0].float()))
    actual = draw(pipe, guidance_scale=3.0, output_type="latent")
    latents = torch.randn(1, 3, 8, 8, generator=seeded())
    pipe.scheduler.set_timesteps(4)
    for t, output in zip(pipe.scheduler.timesteps, outputs, strict=True):
        uncond, cond = output.chunk(2)
        latents = pipe.scheduler.step(uncond + 3 * (cond - uncond), t, latents).prev_sample
    close(actual, latents, rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs an accelerator")
def test_offloaded_pipeline_draws_the_same(make_pipe):
    expected = draw(make_pipe().to("cuda")).cpu()
    pipe = make_pipe()
    pipe.enable_model_cpu_offload()
    close(draw(pipe).cpu(), expected, rel=1e-4)


def load_installed(folder, **components):
    return MezzotintPipeline.from_pretrained(folder, **components)


def load_as_shipped(folder, **components):
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **components)


@pytest.mark.parametrize("load", [load_installed, load_as_shipped])
@pytest.mark.parametrize("config", [{"sample_std": (0.5, 0.6, 0.7)}, {"cross_attention_dim": None}])
def test_saved_and_loaded_pipeline_draws_the_same_bits(make_pipe, tmp_path, monkeypatch, config, load):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe = make_pipe(scheduler=MezzotintScheduler(beta_schedule="scaled_linear", variance_type="fixed_small"), **config)
    prompt = PROMPT if pipe.text_encoder is not None else None
    expected = draw(pipe, prompt)
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = load(tmp_path / "pipe")
    assert (type(loaded) is MezzotintPipeline) == (load is load_installed)
    assert (loaded.text_encoder is None) == (pipe.text_encoder is None)
    assert torch.equal(draw(loaded, prompt), expected)


@pytest.mark.parametrize("options", [{}, {"device_map": "cpu"}, {"torch_dtype": torch.bfloat16}])
def test_each_file_of_weights_is_read_once_and_nothing_of_it_kept_twice(make_pipe, tmp_path, monkeypatch, options):
    make_pipe().save_pretrained(tmp_path)
    opened, safe_open = [], safetensors.safe_open

    def counted(path, *args, **kwargs):
        opened.append(Path(path).parent.name)
        return safe_open(path, *args, **kwargs)

    for module in (safetensors, safetensors.torch, transformers.modeling_utils):
        monkeypatch.setattr(module, "safe_open", counted)
    pipe = MezzotintPipeline.from_pretrained(tmp_path, **options)
    assert sorted(opened) == ["text_encoder", "unet"]
    for tensor in pipe.unet.parameters():
        storage = tensor.untyped_storage()
        assert storage.nbytes() == tensor.numel() * tensor.element_size() and storage.data_ptr() % 64 == 0
        assert tensor.dtype == options.get("torch_dtype", torch.float32)


def test_pipeline_without_text_equals_hand_written(make_pipe):
    pipe = make_pipe(cross_attention_dim=None)
    pipe.scheduler.set_timesteps(4)
    latents = torch.randn(2, 3, 8, 8, generator=seeded())
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            latents = pipe.scheduler.step(pipe.unet(latents, t).sample, t, latents).prev_sample
    close(draw(pipe, None, num_images_per_prompt=2, output_type="latent", guidance_scale=3.0), latents)


def test_from_pipe_shares_the_components(make_pipe):
    pipe = make_pipe()
    other = MezzotintPipeline.from_pipe(pipe)
    assert all(other.components[name] is component for name, component in pipe.components.items())
    assert torch.equal(draw(other), draw(pipe))
    scheduler = MezzotintScheduler(variance_type="fixed_small")
    third = MezzotintPipeline.from_pipe(pipe, scheduler=scheduler)
    assert third.scheduler is scheduler and third.unet is pipe.unet and third.text_encoder is pipe.text_encoder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_from_pipe_leaves_the_components_as_they_are(make_pipe, dtype):
    pipe = make_pipe()
    pipe.unet.to(dtype)
    state = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    other = MezzotintPipeline.from_pipe(pipe)
    assert other.unet is pipe.unet and pipe.text_encoder.dtype == torch.float32
    assert all(torch.equal(weight, state[name]) for name, weight in pipe.unet.state_dict().items())
    assert pipe.unet.dtype == dtype
    assert MezzotintPipeline.from_pipe(pipe, dtype=torch.float32).unet.dtype == torch.float32  # as it is asked for


# -------------------------------------------------------------------------------------------------- what it refuses

EMBEDS = torch.zeros(1, 5, 16)


@pytest.mark.parametrize(
    "kwargs, rule",
    [
        ({"output_type": "jpeg"}, "output_type must be one of 'pil', 'np', 'pt', 'latent': got 'jpeg'"),
        ({"height": 0}, "height must be a positive whole number: got 0"),
        ({"width": 8.0}, "width must be a positive whole number: got 8.0"),
        ({"height": True}, "height must be a positive whole number: got True"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a positive whole number: got 0"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt must be a positive whole number: got 1.5"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be a positive whole number: got 2.5"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a positive whole number: got 0"),
        ({"num_inference_steps": "4"}, "num_inference_steps must be a positive whole number: got '4'"),
        ({"num_inference_steps": 1001}, r"num_inference_steps must be in \[1, 1000\]: got 1001"),
        ({"guidance_scale": [2]}, r"guidance_scale must be a finite number: got \[2\]"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number: got nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be a finite number: got inf"),
        ({"guidance_scale": "2"}, "guidance_scale must be a finite number: got '2'"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale must be a finite number in \[0, 1\]: got 1.5"),
        ({"classifier_scale": float("nan")}, "classifier_scale must be a finite number: got nan"),
        ({"eta": -1}, "eta must be a finite number of at least 0: got -1"),
        ({"eta": float("nan")}, "eta must be a finite number of at least 0: got nan"),
        ({"eta": [0.5]}, r"eta must be a finite number of at least 0: got \[0.5\]"),
        ({"guidance_interval": (1.0,)}, r"two noise levels, 0 <= low < high: got \(1.0,\)"),
        ({"guidance_interval": 1.0}, "two noise levels, 0 <= low < high: got 1.0"),
        ({"guidance_interval": ("0", "1")}, r"two noise levels, 0 <= low < high: got \('0', '1'\)"),
        ({"guidance_interval": (0.0, float("nan"))}, r"two noise levels, 0 <= low < high: got \(0.0, nan\)"),
        ({"guider": 3.0}, "guider must be one of diffusers.guiders: got 3.0"),
        ({"generator": 0}, "generator must be a torch.Generator or a list of them: got 0"),
        ({"generator": [seeded(), None]}, "generator must be a torch.Generator or a list of them: got "),
        ({"generator": []}, r"generator must be a torch.Generator or a list of them: got \[\]"),
        ({"latents": [0.0]}, r"latents must be a tensor: got \[0.0\]"),
        ({"latents": torch.full((1, 3, 8, 8), float("nan"))}, "latents must be finite numbers: got others"),
        ({"timesteps": 5}, "timesteps must be a list of numbers: got 5"),
        ({"sigmas": [float("nan")]}, r"sigmas must be positive .*: got \[nan\]"),
        ({"callback_on_step_end": 1}, "callback_on_step_end must be a function: got 1"),
        ({"callback_on_step_end_tensor_inputs": 7}, r"must be among \['latents', .*\]: got 7"),
        (
            {"prompt": None, "prompt_embeds": EMBEDS[0]},
            r"must have shape \(.*, 16\): got shape \(5, 16\)",
        ),
        (
            {"prompt": None, "prompt_embeds": EMBEDS[..., :5]},
            r"must have shape .*: got shape \(1, 5, 5\)",
        ),
        ({"prompt": None, "prompt_embeds": EMBEDS[:0]}, "prompt_embeds must have one entry for each .*: got none"),
        ({"prompt": None, "prompt_embeds": "a"}, r"prompt_embeds must have shape \(prompts, tokens, 16\): got 'a'"),
        ({"prompt": None, "prompt_embeds": EMBEDS.long()}, "prompt_embeds must be floating point: got torch.int64"),
        ({"prompt": None, "prompt_embeds": EMBEDS, "prompt_attention_mask": [1]}, r"each token: got mask \(\)"),
        ({"prompt": [3] * 10**6}, r"prompt must be a text or a list of texts: got \[3, 3, 3, 3, 3, 3, \.\.\.\]$"),
        ({"callback_on_step_end_tensor_inputs": ["t"]}, r"must be among \['latents', .*\]: got \['t'\]"),
        ({"prompt": None}, "exactly one of prompt and prompt_embeds must be given: got none"),
        ({"prompt_embeds": EMBEDS}, "exactly one of prompt and prompt_embeds must be given: got both"),
        ({"prompt": 3}, "prompt must be a text or a list of texts: got 3"),
        ({"prompt": []}, r"prompt must be a text or a list of texts: got \[\]"),
        ({"negative_prompt": ["a", 3]}, r"negative_prompt must be a text or a list of texts: got \['a', 3\]"),
        ({"negative_prompt": "a", "negative_prompt_embeds": EMBEDS}, "at most one of negative_prompt and .*: got both"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt needs one entry, or one for each of 1 prompts: got 2"),
        ({"negative_prompt_embeds": EMBEDS.repeat(3, 1, 1)}, "negative_prompt_embeds needs one .* of 1 prompts: got 3"),
        ({"negative_prompt_embeds": EMBEDS[:0]}, "negative_prompt_embeds needs one .* of 1 prompts: got 0"),
        ({"prompt_attention_mask": torch.ones(1, 5)}, r"goes with prompt_embeds.*: got mask \(1, 5\), embeds None"),
        (
            {"negative_prompt_embeds": EMBEDS, "negative_prompt_attention_mask": torch.ones(1, 4)},
            r"one entry for each token: got mask \(1, 4\), embeds \(1, 5, 16\)",
        ),
        ({"generator": [seeded(), seeded()]}, "needs one for each picture: got 2 for 1"),
        ({"latents": torch.zeros(1, 3, 8, 7)}, r"latents must have shape \(1, 3, 8, 8\): got \(1, 3, 8, 7\)"),
        ({"timesteps": [5], "sigmas": [1.0]}, "at most one of timesteps and sigmas may be given: got both"),
    ],
)
def test_call_that_cannot_be_carried_out_is_refused(make_pipe, kwargs, rule):
    with pytest.raises(ValueError, match=rule) as error:
        make_pipe()(**{"prompt": PROMPT} | kwargs)
    assert "\n" not in str(error.value)


def test_a_scheduler_of_another_process_is_refused(make_pipe):
    pipe = make_pipe(scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="^scheduler must be one .*: got FlowMatchEulerDiscreteScheduler$"):
        pipe(PROMPT)


@pytest.mark.parametrize("name", ["timesteps", "sigmas"])
def test_custom_timesteps_are_refused_where_the_sampler_has_none(make_pipe, name):
    pipe = make_pipe()
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match=f"DDIMScheduler.set_timesteps takes no custom {name}"):
        draw(pipe, **{name: [5.0, 1.0]})


@pytest.mark.parametrize(
    "kwargs, rule",
    [
        ({"prompt": PROMPT}, "this pipeline has no text encoder: pass prompt_embeds and"),
        (
            {"prompt_embeds": EMBEDS, "negative_prompt": "a"},
            "this pipeline has no text encoder: pass prompt_embeds and",
        ),
        ({"prompt_embeds": EMBEDS}, "no text encoder: pass negative_prompt_embeds, or guidance_scale=1"),
    ],
)
def test_text_without_a_text_encoder_is_refused(make_unet, kwargs, rule):
    pipe = MezzotintPipeline(make_unet(), MezzotintScheduler(), None, None)
    with pytest.raises(ValueError, match=rule):
        pipe(**kwargs)


@pytest.mark.parametrize("kwargs", [{"prompt": PROMPT}, {"negative_prompt": "a"}, {"prompt_embeds": EMBEDS}])
def test_text_for_a_pipeline_that_reads_none_is_refused(make_pipe, kwargs):
    with pytest.raises(ValueError, match="reads no text: leave prompts and their embeds out"):
        make_pipe(cross_attention_dim=None)(**kwargs)


@pytest.mark.parametrize("output_type", ["pil", "latent"])
@pytest.mark.parametrize("where", ["unet", "text_encoder"])
def test_result_that_is_not_finite_is_no_picture(make_pipe, where, output_type):
    pipe = make_pipe()
    next(getattr(pipe, where).parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="must predict finite numbers.*: there is no picture$") as error:
        draw(pipe, output_type=output_type)
    assert "\n" not in str(error.value)
