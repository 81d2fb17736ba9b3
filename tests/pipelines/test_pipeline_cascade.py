"""The cascade against its stages one by one, and dynamic thresholding against diffusers' own."""

import copy

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler
from PIL import Image, ImageSequence
from test_pipeline_mezzotint import PROMPT, close, seeded

from mezzotint import (
    MezzotintCascadePipeline,
    MezzotintInpaintPipeline,
    MezzotintPipeline,
    MezzotintScheduler,
    MezzotintUpscalePipeline,
)
from mezzotint.drawing import animate, draw, tasks_of

PROMPTS = [PROMPT, "a boot, and a longer text than that"]
SCALE = {"sample_mean": (0.1, 0.2, 0.3), "sample_std": (0.5,)}


@pytest.fixture(scope="module")
def stages(make_pipe, make_unet):
    """A base of 8 px, an upscaler to 16 px with another scale of the data, and one to 32 px."""
    base = make_pipe(**SCALE)
    shape = {"in_channels": 7, "block_out_channels": (16, 16), "transformer_layers_per_block": (0, 1)}
    found: list = [base]
    for size, scale, more in ((16, 2, {"sample_mean": (0.2,)}), (32, 2, SCALE)):
        condition = {"task": "upscale", "scale": scale}
        unet = make_unet(sample_size=size, condition=condition, **shape | more)
        found.append(MezzotintUpscalePipeline(unet, MezzotintScheduler(), base.text_encoder, base.tokenizer))
        found[-1].set_progress_bar_config(disable=True)
    return found


def cascade(*stages) -> MezzotintCascadePipeline:
    pipe = MezzotintCascadePipeline.from_stages(*stages)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators() -> list[torch.Generator]:
    return [seeded(seed) for seed in range(len(PROMPTS))]


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"guidance_scale": 1.0, "negative_prompt": "a shoe"},
        {"negative_prompt": ["a shoe", "a sock, or two of them"], "num_images_per_prompt": 2, "eta": 0.5},
        {"height": 12, "width": 20, "guidance_interval": (0.1, 2.0), "dynamic_thresholding_ratio": 0.9},
    ],
)
def test_a_cascade_of_one_stage_is_the_base(stages, call):
    def drawn(pipe):
        generator = seeded(1) if "num_images_per_prompt" in call else generators()
        return pipe(PROMPTS, num_inference_steps=3, generator=generator, output_type="pt", **call).images

    assert torch.equal(drawn(cascade(stages[0])), drawn(stages[0]))


def test_a_cascade_is_its_stages_one_after_the_other(stages):
    base, first, second = stages
    generator = generators()
    common = {"generator": generator, "output_type": "pt"}
    pictures = base(PROMPTS, num_inference_steps=4, negative_prompt="a shoe", **common).images
    common["noise_level"] = 0.3
    pictures = first(PROMPTS, pictures, num_inference_steps=3, guidance_scale=2.0, negative_prompt="a shoe", **common)
    pictures = second(PROMPTS, pictures.images, num_inference_steps=2, **common | {"noise_level": 0.0}).images
    found = cascade(*stages)(
        PROMPTS, num_inference_steps=[4, 3, 2], guidance_scale=[2.0, 2.0, 1.0], noise_level=[0.3, 0.0],
        negative_prompt="a shoe", generator=generators(), output_type="pt",
    ).images  # fmt: skip
    assert found.shape == (2, 3, 32, 32) and torch.equal(found, pictures)


def test_steps_and_guidance_are_the_base_s_and_a_level_of_noise_is_every_upscaler_s(stages):
    pipe = cascade(*stages)
    call = {"output_type": "pt", "generator": seeded()}
    found = pipe(PROMPT, num_inference_steps=2, guidance_scale=3.0, noise_level=0.2, **call).images
    of_each = {"num_inference_steps": [2, 4, 4], "guidance_scale": [3.0, 1.0, 1.0], "noise_level": [0.2, 0.2]}
    assert torch.equal(pipe(PROMPT, **of_each, **call | {"generator": seeded()}).images, found)


def test_an_upscaler_that_is_told_nothing_takes_four_steps_or_those_it_is_distilled_to(stages):
    pipe = cascade(*stages)
    pipe.scheduler_3 = MezzotintScheduler(consistency_steps=[2, 1])
    pipe(PROMPT, num_inference_steps=5)
    assert pipe.num_timesteps == 5 + 4 + 2
    pipe(PROMPT)
    assert pipe.num_timesteps == 20 + 4 + 2


def test_a_picture_depends_on_its_own_generator_alone(stages):
    pipe = cascade(*stages[:2])
    call = {"num_inference_steps": 2, "output_type": "pt"}
    both = pipe(PROMPTS, generator=generators(), **call).images
    for i in range(2):
        close(pipe(PROMPTS[i], generator=[seeded(i)], **call).images, both[i : i + 1])


def test_the_text_is_read_once_for_all_stages(stages, monkeypatch):
    pipe, read = cascade(*stages), []
    encode = pipe._encode_text
    monkeypatch.setattr(MezzotintCascadePipeline, "_encode_text", lambda self, *x: read.append(x[0]) or encode(*x))
    pipe(PROMPTS, num_inference_steps=1, guidance_scale=[2.0, 2.0, 2.0], output_type="latent")
    assert read == [PROMPTS, [""]]


