"""Text to video and text to solid: forms of the result, what is given and put back, and what is refused."""

import numpy as np
import pytest
import tiny_pipes
import torch
from PIL import Image

from mezzotint import (
    MezzotintPipeline,
    MezzotintVoxelPipeline,
)

FRAMES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 12, 3)).astype(np.uint8)) for i in range(3)]


@pytest.fixture(scope="module")
def video():
    return tiny_pipes.video()


@pytest.fixture(scope="module")
def solid():
    return tiny_pipes.solid()


def call(pipe, seed: int = 0, **arguments):
    return pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(seed), **arguments)


def test_frames_come_as_diffusers_gives_them(video):
    frames = call(video, output_type="pt", num_videos_per_prompt=2).frames
    assert frames.shape == (2, 3, 3, 8, 12) and frames.min() >= 0 and frames.max() <= 1
    arrays = call(video, output_type="np", num_videos_per_prompt=2).frames
    np.testing.assert_allclose(arrays, frames.permute(0, 1, 3, 4, 2), atol=1e-6)
    pictures = call(video, num_videos_per_prompt=2).frames
    assert [len(one) for one in pictures] == [3, 3] and pictures[0][0].size == (12, 8)
    np.testing.assert_array_equal(np.asarray(pictures[1][2]), (arrays[1, 2] * 255).round().astype(np.uint8))
    (plain,) = call(video, return_dict=False, output_type="latent")
    assert plain.shape == (1, 3, 3, 8, 12) and video.frame_rate == 8


@pytest.mark.parametrize("size", [(5, 8, 12), (2, 7, 9)])
def test_other_lengths_and_sizes_can_be_drawn(video, size):
    """Time is not halved, so that any number of frames is a whole one; height and width are padded."""
    frames = call(video, num_frames=size[0], height=size[1], width=size[2], output_type="np").frames
    assert frames.shape == (1, *size, 3)


def test_a_first_frame_that_is_given_is_there_and_noised_with_the_rest(video):
    """At each step it is what `add_noise` makes of it, which the network cannot change."""
    picture, seen = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)), []

    def keep(run, step, timestep, tensors):
        seen.append(tensors["latents"])
        return {}

    noise = torch.randn(1, 3, 3, 8, 12, generator=torch.Generator().manual_seed(7))
    frames = call(video, image=picture, latents=noise, callback_on_step_end=keep).frames[0]
    np.testing.assert_array_equal(np.asarray(frames[0]), np.asarray(picture))
    known = (torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 127.5 - 1 - 0.1) / 0.6
    video.scheduler.set_timesteps(3)
    for latents, timestep in zip(seen, video.scheduler.timesteps[1:], strict=False):
        noisy = video.scheduler.add_noise(known[None], noise[:, :, 0], timestep[None])
        torch.testing.assert_close(latents[:, :, 0], noisy, atol=1e-5, rtol=1e-4)
    free = call(video, latents=noise, output_type="pt").frames
    given = call(video, latents=noise, image=picture, output_type="pt").frames
    assert (free[:, 1:] - given[:, 1:]).abs().max() > 1e-3  # what follows the frame depends on it


def test_a_video_is_taken_up_from_the_noise_of_its_strength(video):
    """The network meets the frames as `add_noise` makes them, with the call's noise, at the first of the two steps that
    a strength of 0.7 leaves of three. With all of the steps nothing is left of the frames."""
    noise, met = torch.randn(1, 3, 3, 8, 12, generator=torch.Generator().manual_seed(7)), []
    hook = video.unet.register_forward_pre_hook(lambda _, inputs: met.append(inputs))
    given = call(video, video=FRAMES, strength=0.7, latents=noise, output_type="pt").frames
    hook.remove()
    assert len(met) == 2
    known = torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) / 127.5 - 1 for x in FRAMES], 1)
    noisy = video.scheduler.add_noise((known[None] - 0.1) / 0.6, noise, torch.as_tensor(met[0][1])[None])
    torch.testing.assert_close(met[0][0][:1], noisy, atol=1e-5, rtol=1e-4)
    tensor = (known.transpose(0, 1) + 1) / 2  # (T, C, H, W)
    for form in (tensor, tensor.permute(0, 2, 3, 1).numpy(), [tensor], tensor[None]):
        again = call(video, video=form, strength=0.7, latents=noise, output_type="pt").frames
        torch.testing.assert_close(again, given, atol=1e-5, rtol=1e-5)
    free = call(video, latents=noise, output_type="pt").frames
    assert torch.equal(call(video, video=FRAMES, strength=1.0, latents=noise, output_type="pt").frames, free)
    assert (given - free).abs().max() > 1e-3


@pytest.mark.parametrize("mask", [np.array([0, 1, 0]), np.eye(3)[1][:, None, None] * np.ones((8, 12))])
def test_frames_between_others_are_drawn_and_a_video_is_continued(video, mask):
    kept, pixels = [0, 2], np.stack([np.array(x) for x in FRAMES])
    filled = call(video, video=FRAMES, mask=mask).frames[0]
    np.testing.assert_array_equal(np.stack([np.array(filled[i]) for i in kept]), pixels[kept])
    assert np.abs(np.array(filled[1], float) - pixels[1]).max() > 10
    longer = call(video, video=FRAMES, mask=np.zeros(3), num_frames=5).frames[0]
    assert len(longer) == 5
    np.testing.assert_array_equal(np.stack([np.array(x) for x in longer[:3]]), pixels)
    # A first frame is a video of one that stays
    first = call(video, image=FRAMES[0], output_type="np").frames
    np.testing.assert_array_equal(call(video, video=FRAMES[:1], mask=[0], num_frames=3, output_type="np").frames, first)


