"""Inpainting against text to image, the picture that is known, stock Stable Diffusion's way of putting it back, and
data whose conditional distribution is known in closed form."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, KDPM2DiscreteScheduler, LMSDiscreteScheduler, PNDMScheduler
from PIL import Image
from test_pipeline_mezzotint import PROMPT, close, draw, encode, seeded

from mezzotint import MezzotintImg2ImgPipeline, MezzotintInpaintPipeline, MezzotintPipeline, MezzotintScheduler


@pytest.fixture
def make_inpaint(make_pipe):
    def make(scheduler: str = "", **kwargs):
        pipe = MezzotintInpaintPipeline.from_pipe(make_pipe(**kwargs))
        pipe.set_progress_bar_config(disable=True)
        if scheduler:
            pipe.scheduler = getattr(diffusers, f"{scheduler}Scheduler").from_config(pipe.scheduler.config)
        return pipe

    return make


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(1, 3, 8, 8, generator=seeded(7))


@pytest.fixture
def mask() -> torch.Tensor:
    """A mask of the lower half and a spot above."""
    mask = torch.zeros(1, 8, 8)
    mask[:, 4:], mask[:, 1, 2] = 1, 1
    return mask


SCHEDULERS = ["", "DDIM", "EulerDiscrete", "DPMSolverMultistep", "HeunDiscrete"]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_mask_of_everything_is_text_to_image(make_inpaint, picture, name):
    pipe = make_inpaint(name)
    drawn = draw(pipe, image=picture, mask_image=torch.ones(1, 8, 8))
    assert torch.equal(drawn, draw(MezzotintPipeline.from_pipe(pipe)))


@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_below_full_strength_it_begins_as_image_to_image(make_inpaint, picture, strength):
    pipe = make_inpaint()
    drawn = draw(pipe, image=picture, mask_image=torch.ones(1, 8, 8), strength=strength, num_inference_steps=8)
    img2img = MezzotintImg2ImgPipeline.from_pipe(pipe)
    assert torch.equal(drawn, draw(img2img, image=picture, strength=strength, num_inference_steps=8))


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
@pytest.mark.parametrize("kwargs", [{}, {"strength": 0.5}, {"num_resamples": 3}, {"num_images_per_prompt": 2}])
def test_what_is_known_stays_to_the_bit(make_inpaint, size, kwargs):
    pipe, generator = make_inpaint(patch_size=2), np.random.default_rng(0)
    pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = generator.integers(0, 2, size, dtype=np.uint8)
    found = pipe(
        PROMPT,
        Image.fromarray(pixels),
        Image.fromarray(255 * mask),
        num_inference_steps=4,
        generator=seeded(0),
        **kwargs,
    ).images
    assert len(found) == kwargs.get("num_images_per_prompt", 1)
    for drawn in found:
        same = np.asarray(drawn) == pixels
        assert same[mask == 0].all() and same[mask == 1].mean() < 0.2
    none = pipe(PROMPT, Image.fromarray(pixels), Image.new("L", size[::-1]), num_inference_steps=2, **kwargs).images
    assert all(np.array_equal(np.asarray(drawn), pixels) for drawn in none)


@pytest.mark.parametrize("name", SCHEDULERS[:4])
@torch.no_grad()
def test_the_loop_is_stable_diffusions(make_inpaint, picture, mask, name):
    """As its inpainting has it for a network that was not trained for it: after each step the known part, noised with
    the noise of the beginning to the level of the next."""
    pipe = make_inpaint(name)
    drawn = draw(pipe, image=picture, mask_image=mask, num_inference_steps=5, output_type="latent")
    scheduler = pipe.scheduler
    scheduler.set_timesteps(5)
    noise, known = torch.randn(1, 3, 8, 8, generator=seeded(0)), 2 * picture - 1
    latents = noise * scheduler.init_noise_sigma
    begun = scheduler.add_noise(known, noise, scheduler.timesteps[:1])
    latents = torch.where(mask[None] > 0, latents, begun)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.scale_model_input(latents, t)
        cond, uncond = (pipe.unet(x, t, encode(pipe, text)).sample for text in (PROMPT, ""))
        latents = scheduler.step(uncond + 2 * (cond - uncond), t, latents).prev_sample
        if i < 4:
            level = scheduler.add_noise(known, noise, scheduler.timesteps[i + 1 : i + 2])
        latents = torch.where(mask[None] > 0, latents, level if i < 4 else known)
    close(drawn, latents, rel=1e-4)


class Correlated(torch.nn.Module):
    """Predicts the velocity for normal pixels of unit variance, all of which have a correlation: E[x_0 | x_t] in closed
    form, along the mean of a picture and around it."""

    correlation, dtype, device = 0.5, torch.float32, torch.device("cpu")

    def __init__(self, unet, scheduler):
        super().__init__()
        self.config, self.scheduler = unet.config, scheduler

    def forward(self, x, t, *_, **__):
        alpha, sigma = self.scheduler._alpha_sigma(t, like=x)
        mean = x.mean((1, 2, 3), keepdim=True)
        around = 1 - self.correlation
        along = around + self.correlation * x[0].numel()
        gains = [alpha * variance / (alpha**2 * variance + sigma**2) for variance in (along, around)]
        return ((alpha * x - gains[0] * mean - gains[1] * (x - mean)) / sigma,)


@pytest.mark.parametrize("name", ["", "DDIM", "DPMSolverMultistep"])
def test_resampling_brings_known_and_drawn_together(make_unet, name):
    """What is drawn has nearly the mean of what is known, by the conditional distribution, and its spread; putting the
    known part back alone falls short of it, and wrong noise in between would spread more or less."""
    scheduler = MezzotintScheduler()
    unet = make_unet(cross_attention_dim=None, sample_std=(0.15,))
    pipe = MezzotintInpaintPipeline(unet, scheduler, None, None)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet = Correlated(unet, scheduler)
    if name:
        pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(scheduler.config, clip_sample=False)
    many, rho, half = 150, Correlated.correlation, 3 * 8 * 4
    common = rho**0.5 * torch.randn(many, 1, 1, 1, generator=seeded(1))
    data = common + (1 - rho) ** 0.5 * torch.randn(many, 3, 8, 8, generator=seeded(2))
    mask = torch.zeros(1, 8, 8)
    mask[:, 4:] = 1
    slopes, spreads = {}, {}
    for resamples in (1, 10):
        drawn = pipe(
            image=(0.15 * data + 1) / 2, mask_image=mask, num_resamples=resamples, num_inference_steps=100,
            generator=seeded(3), output_type="latent",
        ).images  # fmt: skip
        assert torch.allclose(drawn[:, :, :4], data[:, :, :4], atol=1e-5)
        known, found = data[:, :, :4].mean((1, 2, 3)), drawn[:, :, 4:].mean((1, 2, 3))
        slopes[resamples] = ((known * found).mean() / known.square().mean()).item()
        spreads[resamples] = (drawn[:, :, 4:] - found[:, None, None, None]).std().item()
    expected = rho * half / (1 - rho + rho * half)
    assert abs(slopes[10] - expected) < 0.06 and abs(slopes[10] - expected) < abs(slopes[1] - expected) / 2
    assert abs(spreads[10] - (1 - rho) ** 0.5) < 0.06  # of steps of the first order, 0.05 too little


def test_masks_and_pictures_of_every_kind_are_read_alike(make_inpaint, mask, log):
    pipe = make_inpaint()
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    array, plain = pixels / 255, mask[0].numpy()
    expected = draw(pipe, image=Image.fromarray(pixels), mask_image=Image.fromarray(np.uint8(255 * plain)))
    masks = [plain, plain[None], torch.from_numpy(plain), mask, mask[None], [torch.from_numpy(plain)], plain[..., None]]
    masks += [Image.fromarray(np.uint8(255 * plain)).convert(mode) for mode in ("1", "RGB", "RGBA")]
    for other in masks:
        close(draw(pipe, image=array[None], mask_image=other), expected)
    log.clear()
    close(draw(pipe, image=array[None], mask_image=plain), expected)
    assert not log.records
    close(draw(pipe, image=array[None], mask_image=0.4 * plain + 0.3), expected)  # from 0.5 on it is drawn
    assert [record.message for record in log.records] == [
        "mask_image is grey in 100.0% of its pixels: from 0.5 on they are drawn, below they stay"
    ]


def test_one_mask_for_all_or_one_for_each(make_inpaint, picture, mask):
    pipe = make_inpaint()
    prompts, many = ["a cat", "a dog"], torch.cat([picture, 1 - picture])
    both = torch.cat([mask, 1 - mask])
    generators = [seeded(0), seeded(0)]
    drawn = draw(pipe, prompt=prompts, image=many, mask_image=both, generator=generators)
    for i, prompt in enumerate(prompts):
        close(draw(pipe, prompt=prompt, image=many[i : i + 1], mask_image=both[i : i + 1]), drawn[i : i + 1], rel=1e-4)
    same = draw(pipe, prompt=prompts, image=many, mask_image=mask, generator=[seeded(0), seeded(0)])
    close(same[:1], drawn[:1], rel=1e-4)


def test_all_else_is_as_text_to_image():
    ours, theirs = (
        dict(inspect.signature(x.__call__).parameters) for x in (MezzotintInpaintPipeline, MezzotintPipeline)
    )
    for name in ("image", "mask_image", "strength", "num_resamples", "padding_mask_crop"):
        del ours[name]
    del theirs["height"], theirs["width"]
    assert ours == theirs and list(ours) == list(theirs)


@pytest.mark.parametrize("crop", [0, 3])
def test_the_part_about_a_hole_is_drawn_at_the_size_trained_at_and_set_back(make_inpaint, crop):
    pipe = make_inpaint()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    mask = np.zeros((40, 48), dtype=np.uint8)
    mask[10:14, 20:28] = 255
    sizes, forward = [], pipe.unet.forward

    def counted(sample, *args, **kwargs):
        sizes.append(tuple(sample.shape[2:]))
        return forward(sample, *args, **kwargs)

    pipe.unet.forward = counted
    call = {"num_inference_steps": 2, "generator": seeded(0), "padding_mask_crop": crop}
    (drawn,) = pipe(PROMPT, Image.fromarray(pixels), Image.fromarray(mask), **call).images
    same = np.asarray(drawn) == pixels
    assert set(sizes) == {(8, 8)} and same[mask == 0].all() and same[mask > 0].mean() < 0.2
    # Where the part is as large as what was trained at, it is drawn as it is
    part = pixels[8:16, 20:28]
    hole = np.zeros((40, 48), dtype=np.uint8)
    hole[8:16, 20:28] = 255
    (alone,) = pipe(PROMPT, Image.fromarray(part), Image.new("L", (8, 8), 255), **call | {"padding_mask_crop": None,
                    "generator": call["generator"].manual_seed(0)}).images  # fmt: skip
    (again,) = pipe(PROMPT, Image.fromarray(pixels), Image.fromarray(hole), **call | {"padding_mask_crop": 0,
                    "generator": seeded(0)}).images  # fmt: skip
    np.testing.assert_array_equal(np.asarray(again)[8:16, 20:28], alone)
    nothing = pipe(PROMPT, Image.fromarray(pixels), Image.new("L", (48, 40)), **call).images[0]
    np.testing.assert_array_equal(nothing, pixels)


def test_a_part_about_a_hole_loses_nothing_of_it_where_it_becomes_smaller(make_inpaint):
    """A scratch of one pixel in a picture eight times as large as what the network draws."""
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[:, 5] = mask[5, :] = 1
    picture = np.zeros((1, 64, 64, 3), dtype=np.float32)
    drawn = [
        make_inpaint()(PROMPT, picture, mask, padding_mask_crop=0, num_inference_steps=2, generator=seeded(seed),
                       output_type="np").images[0]
        for seed in (0, 1)
    ]  # fmt: skip
    assert (drawn[0] != drawn[1]).any(-1)[mask > 0].mean() > 0.9 and not drawn[0][mask == 0].any()


def test_a_part_is_drawn_by_a_network_that_says_its_size(make_inpaint, picture, mask):
    pipe = make_inpaint(sample_size=None)
    assert draw(pipe, image=picture, mask_image=mask).isfinite().all()
    with pytest.raises(ValueError, match="^padding_mask_crop needs a U-Net that says its sample_size: got none$"):
        draw(pipe, image=picture, mask_image=mask, padding_mask_crop=0)


@pytest.mark.parametrize("cls", [KDPM2DiscreteScheduler, LMSDiscreteScheduler, PNDMScheduler])
def test_steps_that_reckon_with_others_are_not_taken_again(make_inpaint, picture, mask, cls):
    """KDPM2's and LMS's make noise of another deviation of the exact score (1.36 and 1.22 times as much)."""
    pipe = make_inpaint()
    pipe.scheduler = cls.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match=f"^num_resamples needs a scheduler whose steps stand .*: got {cls.__name__}$"):
        draw(pipe, image=picture, mask_image=mask, num_resamples=2)
    assert draw(pipe, image=picture, mask_image=mask, num_resamples=1).isfinite().all()


def test_a_checkpoint_of_it_stands_alone(make_inpaint, picture, mask, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe = make_inpaint()
    expected = draw(pipe, image=picture, mask_image=mask)
    pipe.save_pretrained(tmp_path / "a")
    stranger = DiffusionPipeline.from_pretrained(tmp_path / "a", trust_remote_code=True)
    assert type(stranger).__name__ == "MezzotintInpaintPipeline" and type(stranger) is not MezzotintInpaintPipeline
    assert torch.equal(draw(stranger, image=picture, mask_image=mask), expected)
    for cls in (MezzotintPipeline, MezzotintImg2ImgPipeline):
        assert torch.equal(draw(MezzotintInpaintPipeline.from_pipe(cls.from_pretrained(tmp_path / "a")), image=picture,
                                mask_image=mask), expected)  # fmt: skip


@pytest.mark.parametrize(
    "kwargs, rule",
    [
        ({"mask_image": None}, "^mask_image must be a picture, an array or a tensor, or a list of them: got"),
        ({"mask_image": torch.ones(1, 8, 7)}, r"the size of image: got shape \(1, 8, 7\)$"),
        (
            {"mask_image": torch.ones(1, 3, 8, 8)},
            r"^mask_image must have shape \(masks, 8, 8\), .*: got shape \(1, 3, 8, 8\)$",
        ),
        ({"mask_image": torch.ones(8)}, "^mask_image must have shape"),
        ({"mask_image": 255 * torch.ones(1, 8, 8)}, r"^mask_image must be between 0 \(stays\) and 1 \(is drawn\)"),
        ({"mask_image": torch.full((1, 8, 8), float("nan"))}, "^mask_image must be between 0"),
        ({"mask_image": torch.ones(3, 8, 8)}, "^mask_image needs one entry, or one for each of 1 prompts: got 3$"),
        ({"mask_image": [Image.new("L", (8, 8)), np.ones((8, 8))]}, "^mask_image must be a picture"),
        ({"mask_image": [Image.new("L", (8, 8)), Image.new("L", (8, 7))]}, "^all pictures of mask_image must have one"),
        ({"padding_mask_crop": -1}, "^padding_mask_crop must be a whole number of at least 0: got -1$"),
        ({"padding_mask_crop": 1.5}, "^padding_mask_crop must be a whole number of at least 0: got 1.5$"),
        ({"num_resamples": 0}, "^num_resamples must be a positive whole number: got 0$"),
        ({"num_resamples": 1.5}, "^num_resamples must be a positive whole number: got 1.5$"),
        ({"strength": 0}, "^strength must be a number above 0 and up to 1: got 0$"),
        ({"image": None}, "^image must be a picture"),
    ],
)
def test_call_that_cannot_be_carried_out_is_refused(make_inpaint, picture, mask, kwargs, rule):
    with pytest.raises(ValueError, match=rule) as error:
        draw(make_inpaint(), **{"image": picture, "mask_image": mask} | kwargs)
    assert "\n" not in str(error.value)
