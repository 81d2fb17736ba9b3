"""Drawings and the states that they came through, against the pipelines called by hand."""

import numpy as np
import pytest
import tiny_pipes
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from PIL import Image

from mezzotint import (
    MezzotintAudioPipeline,
    MezzotintImg2ImgPipeline,
    MezzotintInpaintPipeline,
    MezzotintLayoutPipeline,
    MezzotintPipeline,
    MezzotintScheduler,
    MezzotintSegmentPipeline,
    MezzotintUpscalePipeline,
    drawing,
)
from mezzotint.pipelines.pipeline_mezzotint_segment import class_colours

LAYOUT = {"in_channels": 6, "condition": {"task": "layout", "num_classes": 4}}
SEGMENT = {"in_channels": 6, "out_channels": 2, "condition": {"task": "segment", "num_classes": 4}}
INPAINT = {"in_channels": 7, "condition": {"task": "inpaint"}}
UPSCALE = {"in_channels": 7, "condition": {"task": "upscale", "scale": 2}}


@pytest.mark.parametrize(
    "config, expected",
    [
        ({}, [MezzotintPipeline, MezzotintImg2ImgPipeline, MezzotintInpaintPipeline]),
        (INPAINT, [MezzotintInpaintPipeline, MezzotintPipeline, MezzotintImg2ImgPipeline]),
        (SEGMENT, [MezzotintSegmentPipeline]),
        (
            UPSCALE,
            [MezzotintUpscalePipeline, MezzotintPipeline, MezzotintImg2ImgPipeline, MezzotintInpaintPipeline],
        ),
        (
            LAYOUT,
            [MezzotintLayoutPipeline, MezzotintPipeline, MezzotintImg2ImgPipeline, MezzotintInpaintPipeline],
        ),
    ],
)
def test_the_tasks_are_those_that_the_weights_allow_their_own_first(make_pipe, config, expected):
    assert drawing.tasks_of(make_pipe(**config)) == expected


def test_a_task_that_comes_later_is_there_without_a_line_here(make_pipe, monkeypatch):
    class MezzotintLaterPipeline(MezzotintPipeline):
        title = "Later"

    monkeypatch.setattr("mezzotint.MezzotintLaterPipeline", MezzotintLaterPipeline, raising=False)
    monkeypatch.setattr("mezzotint.__all__", ["MezzotintLaterPipeline", "MezzotintPipeline"])
    assert drawing.tasks_of(make_pipe()) == [MezzotintPipeline, MezzotintLaterPipeline]


def test_pictures_are_the_pipelines_and_the_states_lead_to_them(make_pipe):
    pipe, steps = make_pipe(), []
    call = {"prompt": "a red boot", "num_inference_steps": 4, "guidance_scale": 2.0}
    drawn = drawing.draw(pipe, MezzotintPipeline, count=3, seed=5, progress=lambda *x: steps.append(x), **call)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    expected = pipe(**call, num_images_per_prompt=3, generator=generators).images
    assert [caption for _, caption in drawn.pictures] == ["seed 5", "seed 6", "seed 7"]
    for (picture, _), wanted, last in zip(drawn.pictures, expected, drawn.noisy[-1], strict=True):
        np.testing.assert_array_equal(picture, wanted)
        np.testing.assert_allclose(last, wanted, atol=1)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    pipe.scheduler.set_timesteps(4)
    np.testing.assert_allclose(drawn.timesteps, pipe.scheduler.timesteps)
    # the last step ends on the predicted clean data, the first is far from it
    np.testing.assert_array_equal(drawn.clean[-1], drawn.noisy[-1])
    assert np.abs(drawn.clean[0].astype(int) - drawn.noisy[0]).mean() > 10


@pytest.mark.parametrize(
    "settings, unfit",
    [
        ({"beta_schedule": "sigmoid"}, "DDIMScheduler"),
        ({"prediction_type": "sample"}, "KDPM2DiscreteScheduler"),
        ({"prediction_type": "sample"}, "PNDMScheduler"),
    ],
)
def test_samplers_are_those_that_can_take_a_step(make_pipe, settings, unfit):
    pipe = make_pipe()
    pipe.scheduler = MezzotintScheduler(**settings)
    names = list(drawing.samplers_of(pipe))
    assert names[0] == "MezzotintScheduler" and "DDPMScheduler" in names and unfit not in names
    with pytest.raises(ValueError, match=f"^sampler must be one of {', '.join(names)}: got '{unfit}'$"):
        drawing.sampler_of(pipe, unfit)
    for name in names:
        assert len(drawing.draw(pipe, MezzotintPipeline, sampler=name, prompt="7", num_inference_steps=2).noisy) >= 2


def test_no_steps_are_no_animation(tmp_path):
    with pytest.raises(ValueError, match="^an animation needs a step at least: got none$"):
        drawing.animate(drawing.Drawing([], [], [], [], []), tmp_path / "a.webp")


def test_the_states_of_a_size_that_is_drawn_larger_are_cropped(make_pipe):
    call = {"prompt": "7", "num_inference_steps": 2, "height": 7, "width": 5}
    drawn = drawing.draw(make_pipe(), MezzotintPipeline, **call)
    assert drawn.pictures[0][0].size == (5, 7) and drawn.noisy[0].shape == drawn.clean[0].shape == (1, 7, 5, 3)


def test_a_step_that_is_taken_again_is_one_state(make_pipe):
    picture, mask = Image.new("RGB", (8, 8), "red"), Image.new("L", (8, 8), 255)
    call = {"image": picture, "mask_image": mask, "num_resamples": 3, "num_inference_steps": 4, "prompt": "7"}
    drawn = drawing.draw(make_pipe(), MezzotintInpaintPipeline, **call)
    assert len(drawn.timesteps) == len(drawn.noisy) == len(drawn.clean) == 4


