"""The pipelines whose networks read a picture beside the sample, against networks whose answer is known, the loop by
hand, and text to image."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image
from test_pipeline_mezzotint import PROMPT, close, seeded

from mezzotint import (
    MezzotintImg2ImgPipeline,
    MezzotintInpaintPipeline,
    MezzotintLayoutPipeline,
    MezzotintPipeline,
    MezzotintSegmentPipeline,
    MezzotintUpscalePipeline,
)

CONFIGS = {
    "inpaint": {"in_channels": 7, "condition": {"task": "inpaint"}},
    "upscale": {"in_channels": 7, "condition": {"task": "upscale", "scale": 2}},
    "layout": {"in_channels": 7, "condition": {"task": "layout", "num_classes": 5}},
    "segment": {"in_channels": 5, "out_channels": 3, "condition": {"task": "segment", "num_classes": 5}},
}
CLASSES = {
    "inpaint": MezzotintInpaintPipeline,
    "upscale": MezzotintUpscalePipeline,
    "segment": MezzotintSegmentPipeline,
    "layout": MezzotintLayoutPipeline,
}


@pytest.fixture
def make(make_pipe):
    def make(task: str, **kwargs):
        pipe = CLASSES[task](**make_pipe(**CONFIGS[task] | kwargs).components)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def answer(pipe, clean) -> list[torch.Tensor]:
    """Have the network know the clean sample, `clean(condition)`; the conditions that it is given, as they come."""
    seen, channels = [], pipe.unet.config.out_channels

    def forward(sample, timestep, *args, return_dict=True, **kwargs):
        x, condition = sample[:, :channels], sample[:, channels:]
        seen.append(condition)
        one = torch.ones(len(x), 1, 1, 1)
        t = torch.as_tensor(timestep).reshape(1).expand(len(x))
        alpha, sigma = (pipe.scheduler.add_noise(*pair, t) for pair in ((one, 0 * one), (0 * one, one)))
        return ((alpha * x - clean(condition)) / sigma,)  # the velocity that leads there

    pipe.unet.forward = forward
    return seen


PICTURE = torch.rand(1, 3, 8, 8, generator=seeded(7))
MASK = torch.zeros(1, 8, 8)
MASK[:, 4:], MASK[:, 1, 2] = 1, 1
INPUTS = {
    "inpaint": {"image": PICTURE, "mask_image": MASK},
    "upscale": {"image": PICTURE[..., :4, :4]},
    "segment": {"image": PICTURE[:, :1], "ensemble_size": 2},
    "layout": {"mask_image": torch.randint(0, 5, (1, 8, 8), generator=seeded(9))},
}


@pytest.mark.parametrize("task", ["inpaint", "upscale"])
def test_where_nothing_is_known_it_is_text_to_image(make, task):
    """As training drops conditions: a mask of everything, or the highest level of noise."""
    pipe = make(task)
    expected = MezzotintPipeline(**pipe.components)(PROMPT, num_inference_steps=4, generator=seeded(), output_type="pt")
    if task == "inpaint":
        call = {"image": PICTURE, "mask_image": torch.ones(1, 8, 8)}
        drawn = pipe(PROMPT, num_inference_steps=4, generator=seeded(), output_type="pt", **call)
        assert torch.equal(drawn.images, expected.images)
    seen = answer(pipe, lambda condition: 0.0)
    MezzotintPipeline(**pipe.components)(PROMPT, num_inference_steps=1)
    assert (seen[0][:, -1] == 1).all() and not seen[0][:, :-1].any()


def test_a_trained_network_reads_the_picture_and_its_hole(make):
    pipe = make("inpaint", sample_mean=(0.1, 0.2, 0.3), sample_std=(0.5,))
    seen = answer(pipe, lambda condition: condition[:, :3] + 0.7 * condition[:, 3:])
    found = pipe(PROMPT, PICTURE, MASK, num_inference_steps=3, output_type="pt").images
    known = (2 * PICTURE - 1 - torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / 0.5
    assert len(seen) == 3
    for condition in seen:  # both branches of the guidance
        torch.testing.assert_close(condition, torch.cat([known * (1 - MASK), MASK[:, None]], 1).expand(2, -1, -1, -1))
    inside = (0.7 * 0.5 + torch.tensor([0.1, 0.2, 0.3]) + 1) / 2
    hole = MASK[0] > 0
    torch.testing.assert_close(found[0, :, hole], inside[:, None].expand(3, int(hole.sum())))
    torch.testing.assert_close(found[0, :, ~hole], PICTURE[0, :, ~hole])


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_pixels_that_are_known_stay_to_the_bit(make, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = np.random.default_rng(1).integers(0, 2, size, dtype=np.uint8)
    drawn = make("inpaint")(PROMPT, Image.fromarray(pixels), Image.fromarray(255 * mask), num_inference_steps=2)
    same = np.asarray(drawn.images[0]) == pixels
    assert same[mask == 0].all() and same[mask == 1].mean() < 0.2


@pytest.mark.parametrize("level", [0.0, 0.4])
def test_enlarging_by_hand(make, level):
    pipe = make("upscale", sample_mean=(0.1,), sample_std=(0.4,))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    small = PICTURE[..., :4]  # 8 x 4
    call = {"noise_level": level, "num_inference_steps": 3, "tile_size": 16}
    found = pipe(image=small, generator=seeded(), output_type="pt", **call).images
    generator = seeded()
    x = torch.randn(1, 3, 16, 8, generator=generator)
    z = (2 * small - 1 - 0.1) / 0.4
    if level:
        z = (1 - level**2) ** 0.5 * z + level * torch.randn(1, 3, 8, 4, generator=generator)
    condition = torch.cat([F.interpolate(z, (16, 8), mode="bicubic"), torch.full((1, 1, 16, 8), level)], 1)
    text = pipe.encode_prompt("", do_classifier_free_guidance=False)
    pipe.scheduler.set_timesteps(3)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            velocity = pipe.unet(torch.cat([x, condition], 1), t, text[0], text[2]).sample
            x = pipe.scheduler.step(velocity, t, x).prev_sample
    close(found, ((x * 0.4 + 0.1) / 2 + 0.5).clamp(0, 1))


def test_one_tile_is_no_tiles(make):
    pipe, call = make("upscale"), {"image": PICTURE, "num_inference_steps": 2, "output_type": "pt"}
    whole = pipe(generator=seeded(), tile_size=16, **call).images
    assert torch.equal(whole, pipe(generator=seeded(), tile_size=64, tile_overlap=63, **call).images)
    assert not torch.equal(whole, pipe(generator=seeded(), tile_size=8, **call).images)


@pytest.mark.parametrize("tile, overlap", [(8, None), (8, 2), (16, 14), (8, 7)])
def test_tiles_of_a_network_without_neighbours_are_the_whole(make, tile, overlap):
    """Whose answer at a pixel depends on nothing else, whatever the picture's size."""
    pipe = make("upscale")
    answer(pipe, lambda condition: condition[:, :3].tanh())
    call = {"image": torch.rand(1, 3, 11, 19, generator=seeded(1)), "num_inference_steps": 3, "output_type": "pt"}
    whole = pipe(generator=seeded(), tile_size=64, **call).images
    sizes = []
    forward = pipe.unet.forward

    def counted(sample, *args, **kwargs):
        sizes.append(sample.shape[2:])
        return forward(sample, *args, **kwargs)

    pipe.unet.forward = counted
    close(pipe(generator=seeded(), tile_size=tile, tile_overlap=overlap, **call).images, whole)
    assert whole.shape == (1, 3, 22, 38) and set(sizes) == {(tile, tile)}


