"""Pictures that are given or painted, and what noise makes of them, against pictures that are known and the
scheduler's closed form."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from mezzotint import MezzotintScheduler
from mezzotint.demo.pictures import curves_of, fitted, noised, painted_classes, painted_over
from mezzotint.pipelines.pipeline_mezzotint_segment import class_colours

SEGMENT = {"in_channels": 6, "out_channels": 2, "condition": {"task": "segment", "num_classes": 4}}


def test_a_picture_is_brought_to_the_size_that_the_network_reads():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    enlarged = Image.fromarray(np.kron(pixels, np.ones((5, 5, 1), dtype=np.uint8)))
    np.testing.assert_array_equal(fitted(enlarged, (8, 8)), pixels)
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    middle = np.asarray(fitted(wide, (8, 8)))
    np.testing.assert_allclose(middle[:, 1:-1], np.full((8, 6, 3), (0, 0, 255)), atol=1)
    assert fitted(wide, None) is wide
    with pytest.raises(ValueError, match="at most 512x512 pixels to keep its size: got 600x2$"):
        fitted(Image.new("L", (600, 2)), None)


def test_what_is_painted_over_is_drawn_anew():
    layer = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    layer.paste((9, 9, 9, 40), (0, 0, 32, 64))  # a transparent stroke too
    expected = np.zeros((8, 8))
    expected[:, :4] = 255
    np.testing.assert_array_equal(painted_over([layer], (8, 8)), expected)
    for layers in ([], [Image.new("RGBA", (64, 64))]):
        with pytest.raises(ValueError, match="^something must be painted over"):
            painted_over(layers, (8, 8))


def test_a_painted_layout_is_a_map_of_classes():
    classes = np.random.default_rng(0).integers(0, 4, (8, 8))
    colours = np.asarray(class_colours(4))[classes]
    canvas = np.kron(colours, np.ones((6, 6, 1))) + np.random.default_rng(1).integers(-20, 21, (48, 48, 3))
    canvas = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    np.testing.assert_array_equal(painted_classes(canvas, 4, (8, 8)), classes)


def test_a_dissolving_picture_is_the_schedulers(make_pipe):
    pipe = make_pipe(sample_mean=(0.1, 0.2, 0.3), sample_std=(0.5, 0.6, 0.7))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture, mean, std = Image.fromarray(pixels), np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))[0].permute(1, 2, 0).numpy()
    for timestep in (0, 400, 999):
        a = pipe.scheduler.alphas_cumprod[timestep].item()
        x = a**0.5 * ((pixels / 127.5 - 1) - mean) / std + (1 - a) ** 0.5 * noise
        expected = ((x * std + mean).clip(-1, 1) + 1) * 127.5
        np.testing.assert_allclose(noised(pipe, picture, timestep, seed=3), expected, atol=0.51)


def test_a_segmenter_dissolves_the_picture_that_it_reads(make_pipe):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    found = noised(make_pipe(**SEGMENT), picture, 0)
    assert found.mode == "RGB" and np.abs(np.asarray(found, dtype=int) - picture).max() < 8


@pytest.mark.parametrize("kind", [MezzotintScheduler, DDIMScheduler])
def test_the_curves_are_the_schedules(make_pipe, kind):
    pipe = make_pipe(scheduler=kind(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"))
    curves = curves_of(pipe)
    assert curves.timesteps[0] == 0 and curves.timesteps[-1] == 999
    np.testing.assert_allclose(curves.signal**2 + curves.noise**2, 1, atol=1e-6)
    some = curves_of(pipe, [0, 500, 998])
    a = pipe.scheduler.alphas_cumprod[[0, 500, 998]].double().numpy()
    np.testing.assert_allclose(some.signal, a**0.5, rtol=1e-4)
    np.testing.assert_allclose(some.log_snr, np.log(a / (1 - a)), rtol=1e-3)
