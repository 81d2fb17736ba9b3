"""Image to image against text to image of the noised picture, the loop written by hand, stock Stable Diffusion's choice
of timesteps and a network whose predictions are known in closed form."""

import inspect
import io
import warnings
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, PNDMScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image
from test_pipeline_mezzotint import PROMPT, close, draw, encode, seeded

from mezzotint import MezzotintImg2ImgPipeline, MezzotintPipeline, MezzotintScheduler
from mezzotint.drawing import sampler_of
from mezzotint_training.modalities.images import read

TABLE = {"num_inference_steps": 4, "guidance_scale": 2.0, "taus": [990.5, 700.25, 400.5, 100.0]}
TABLE |= {"sigmas": [100.0, 5.0, 1.0, 0.2], "coefficients": [[0.7, 0.6], [0.1, 0.9], [0.5, 0.4], [0.0, 1.0]]}


@pytest.fixture
def make_img2img(make_pipe):
    def make(**kwargs):
        pipe = MezzotintImg2ImgPipeline.from_pipe(make_pipe(**kwargs))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(1, 3, 8, 8, generator=seeded(7))


@torch.no_grad()
def by_hand(pipe, picture, timesteps, begin, seed=0):
    """The steps at the last timesteps, from the picture noised to the first of them, guided at a scale of 2."""
    scheduler = pipe.scheduler
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    noise = torch.randn(1, 3, 8, 8, generator=seeded(seed))
    latents = scheduler.add_noise(2 * picture - 1, noise, timesteps[begin : begin + 1])
    for t in timesteps[begin:]:
        x = scheduler.scale_model_input(latents, t)
        cond, uncond = (pipe.unet(x, t, encode(pipe, text)).sample for text in (PROMPT, ""))
        latents = scheduler.step(uncond + 2 * (cond - uncond), t, latents).prev_sample
    return latents


@pytest.mark.parametrize("name", ["", "DDIM", "EulerDiscrete", "DPMSolverMultistep", "HeunDiscrete"])
@pytest.mark.parametrize("steps, strength", [(5, 0.8), (7, 0.5), (10, 0.29)])
def test_steps_are_those_that_stable_diffusion_takes(make_img2img, picture, name, steps, strength):
    pipe = make_img2img()
    if name:
        pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipe.scheduler.config)
    drawn = draw(pipe, image=picture, strength=strength, num_inference_steps=steps, output_type="latent")
    pipe.scheduler.set_timesteps(steps)
    stock = SimpleNamespace(scheduler=pipe.scheduler)
    timesteps, _ = StableDiffusionImg2ImgPipeline.get_timesteps(stock, steps, strength, "cpu")
    assert pipe.num_timesteps == len(timesteps)
    begin = len(pipe.scheduler.timesteps) - len(timesteps)
    assert getattr(pipe.scheduler, "begin_index", begin) == begin
    close(drawn, by_hand(pipe, picture, pipe.scheduler.timesteps, begin), rel=1e-4)


@pytest.mark.parametrize("tables", [None, [TABLE]])
@pytest.mark.parametrize("interval", [None, (0.5, 50.0)])
def test_full_strength_is_text_to_image(make_pipe, picture, tables, interval):
    pipe = make_pipe(scheduler=MezzotintScheduler(fitted_schedules=tables))
    img2img = MezzotintImg2ImgPipeline.from_pipe(pipe)
    drawn = draw(img2img, image=picture, strength=1.0, guidance_interval=interval)
    assert torch.equal(drawn, draw(pipe, guidance_interval=interval)) and img2img.num_timesteps == 4


def test_no_strength_gives_the_picture_back_to_the_bit(make_img2img):
    pipe = make_img2img(sample_mean=(0.1, 0.2, 0.3), sample_std=(0.4,), patch_size=2)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    for back in pipe("a red boot", Image.fromarray(pixels), strength=0, num_images_per_prompt=2).images:
        np.testing.assert_array_equal(back, pixels)


def test_what_is_transparent_lies_on_white_as_in_training(make_img2img):
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    array[:4, :, 3] = 0
    (back,) = make_img2img()("a red boot", Image.fromarray(array, "RGBA"), strength=0).images
    content = io.BytesIO()
    Image.fromarray(array, "RGBA").save(content, "PNG")
    trained = read({"bytes": content.getvalue(), "path": None}, 3, (8, 8))
    np.testing.assert_array_equal(np.asarray(back), trained.permute(1, 2, 0))
    assert (np.asarray(back)[:4] == 255).all()


def test_a_fitted_schedule_is_begun_in_its_middle(make_img2img, picture):
    """Its timesteps are taken, by DPM-Solver++ as the scheduler documents."""
    pipe = make_img2img(scheduler=MezzotintScheduler(fitted_schedules=[TABLE]))
    drawn = draw(pipe, image=picture, strength=0.5)
    pipe.scheduler = MezzotintScheduler()
    assert torch.equal(drawn, draw(pipe, image=picture, strength=1.0, timesteps=TABLE["taus"][2:]))