def test_tiles_leave_no_seams(make):
    """Of a flat picture, a network that answers each tile by its own mean and noise would show them."""
    pipe = make("upscale")

    def forward(sample, timestep, *args, **kwargs):
        x, condition = sample[:, :3], sample[:, 3:]
        return (x - condition[:, :3].mean((2, 3), keepdim=True),)

    pipe.unet.forward = forward
    ramp = torch.linspace(0.3, 0.7, 40).expand(1, 3, 12, 40)
    found = pipe(image=ramp, num_inference_steps=2, tile_size=16, tile_overlap=8, output_type="latent",
                 latents=torch.zeros(1, 3, 24, 80)).images  # fmt: skip
    steps = found.diff(dim=-1).abs()
    assert steps.max() < 4 * steps.mean() and found.std() > 0.01


def test_classes_are_drawn_as_bits_and_counted(make):
    pipe = make("segment")
    seen = answer(pipe, lambda c: torch.cat([c[:, :1].sign(), -c[:, :1].sign(), -torch.ones_like(c[:, :1])], 1))
    picture = (PICTURE[:, :1] > 0.5).float()
    found = pipe(image=picture, num_inference_steps=3, ensemble_size=3, output_type="np")
    np.testing.assert_array_equal(found.prediction, np.where(picture[:, 0] > 0, 1, 2))  # of bits 100 and 010
    assert found.probabilities.shape == (1, 5, 8, 8) and found.uncertainty.max() < 1e-5
    np.testing.assert_array_equal(found.probabilities.argmax(1), found.prediction)
    torch.testing.assert_close(seen[0], torch.cat([2 * picture - 1, 0 * picture], 1).expand(3, -1, -1, -1))