def test_any_size_that_the_stages_can_come_to_is_drawn(stages):
    pipe = cascade(*stages[:2])
    assert pipe.default_size == (16, 16)
    assert pipe(PROMPT, height=20, width=36, num_inference_steps=1).images[0].size == (36, 20)
    latents = pipe(PROMPT, num_inference_steps=1, output_type="latent").images
    assert latents.shape == (1, 3, 16, 16)


def test_steps_count_on_through_the_stages(stages):
    pipe, seen = cascade(*stages), []

    def keep(run, step, timestep, tensors):
        seen.append((step, run.num_timesteps, tensors["latents"].shape[-1]))
        return {}

    pipe(PROMPT, num_inference_steps=[2, 1, 1], callback_on_step_end=keep)
    assert seen == [(0, 4, 8), (1, 4, 8), (2, 4, 16), (3, 4, 32)] and pipe.num_timesteps == 4


def test_a_callback_that_interrupts_ends_the_call_with_the_pictures_of_its_stage(stages):
    def stop(run, step, timestep, tensors):
        run._interrupt = step == 1
        return {}

    found = cascade(*stages)(PROMPT, num_inference_steps=[3, 1, 1], callback_on_step_end=stop).images
    assert found[0].size == (8, 8)


def test_a_cascade_is_drawn_step_by_step_in_its_own_tab(stages, tmp_path):
    pipe, steps = cascade(*stages[:2]), []
    assert tasks_of(pipe) == [MezzotintCascadePipeline] and MezzotintCascadePipeline not in tasks_of(stages[0])
    drawing = draw(
        pipe, MezzotintCascadePipeline, 2, 3, progress=lambda *x: steps.append(x), prompt=PROMPT, num_inference_steps=2
    )
    assert [x.shape for x in drawing.noisy] == [(2, 8, 8, 3)] * 2 + [(2, 16, 16, 3)] * 4
    assert steps == [(number, 6) for number in range(1, 7)]
    once = pipe(PROMPT, num_inference_steps=2, num_images_per_prompt=2, generator=[seeded(3), seeded(4)]).images
    for (picture, _), expected in zip(drawing.pictures, once, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
    animate(drawing, tmp_path / "steps.gif")
    with Image.open(tmp_path / "steps.gif") as moving:
        assert len({frame.size for frame in ImageSequence.Iterator(moving)}) == 1


def test_stages_that_do_not_fit_are_refused(stages, make_pipe, make_unet):
    base, first, second = stages
    other = copy.deepcopy(base.text_encoder)
    other.shared.weight.data[0, 0] += 1
    stranger = MezzotintUpscalePipeline(first.unet, first.scheduler, other, base.tokenizer)
    inpaint = MezzotintInpaintPipeline(**make_pipe(in_channels=7, condition={"task": "inpaint"}).components)
    about = {"in_channels": 7, "condition": {"task": "upscale", "scale": 2}}
    wrong = {name: make_unet(**about | more) for name, more in {
        "size": {"sample_size": 32}, "text": {"sample_size": 16, "cross_attention_dim": 8},
        "grey": {"sample_size": 16, "in_channels": 3, "out_channels": 1},
    }.items()}  # fmt: skip
    given, scheduler = base.components, MezzotintScheduler()
    two = {**given, "unet_2": first.unet, "scheduler_2": scheduler}
    for make, rule in [
        (lambda: cascade(), "a cascade must have a base, and one or two upscalers: got 0 stages"),
        (lambda: cascade(*stages, second), "a base, and one or two upscalers: got 4 stages"),
        (lambda: cascade(base, stranger), "all stages must read the text by one encoder, of the same weights: got ano"),
        (lambda: cascade(first), "unet must draw from text alone, as the base of a cascade: got one trained for upsc"),
        (lambda: cascade(base, base), "unet_2 must be trained for upscale: got one for text_to_image"),
        (lambda: cascade(base, inpaint), "all stages must read the text by one encoder|must be trained for upscale"),
        (lambda: cascade(base, second), "unet_2 must be trained for 16x16 pixels, 2 times what unet draws: got one for "
         "32x32"),
        (lambda: cascade(base, first, first), "unet_3 must be trained for 32x32 pixels, 2 times what unet_2 draws"),
        (lambda: MezzotintCascadePipeline(**two | {"unet_2": wrong["size"]}), "must be trained for 16x16 pixels"),
        (lambda: MezzotintCascadePipeline(**two | {"unet_2": wrong["text"]}), "unet_2 must read the text of the base, "
         "of 16 channels: got 8"),
        (lambda: MezzotintCascadePipeline(**two | {"unet_2": wrong["grey"]}), "unet_2 must draw 3 channels, as the ba"),
        (lambda: MezzotintCascadePipeline(**two | {"scheduler_2": None}), "unet_2 and scheduler_2 go together: got no "
         "scheduler_2"),
        (lambda: MezzotintCascadePipeline(**given, unet_3=second.unet, scheduler_3=scheduler), "unet_3 must have unet_2"
         " before it, whose pictures it enlarges: got none"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=rule) as error:
            make()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "call, rule",
    [
        (
            {"num_inference_steps": [1, 2]},
            "num_inference_steps needs one entry, or one for each stage, of which there ",
        ),
        ({"guidance_scale": [1.0]}, "guidance_scale needs one entry, or one for each stage"),
        ({"guidance_scale": [1.0, 1.0, "2"]}, "guidance_scale must be a finite number: got '2'"),
        (
            {"noise_level": [0.1, 0.1, 0.1]},
            "noise_level needs one entry, or one for each upscaler, of which there are 2",
        ),
        ({"noise_level": [0.1, 1.0]}, "noise_level must be a number from 0 up to 1, and below it: got 1.0"),
        ({"num_inference_steps": [1, 0, 1]}, "num_inference_steps must be a positive whole number: got 0"),
        ({"height": 63}, "height and width must be multiples of 4: got 63 and 32"),
        ({"dynamic_thresholding_ratio": 0}, "dynamic_thresholding_ratio must be a number above 0 and up to 1: got 0"),
        ({"class_labels": 3}, "class_labels are for a network that reads them"),
    ],
)
def test_what_a_call_cannot_take_is_refused(stages, call, rule):
    with pytest.raises(ValueError, match=rule) as error:
        cascade(*stages)(PROMPT, **call)
    assert "\n" not in str(error.value)


def test_an_upscaler_is_told_what_it_reads_of_what_the_base_is_told(make_pipe, make_unet):
    """A class and a number of the base, of which the upscaler reads the number alone."""
    base = make_pipe(attributes={"class_labels": ["a", "b"], "age": [5.0, 2.0]})
    shape = {"in_channels": 7, "block_out_channels": (16, 16), "transformer_layers_per_block": (0, 1)}
    condition = {"task": "upscale", "scale": 2}

    def pipe(attributes):
        unet = make_unet(sample_size=16, condition=condition, attributes=attributes, **shape)
        return cascade(base, MezzotintUpscalePipeline(unet, MezzotintScheduler(), base.text_encoder, base.tokenizer))

    def drawn(pipe, label, age):
        call = {"class_labels": label, "attributes": {"age": age}, "num_inference_steps": [1, 1]}
        return pipe(PROMPT, generator=seeded(), output_type="pt", **call).images

    one = pipe({"age": [5.0, 2.0]})
    assert len({drawn(one, *told).sum().item() for told in (("a", 4), ("b", 4), ("a", 6))}) == 3
    torch.testing.assert_close(drawn(one, torch.tensor(1), 4), drawn(one, "b", 4))
    taken, other = [], pipe({"class_labels": ["a", "c"]})
    other.unet.register_forward_hook(lambda *args: taken.append(1))
    with pytest.raises(ValueError, match=r"^class_labels must be one of \['a', 'c'\]: got 'b'$"):
        drawn(other, "b", 4)
    assert not taken  # before anything is drawn


# ------------------------------------------------------------------------------------------------ dynamic thresholding


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_dynamic_thresholding_is_that_of_diffusers(make_pipe, kind):
    """Of data without scale, where diffusers' scheduler thresholds x_0 itself and takes no other look at the output."""
    pipe = make_pipe()
    own = MezzotintScheduler(prediction_type=kind, rescale_betas_zero_snr=False).config
    call = {"num_inference_steps": 5, "guidance_scale": 6.0, "output_type": "latent"}
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        own, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e6
    )
    expected = pipe(PROMPT, generator=seeded(), **call).images
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(own, thresholding=False)
    found = pipe(PROMPT, generator=seeded(), dynamic_thresholding_ratio=0.9, **call).images
    close(found, expected)
    assert (found - pipe(PROMPT, generator=seeded(), **call).images).abs().max() > 0.1