class Gaussian(torch.nn.Module):
    """Predicts the velocity for pixels that are independent and normal: E[x_0 | x_t] in closed form."""

    mean, variance, dtype, device = 0.1, 0.03, torch.float32, torch.device("cpu")

    def __init__(self, unet, scheduler):
        super().__init__()
        self.config, self.scheduler = unet.config, scheduler

    def forward(self, x, t, *_, **__):
        alpha, sigma = self.scheduler._alpha_sigma(t, like=x)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        x_0 = self.mean + gain * (x - alpha * self.mean)
        return ((alpha * x - x_0) / sigma,)


@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_a_gaussian_stays_what_it_is(make_unet, strength):
    """Pictures of the data come back as pictures of the data, and the less like themselves the stronger the change."""
    scheduler, many = MezzotintScheduler(), 400
    unet = make_unet(cross_attention_dim=None)
    pipe = MezzotintImg2ImgPipeline(unet, scheduler, None, None)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet = Gaussian(unet, scheduler)
    data = Gaussian.mean + Gaussian.variance**0.5 * torch.randn(many, 3, 8, 8, generator=seeded(3))
    call = {"num_inference_steps": 40, "generator": seeded(4), "output_type": "latent"}
    drawn = pipe(image=(data + 1) / 2, strength=strength, **call).images
    assert abs(drawn.mean() - Gaussian.mean) < 0.005
    assert abs(drawn.var() / Gaussian.variance - 1) < 0.03
    # the flow is linear: x_0' = mean + std (alpha (x_0 - mean) + sigma noise) / std of x_t
    begin = 40 - int(40 * strength)
    alpha, sigma = (x.item() for x in scheduler._alpha_sigma(scheduler.timesteps[begin], like=torch.zeros(1)))
    expected = alpha * (Gaussian.variance / (alpha**2 * Gaussian.variance + sigma**2)) ** 0.5
    found = torch.corrcoef(torch.stack([data.flatten(), drawn.flatten()]))[0, 1].item()
    assert abs(found - expected) < 0.01


def test_all_else_is_as_text_to_image():
    ours, theirs = (
        dict(inspect.signature(x.__call__).parameters) for x in (MezzotintImg2ImgPipeline, MezzotintPipeline)
    )
    del ours["image"], ours["strength"], theirs["height"], theirs["width"]
    assert ours == theirs and list(ours) == list(theirs)