def test_a_map_of_classes_is_read_as_bits_and_drawn(make):
    pipe, classes = make("layout"), INPUTS["layout"]["mask_image"]
    seen = answer(pipe, lambda condition: condition[:, :3])
    found = pipe(mask_image=classes, num_inference_steps=3, guidance_scale=1.0, output_type="pt").images
    bits = torch.stack([(classes >> place) & 1 for place in range(3)], dim=1).float()
    torch.testing.assert_close(found, bits)
    torch.testing.assert_close(seen[0], torch.cat([2 * bits - 1, 0 * bits[:, :1]], 1))
    numbers = classes[0].numpy().astype(np.uint8)
    palette = Image.fromarray(numbers)
    palette.putpalette([7, 7, 7] * 5)
    for kind in (Image.fromarray(numbers), palette, numbers, classes[0].float(), [classes[0]]):
        again = pipe(mask_image=kind, num_inference_steps=3, guidance_scale=1.0, output_type="pt").images
        torch.testing.assert_close(again, found)


def test_shares_and_doubt_are_those_of_the_drawings(make):
    """A network that answers by the sign of the noise it started from: a coin for each bit, pixel and drawing."""
    pipe = make("segment", in_channels=3, out_channels=1, condition={"task": "segment", "num_classes": 2})
    noise = torch.randn(8, 1, 8, 8, generator=seeded(3))
    answer(pipe, lambda condition: noise.sign())
    found = pipe(image=PICTURE[:, :1], num_inference_steps=2, ensemble_size=8, latents=noise, output_type="pt")
    share = (noise > 0).float().mean(0)[0]
    torch.testing.assert_close(found.probabilities[0, 1], share)
    entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)) / np.log(2)
    torch.testing.assert_close(found.uncertainty[0], entropy)
    picture = pipe(image=PICTURE[:, :1], num_inference_steps=2, ensemble_size=8, latents=noise).prediction[0]
    assert picture.mode == "P" and picture.getpalette()[:6] == [0, 0, 0, 255, 255, 255]
    np.testing.assert_array_equal(picture, (share > 0.5).numpy())