def test_dynamic_thresholding_is_in_pixels(make_pipe):
    """In one step to x_0 its quantile in pixels becomes their bound; what is in bounds stays to the bit."""
    pipe = make_pipe(sample_mean=(0.3, -0.1, 0.0), sample_std=(0.9, 0.8, 1.0))
    call = {"num_inference_steps": 1, "guidance_scale": 8.0, "output_type": "latent"}

    def pixels(**more):
        return pipe.decode(pipe(PROMPT, generator=seeded(), **call, **more).images, (8, 8))

    free = pixels()
    s = torch.quantile(free.abs().flatten(), 0.8)
    assert s > 1.2
    close(pixels(dynamic_thresholding_ratio=0.8), free.clamp(-s, s) / s)
    pipe.unet.register_to_config(sample_std=(1e-3,))
    assert torch.equal(pixels(dynamic_thresholding_ratio=0.995), pixels())


def test_latents_are_not_thresholded(make_pipe):
    arguments = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 3}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    pipe = MezzotintPipeline(**make_pipe().components | {"vae": AutoencoderTiny(**arguments, **blocks)})
    with pytest.raises(ValueError, match="dynamic_thresholding_ratio is of pixels, and this network draws latents"):
        pipe(PROMPT, dynamic_thresholding_ratio=0.995)