def test_pictures_of_every_kind_start_alike(make_img2img):
    pipe = make_img2img()
    array = np.random.default_rng(0).integers(0, 256, (2, 6, 7, 3), dtype=np.uint8)
    pil = [Image.fromarray(x) for x in array]
    tensor = torch.from_numpy(array).movedim(-1, 1) / 255
    kinds = [pil, array / np.float32(255), tensor, list(tensor)]
    drawn = [draw(pipe, [PROMPT, "b"], image=kind) for kind in kinds]
    assert drawn[0].shape == (2, 3, 6, 7)
    for other in drawn[1:]:
        close(other, drawn[0])
    one = draw(pipe, "b", image=pil[1], latents=torch.ones(1, 3, 6, 8))
    close(draw(pipe, [PROMPT, "b"], image=pil, latents=torch.ones(2, 3, 6, 8))[1:], one)
    kept = draw(pipe, image=tensor[:1], strength=1.0, timesteps=[1.0])
    assert (kept - tensor[:1]).abs().max() < 0.2  # hardly noised, what comes back is the picture


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_every_kind_are_read_alike(make_img2img, channels):
    """Grey, coloured and with transparency, without a warning."""
    pipe = make_img2img(in_channels=channels, out_channels=channels)
    array = np.random.default_rng(0).integers(0, 256, (2, 8, 8, channels), dtype=np.uint8)
    tensor = torch.from_numpy(array).movedim(-1, 1) / 255
    pil = [Image.fromarray(x.squeeze()) for x in array]
    kinds = [pil, array / np.float32(255), tensor, list(tensor), [tensor[:1], tensor[1:]]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in kinds:
            close(pipe.read_image(kind), 2 * tensor - 1)


def test_pictures_of_a_prompt_and_lists_of_generators(make_img2img, picture):
    pipe = make_img2img()
    pictures = torch.cat([picture, 1 - picture])
    generators = [seeded(i) for i in range(4)]
    four = draw(pipe, [PROMPT, "b"], image=pictures, num_images_per_prompt=2, generator=generators)
    close(four[3:], draw(pipe, "b", image=pictures[1:], seed=3))
    seen = []
    call = {"callback_on_step_end": lambda run, i, t, tensors: seen.append(i) or tensors, "strength": 0.5}
    assert len(draw(pipe, image=picture, output_type="pil", **call)) == 1 and seen == [0, 1]


@pytest.mark.parametrize(
    ("kwargs", "rule"),
    [
        ({"strength": 1.01}, r"strength must be a number in \[0, 1\]: got 1.01"),
        ({"strength": float("nan")}, r"strength must be a number in \[0, 1\]: got nan"),
        ({"strength": "a"}, "strength must be a number .*: got 'a'"),
        ({"strength": 0.1}, "strength must leave one of 4 steps, at least 0.25: got 0.1"),
        ({"image": None}, "image must be a picture, an array or a tensor, or a list of them: got None"),
        ({"image": torch.zeros(1, 3, 0, 8)}, r"image must have pixels: got shape \(1, 3, 0, 8\)"),
        ({"image": torch.zeros(8, 8)}, r"image must have 3 or 4 axes: got shape \(8, 8\)"),
        ({"image": torch.zeros(1, 4, 8, 8)}, r"image must have 3 channels of finite numbers: got shape \(1, 4, 8, 8\)"),
        ({"image": torch.full((1, 3, 8, 8), -0.5)}, r"image must be between 0 \(black\) and 1 .*: got -0.5 to -0.5"),
        ({"image": np.full((8, 8, 3), 255, np.uint8)}, r"image must be between 0 \(black\) and 1 .*: got 255 to 255"),
        ({"image": [torch.full((3, 8, 8), 1.5)]}, r"image must be between 0 \(black\) and 1 .*: got 1.5 to 1.5"),
        ({"image": torch.full((1, 3, 8, 8), float("nan"))}, "image must have 3 channels of finite numbers"),
        ({"image": torch.zeros(3, 3, 8, 8)}, "image needs one entry, or one for each of 1 prompts: got 3"),
        ({"image": [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]}, "all pictures of image must have one size"),
        ({"latents": torch.zeros(1, 3, 4, 4)}, r"latents must have shape \(1, 3, 8, 8\): got \(1, 3, 4, 4\)"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a positive whole number: got 0"),
    ],
)
def test_call_that_cannot_be_carried_out_is_refused(make_img2img, picture, kwargs, rule):
    with pytest.raises(ValueError, match=rule) as error:
        draw(make_img2img(), **{"image": picture} | kwargs)
    assert "\n" not in str(error.value)


def test_a_picture_of_16_bits_is_read_as_in_training(make_img2img):
    grey = Image.fromarray(np.full((8, 8), 0x40FF, dtype=np.uint16))
    found = make_img2img().read_image(grey)
    torch.testing.assert_close(found, torch.full((1, 3, 8, 8), 0x40 / 127.5 - 1))
    with pytest.raises(ValueError, match="^image cannot be read: its pixels are fractions"):
        make_img2img().read_image(Image.new("F", (8, 8)))


def test_steps_that_come_in_fours_are_not_cut(make_img2img, picture):
    pipe = make_img2img()
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)
    assert draw(pipe, image=picture, strength=1.0).isfinite().all()
    with pytest.raises(ValueError, match="^strength below 1 would cut the first steps of a PNDMScheduler") as error:
        draw(pipe, image=picture, strength=0.5)
    assert "\n" not in str(error.value)
    pipe.scheduler = sampler_of(make_img2img(), "PNDMScheduler")
    assert pipe.scheduler.config.skip_prk_steps and draw(pipe, image=picture, strength=0.5).isfinite().all()


def test_a_patched_network_draws_a_picture_of_any_size(make_img2img):
    """The edges are drawn out to whole patches at the lowest level, and cut off again."""
    pipe, picture = make_img2img(patch_size=4), torch.rand(1, 3, 9, 13, generator=seeded(7))
    drawn = draw(pipe, image=picture)
    assert drawn.shape == picture.shape
    padded = torch.nn.functional.pad(picture, (0, 3, 0, 7), mode="replicate")
    torch.testing.assert_close(drawn, draw(pipe, image=padded)[..., :9, :13])


@pytest.mark.parametrize("unet", [{}, {"patch_size": 4}])
def test_tasks_share_components_and_checkpoints(make_pipe, picture, tmp_path, monkeypatch, unet):
    """From one task to the other and back; each class loads the other's folder; what is saved is the task's own."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe = make_pipe(**unet)
    img2img = MezzotintImg2ImgPipeline.from_pipe(pipe)
    back = MezzotintPipeline.from_pipe(img2img)
    assert img2img.unet is back.unet is pipe.unet and back.text_encoder is pipe.text_encoder
    assert torch.equal(draw(back), draw(pipe))
    expected = draw(img2img, image=picture)

    folder = tmp_path / "a"
    pipe.save_pretrained(folder)
    for name in ("README.md", "LICENSE"):
        (folder / name).write_text(f"the {name} of text to image")
    loaded = MezzotintImg2ImgPipeline.from_pretrained(folder)
    assert type(loaded) is MezzotintImg2ImgPipeline and torch.equal(draw(loaded, image=picture), expected)
    loaded.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b/LICENSE").is_file() and not (tmp_path / "b/README.md").exists()
    stranger = DiffusionPipeline.from_pretrained(tmp_path / "b", trust_remote_code=True)
    assert type(stranger).__name__ == "MezzotintImg2ImgPipeline" and type(stranger) is not MezzotintImg2ImgPipeline
    assert torch.equal(draw(stranger, image=picture), expected)
    assert torch.equal(draw(MezzotintPipeline.from_pretrained(tmp_path / "b")), draw(pipe))
    # saved over the other task, nothing of its code is left
    loaded.save_pretrained(folder)
    assert [path.name for path in folder.glob("*.py")] == [path.name for path in (tmp_path / "b").glob("*.py")]


# ------------------------------------------------------------------------------------------------------- inversion


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_a_picture_is_drawn_again_from_the_noise_that_it_is_inverted_to(make_img2img, picture, steps):
    """By as many steps of DDIM, the more exactly the more iterations; for another prompt it is another picture."""
    small = {"block_out_channels": (16,), "transformer_layers_per_block": (1,)}
    pipe = make_img2img(scheduler=MezzotintScheduler(solver_order=1), **small)
    text = MezzotintPipeline.from_pipe(pipe)
    errors = []
    for iterations in (1, 2, 8):
        noise = pipe.invert(PROMPT, picture, num_inference_steps=steps, num_iterations=iterations)
        again = draw(text, latents=noise, guidance_scale=1.0, num_inference_steps=steps)
        errors.append((again - picture).square().mean().sqrt().item())
    assert errors[2] < errors[1] < errors[0] and errors[2] < 1e-3
    other = draw(text, prompt="another", latents=noise, guidance_scale=1.0, num_inference_steps=steps)
    assert (other - picture).square().mean().sqrt() > 10 * errors[2]


def test_the_noise_of_a_gaussian_is_known(make_unet):
    """The flow is linear: a picture as far from the mean as the data's deviation has noise of one deviation."""
    scheduler = MezzotintScheduler()
    unet = make_unet(cross_attention_dim=None)
    pipe = MezzotintImg2ImgPipeline(unet, scheduler, None, None)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet = Gaussian(unet, scheduler)
    unit = torch.randn(2, 3, 8, 8, generator=seeded(5)).clamp(-3, 3)
    picture = (Gaussian.mean + Gaussian.variance**0.5 * unit + 1) / 2
    errors = []
    for steps in (50, 200):
        noise = pipe.invert(image=picture, num_inference_steps=steps, num_iterations=10)
        scale = (noise * unit).mean() / unit.square().mean()
        assert (noise - scale * unit).abs().mean() < 0.05  # of the mean alpha_T is left
        errors.append(abs(scale.item() - 1))
    assert errors[1] < 0.02 and errors[1] < errors[0] / 2  # steps of the first order


def test_inversion_takes_any_size_and_a_prompt_for_each_picture(make_img2img):
    pipe, pictures = make_img2img(patch_size=2), torch.rand(2, 3, 9, 13, generator=seeded(7))
    both = pipe.invert(["a cat", "a dog"], pictures, num_inference_steps=3)
    assert both.shape == (2, 3, 12, 16)
    for i, prompt in enumerate(("a cat", "a dog")):
        close(pipe.invert(prompt, pictures[i : i + 1], num_inference_steps=3), both[i : i + 1], rel=1e-4)


@pytest.mark.parametrize(
    "kwargs, rule",
    [
        ({"num_iterations": 0}, "^num_iterations must be a positive whole number: got 0$"),
        ({"num_inference_steps": -1}, "^num_inference_steps must be a positive whole number: got -1$"),
        ({"image": None}, "^image must be a picture"),
        ({"prompt": None}, "^exactly one of prompt and prompt_embeds must be given: got none$"),
        ({"image": torch.rand(3, 3, 8, 8)}, "^image needs one entry, or one for each of 1 prompts: got 3$"),
    ],
)
def test_inversion_that_cannot_be_carried_out_is_refused(make_img2img, picture, kwargs, rule):
    with pytest.raises(ValueError, match=rule) as error:
        make_img2img().invert(**{"prompt": PROMPT, "image": picture} | kwargs)
    assert "\n" not in str(error.value)


def test_inversion_names_the_scheduler_that_it_needs(make_img2img, picture):
    pipe = make_img2img()
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="^inversion needs a scheduler .* got EulerDiscreteScheduler$"):
        pipe.invert(PROMPT, picture)