@pytest.mark.parametrize("steps", [1, 4])
def test_a_network_that_is_not_sure_gives_its_own_probability(make, steps):
    """Whatever the noise, one that foresees the mean of a bit ends on that mean."""
    pipe = make("segment", in_channels=3, out_channels=1, condition={"task": "segment", "num_classes": 2})
    answer(pipe, lambda condition: condition[:, :1])
    found = pipe(image=PICTURE[:, :1], num_inference_steps=steps, ensemble_size=2, generator=seeded(), output_type="pt")
    torch.testing.assert_close(found.probabilities[0, 1], PICTURE[0, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", CLASSES)
def test_one_picture_or_one_for_each_prompt(make, task):
    pipe = make(task)
    call = {"num_inference_steps": 2, "output_type": "pt", "return_dict": False} | INPUTS[task]
    two = {name: torch.cat([x, x.flip(-1)]) if isinstance(x, torch.Tensor) else x for name, x in call.items()}
    (found, *_) = pipe(["a", "b"], **two)
    assert len(found) == 2
    with pytest.raises(ValueError, match="^(mask_)?image needs one entry, or one for each of 3 prompts: got 2$"):
        pipe(["a", "b", "c"], **two)


@pytest.mark.parametrize("task", CLASSES)
def test_a_checkpoint_stands_alone(make, task, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe = make(task)
    call = {"num_inference_steps": 2, "output_type": "pt", "return_dict": False} | INPUTS[task]
    expected = pipe(PROMPT, generator=[seeded(i) for i in range(call.get("ensemble_size", 1))], **call)[0]
    pipe.save_pretrained(tmp_path / "a")
    stranger = DiffusionPipeline.from_pretrained(tmp_path / "a", trust_remote_code=True)
    assert type(stranger).__name__ == type(pipe).__name__ and type(stranger) is not type(pipe)
    for loaded in (stranger, CLASSES[task].from_pretrained(tmp_path / "a")):
        generator = [seeded(i) for i in range(call.get("ensemble_size", 1))]
        assert torch.equal(loaded(PROMPT, generator=generator, **call)[0], expected)


@pytest.mark.parametrize(
    "task, call, rule",
    [
        ("upscale", {"noise_level": 1}, "^noise_level must be a number from 0 up to 1, and below it: got 1$"),
        ("upscale", {"noise_level": float("nan")}, "^noise_level must be"),
        ("upscale", {"tile_size": 0}, "^tile_size must be a positive whole number: got 0$"),
        ("upscale", {"tile_size": 8, "tile_overlap": 8}, "^tile_overlap must be below tile_size, 8: got 8$"),
        ("upscale", {"image": torch.full((1, 3, 4, 4), float("inf"))}, "^image must have 3 channels of finite"),
        ("upscale", {"image": torch.rand(1, 1, 4, 4)}, "^image must have 3 channels"),
        ("inpaint", {"num_resamples": 2}, "^num_resamples is for weights that are not trained for inpainting: got 2"),
        ("layout", {"mask_image": torch.full((1, 8, 8), 5)}, "^mask_image must hold class numbers below 5: got 5$"),
        ("layout", {"mask_image": torch.rand(1, 8, 8)}, r"^mask_image must have shape \(maps, height, width\)"),
        ("layout", {"mask_image": Image.new("RGB", (8, 8))}, "^mask_image must have one channel of class"),
        ("layout", {"mask_image": None}, "^mask_image must be a picture, an array or a tensor"),
        ("segment", {"ensemble_size": 0}, "^ensemble_size must be a positive whole number: got 0$"),
        ("segment", {"image": PICTURE}, "^image must have 1 channels"),
    ],
)  # fmt: skip
def test_calls_that_cannot_be_carried_out_are_refused(make, task, call, rule):
    with pytest.raises(ValueError, match=rule) as error:
        make(task)(PROMPT, num_inference_steps=1, **INPUTS[task] | call)
    assert "\n" not in str(error.value)


def test_weights_for_another_task_are_refused_with_what_takes_them(make, make_pipe):
    rule = "trained for upscale: got some for text_to_image, which MezzotintPipeline takes$"
    with pytest.raises(ValueError, match=f"^MezzotintUpscalePipeline needs weights that are {rule}"):
        MezzotintUpscalePipeline(**make_pipe().components)(image=PICTURE)
    pipe = make("segment")
    for cls, call in (
        (MezzotintPipeline, {}),
        (MezzotintImg2ImgPipeline, {"image": PICTURE}),
        (MezzotintInpaintPipeline, INPUTS["inpaint"]),
    ):
        with pytest.raises(ValueError, match="got some for segment, which MezzotintSegmentPipeline takes$"):
            cls(**pipe.components)(PROMPT, **call)