def test_a_solid_is_taken_up_from_the_noise_of_its_strength(solid):
    noise, met = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(7)), []
    given = call(solid, seed=5, output_type="pt").voxels
    hook = solid.unet.register_forward_pre_hook(lambda _, inputs: met.append(inputs))
    found = call(solid, voxels=given[0], strength=0.7, latents=noise, output_type="pt").voxels
    hook.remove()
    config = solid.unet.config
    mean, std = (torch.tensor(getattr(config, f"sample_{x}")).reshape(-1, 1, 1, 1) for x in ("mean", "std"))
    noisy = solid.scheduler.add_noise((given * 2 - 1 - mean) / std, noise, torch.as_tensor(met[0][1])[None])
    assert len(met) == 2
    torch.testing.assert_close(met[0][0][:1], noisy, atol=1e-5, rtol=1e-4)
    free = call(solid, latents=noise, output_type="pt").voxels
    assert torch.equal(call(solid, voxels=given[0], strength=1.0, latents=noise, output_type="pt").voxels, free)
    assert (found - free).abs().max() > 1e-3


def test_solids_are_there_or_not_and_have_colours_where_they_are(solid):
    found = call(solid, num_solids_per_prompt=2).voxels
    assert found.shape == (2, 8, 8, 8, 4) and found.min() >= 0 and found.max() <= 1
    assert set(np.unique(found[..., 3])) == {0, 1} and not found[found[..., 3] == 0].any()
    tensors = call(solid, num_solids_per_prompt=2, output_type="pt").voxels
    np.testing.assert_array_equal(tensors.permute(0, 2, 3, 4, 1), found)


def test_half_of_a_solid_is_kept_and_the_rest_completed(solid):
    given, mask = call(solid, seed=5).voxels[0], np.zeros((8, 8, 8))
    mask[:, :4] = 1
    found = call(solid, voxels=given, mask_voxels=mask).voxels[0]
    np.testing.assert_allclose(found[:, 4:], given[:, 4:], atol=1e-6)
    assert np.abs(found[:, :4] - call(solid).voxels[0][:, :4]).max() > 1e-3
    again = call(solid, voxels=torch.from_numpy(given).permute(3, 0, 1, 2), mask_voxels=torch.from_numpy(mask)).voxels
    np.testing.assert_array_equal(again[0], found)


@pytest.mark.parametrize(
    "arguments, what",
    [
        ({"num_frames": 0}, "num_frames must be a positive whole number: got 0"),
        ({"height": 2.5}, "height must be a positive whole number: got 2.5"),
        (
            {"image": torch.zeros(3, 8, 8), "width": 12},
            r"image must have the height and width .*\[8, 12\]: got \[8, 8\]",
        ),
        ({"image": "first.png"}, "image must be a picture, an array or a tensor"),
        ({"output_type": "gif"}, "output_type must be one of 'pil', 'np', 'pt', 'latent': got 'gif'"),
        ({"mask": np.zeros(3)}, "mask goes with video: got it alone"),
        ({"strength": 0.5, "image": torch.zeros(3, 8, 12)}, "strength goes with video: got it alone"),
        ({"video": FRAMES, "image": FRAMES[0]}, "image is the first frame of what is drawn without a video: got both"),
        ({"video": FRAMES, "mask": np.zeros(2)}, r"mask must have shape \(3, 8, 12\), or \(3,\), .* shape \(2,\)"),
        ({"video": FRAMES, "num_frames": 4}, "num_frames must be at most those of video, 3, without a mask: got 4"),
        (
            {"video": FRAMES, "width": 8},
            r"video must have the height and width of what is drawn, \[8, 8\]: got \[8, 12\]",
        ),
        ({"video": []}, "video must have frames: got none"),
        ({"video": [FRAMES, FRAMES[:2]]}, "all of video must have one size: got"),
        ({"video": [FRAMES, FRAMES]}, "video needs one entry, or one for each of 1 prompts: got 2"),
    ],
)
def test_what_does_not_go_with_videos_is_refused_in_one_line(video, arguments, what):
    with pytest.raises(ValueError, match=what):
        call(video, **arguments)


@pytest.mark.parametrize(
    "arguments, what",
    [
        ({"mask_voxels": np.zeros((8, 8, 8))}, "mask_voxels goes with voxels: got it alone"),
        ({"strength": 0.5}, "strength goes with voxels: got it alone"),
        ({"voxels": np.zeros((8, 8, 8, 4)), "strength": 0}, "strength must be above 0 and at most 1: got 0"),
        (
            {"voxels": np.zeros((4, 8, 8, 4)), "mask_voxels": np.zeros((8, 8, 8))},
            r"must have 4 channels, and they and mask_voxels the size \(8, 8, 8\): got shapes \(4, 8, 8, 4\) and",
        ),
        ({"voxels": np.full((8, 8, 8, 4), 255.0), "mask_voxels": np.zeros((8, 8, 8))}, "must be between 0 and 1"),
        ({"voxels": [1], "mask_voxels": np.zeros((8, 8, 8))}, r"voxels must be an array or a tensor: got \[1\]"),
        ({"output_type": "pil"}, "output_type must be one of 'np', 'pt', 'latent': got 'pil'"),
    ],
)
def test_what_does_not_go_with_solids_is_refused_in_one_line(solid, arguments, what):
    with pytest.raises(ValueError, match=what):
        call(solid, **arguments)


def test_weights_of_one_modality_are_no_others(video, solid):
    with pytest.raises(ValueError, match="of modality video, which MezzotintVideoPipeline takes"):
        MezzotintVoxelPipeline(**video.components)(num_inference_steps=1)
    with pytest.raises(ValueError, match="of modality voxels, which MezzotintVoxelPipeline takes"):
        MezzotintPipeline(**solid.components)(num_inference_steps=1)