def test_a_segmentation_is_its_classes_and_where_there_is_doubt(make_pipe):
    pipe = make_pipe(**SEGMENT)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    call = {"prompt": "", "image": picture, "num_inference_steps": 2}
    drawn = drawing.draw(pipe, MezzotintSegmentPipeline, count=3, seed=1, **call)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    pipe = MezzotintSegmentPipeline(**pipe.components)
    expected = pipe(**call, ensemble_size=3, generator=generators)
    (classes, _), (doubt, _) = drawn.pictures
    np.testing.assert_array_equal(classes, expected.prediction[0].convert("RGB"))
    np.testing.assert_allclose(doubt, 255 * expected.uncertainty[0], atol=0.51)
    assert drawn.noisy[0].shape == (3, 8, 8, 3)  # of two bits, in the classes' colours
    assert {tuple(x) for x in drawn.clean[-1].reshape(-1, 3)} <= set(class_colours(4))


def test_samplers_are_those_that_can_hold_the_noise_schedule(make_pipe):
    pipe = make_pipe()
    found = drawing.samplers_of(pipe)
    assert list(found)[0] == "MezzotintScheduler" and drawing.sampler_of(pipe, "MezzotintScheduler") is pipe.scheduler
    assert found.keys() >= {"DDIMScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"}
    assert "EDMEulerScheduler" not in found  # whose timesteps are another function of the noise level
    for name in list(found)[1:]:
        scheduler = drawing.sampler_of(pipe, name)
        torch.testing.assert_close(scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod)
        assert scheduler.config.prediction_type == "v_prediction"
        scheduler.set_timesteps(4)
        assert 500 < scheduler.timesteps[0] <= 999 and scheduler.timesteps[-1] >= 0
    stock = make_pipe(scheduler=DDIMScheduler.from_config(pipe.scheduler.config))
    assert list(drawing.samplers_of(stock))[0] == "DDIMScheduler"
    assert "EulerDiscreteScheduler" in drawing.samplers_of(stock)
    with pytest.raises(ValueError, match="^sampler must be one of MezzotintScheduler, DDIMScheduler, .*: got 'Euler'$"):
        drawing.draw(pipe, MezzotintPipeline, prompt="7", sampler="Euler")


def test_another_sampler_draws_what_it_draws_in_the_pipeline(make_pipe):
    pipe, call = make_pipe(), {"prompt": "a red boot", "num_inference_steps": 3}
    euler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    drawn = drawing.draw(pipe, MezzotintPipeline, seed=2, sampler="EulerDiscreteScheduler", **call)
    own = drawing.draw(pipe, MezzotintPipeline, seed=2, **call).pictures[0][0]
    assert isinstance(pipe.scheduler, MezzotintScheduler)
    pipe.scheduler = euler
    expected = pipe(**call, generator=torch.Generator().manual_seed(2)).images[0]
    np.testing.assert_array_equal(drawn.pictures[0][0], expected)
    assert not np.array_equal(own, expected)


@pytest.mark.parametrize("ending, kind", [("webp", "WEBP"), ("gif", "GIF")])
def test_an_animation_has_every_state_and_rests_on_the_last(make_pipe, tmp_path, ending, kind):
    call = {"prompt": "a red boot", "num_inference_steps": 5}
    drawn = drawing.draw(make_pipe(), MezzotintPipeline, count=2, **call)
    drawing.animate(drawn, tmp_path / f"made.{ending}")
    with Image.open(tmp_path / f"made.{ending}") as made:
        assert made.format == kind and made.n_frames == 5 and made.size == (2 * (256 + 8), 128 + 8)
        for i, state in ((0, 0), (4, 4)):
            made.seek(i)
            pixels = np.asarray(made.convert("RGB"))
            inside = [pixels[4:-4, 4:260], pixels[4:-4, 268:524]]
            for found, states in zip(inside, (drawn.noisy, drawn.clean), strict=True):
                wanted = drawing.as_grid(states[state]).resize((256, 128), Image.Resampling.NEAREST)
                # a GIF has 256 colours
                assert np.abs(found.astype(int) - np.asarray(wanted)).mean() < (0.01 if kind == "WEBP" else 8)


def test_a_grid_is_as_square_as_can_be():
    state = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) + np.zeros((5, 2, 3, 1), dtype=np.uint8)
    grid = np.asarray(drawing.as_grid(state).convert("L"))
    np.testing.assert_array_equal(grid, np.kron([[0, 1], [2, 3], [4, 255]], np.ones((2, 3))))


def test_states_of_what_is_diffused_as_a_spectrogram_are_spectrograms():
    pipe = tiny_pipes.sound(n_fft=8)
    drawn = drawing.draw(pipe, MezzotintAudioPipeline, count=2, num_inference_steps=2)
    call = {"num_waveforms_per_prompt": 2, "num_inference_steps": 2, "output_type": "latent"}
    (latents,) = pipe(**call, generator=[torch.Generator().manual_seed(i) for i in (0, 1)], return_dict=False)
    data = pipe.decode(latents, (tiny_pipes.LENGTH,))[:, 0].clamp(-1, 1)
    for picture, one in zip(drawn.noisy[-1], data, strict=True):
        windows = one.view(16, 4).flip(1).T  # the highest pitch above
        np.testing.assert_array_equal(picture[..., 0], ((windows + 1) * 127.5).round().byte())


def test_a_folder_is_loaded_as_what_draws_its_modality(tmp_path):
    tiny_pipes.sound().save_pretrained(tmp_path / "sound")
    assert drawing.class_of(tmp_path / "sound") is MezzotintAudioPipeline
