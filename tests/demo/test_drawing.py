"""What a page shows, against the pipelines called by hand, the scheduler's closed form and pictures that are known."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from PIL import Image

from mezzotint import (
    MezzotintImg2ImgPipeline,
    MezzotintInpaintPipeline,
    MezzotintLayoutPipeline,
    MezzotintPipeline,
    MezzotintScheduler,
    MezzotintSegmentPipeline,
    MezzotintUpscalePipeline,
)
from mezzotint.demo import drawing

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
    assert {tuple(x) for x in drawn.clean[-1].reshape(-1, 3)} <= set(drawing.class_colours(4))


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
    np.testing.assert_array_equal(grid, np.kron([[0, 1, 2], [3, 4, 0]], np.ones((2, 3))))


def test_a_picture_is_brought_to_the_size_that_the_network_reads():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    enlarged = Image.fromarray(np.kron(pixels, np.ones((5, 5, 1), dtype=np.uint8)))
    np.testing.assert_array_equal(drawing.fitted(enlarged, (8, 8)), pixels)
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    middle = np.asarray(drawing.fitted(wide, (8, 8)))
    np.testing.assert_allclose(middle[:, 1:-1], np.full((8, 6, 3), (0, 0, 255)), atol=1)
    assert drawing.fitted(wide, None) is wide
    with pytest.raises(ValueError, match="at most 512x512 pixels to keep its size: got 600x2$"):
        drawing.fitted(Image.new("L", (600, 2)), None)


def test_what_is_painted_over_is_drawn_anew():
    layer = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    layer.paste((9, 9, 9, 40), (0, 0, 32, 64))  # a transparent stroke too
    expected = np.zeros((8, 8))
    expected[:, :4] = 255
    np.testing.assert_array_equal(drawing.painted_over([layer], (8, 8)), expected)
    for layers in ([], [Image.new("RGBA", (64, 64))]):
        with pytest.raises(ValueError, match="^something must be painted over"):
            drawing.painted_over(layers, (8, 8))


def test_a_painted_layout_is_a_map_of_classes():
    classes = np.random.default_rng(0).integers(0, 4, (8, 8))
    colours = np.asarray(drawing.class_colours(4))[classes]
    canvas = np.kron(colours, np.ones((6, 6, 1))) + np.random.default_rng(1).integers(-20, 21, (48, 48, 3))
    canvas = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    np.testing.assert_array_equal(drawing.painted_classes(canvas, 4, (8, 8)), classes)


def test_a_dissolving_picture_is_the_schedulers(make_pipe):
    pipe = make_pipe(sample_mean=(0.1, 0.2, 0.3), sample_std=(0.5, 0.6, 0.7))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture, mean, std = Image.fromarray(pixels), np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))[0].permute(1, 2, 0).numpy()
    for timestep in (0, 400, 999):
        a = pipe.scheduler.alphas_cumprod[timestep].item()
        x = a**0.5 * ((pixels / 127.5 - 1) - mean) / std + (1 - a) ** 0.5 * noise
        expected = ((x * std + mean).clip(-1, 1) + 1) * 127.5
        np.testing.assert_allclose(drawing.noised(pipe, picture, timestep, seed=3), expected, atol=0.51)


def test_a_segmenter_dissolves_the_picture_that_it_reads(make_pipe):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    found = drawing.noised(make_pipe(**SEGMENT), picture, 0)
    assert found.mode == "RGB" and np.abs(np.asarray(found, dtype=int) - picture).max() < 8


@pytest.mark.parametrize("kind", [MezzotintScheduler, DDIMScheduler])
def test_the_curves_are_the_schedules(make_pipe, kind):
    pipe = make_pipe(scheduler=kind(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"))
    curves = drawing.curves_of(pipe)
    assert curves.timesteps[0] == 0 and curves.timesteps[-1] == 999
    np.testing.assert_allclose(curves.signal**2 + curves.noise**2, 1, atol=1e-6)
    some = drawing.curves_of(pipe, [0, 500, 998])
    a = pipe.scheduler.alphas_cumprod[[0, 500, 998]].double().numpy()
    np.testing.assert_allclose(some.signal, a**0.5, rtol=1e-4)
    np.testing.assert_allclose(some.log_snr, np.log(a / (1 - a)), rtol=1e-3)
