"""Text to sound: lengths that are drawn and told, forms of the result, and what is refused."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput
from tiny_pipes import LENGTH, RATE
from tiny_pipes import sound as sound_pipe

from mezzotint import MezzotintAudioPipeline, MezzotintPipeline, MezzotintScheduler, MezzotintUNetModel
from mezzotint.pipelines.spectrograms_mezzotint import to_spectrogram


@pytest.fixture(scope="module", params=[None, 8], ids=["waveforms", "spectrograms"])
def pipe(request) -> MezzotintAudioPipeline:
    return sound_pipe(n_fft=request.param)


def call(pipe, seed: int = 0, steps: int = 3, **arguments):
    return pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(seed), **arguments).audios


@pytest.mark.parametrize("seconds, samples", [(0.3, 30), (0.64, 64), (1.0, 100), (1e-9, 1)])
def test_a_sound_is_as_long_as_it_is_told(pipe, seconds, samples):
    (found,) = call(pipe, audio_length_in_s=seconds)
    assert isinstance(found, np.ndarray) and found.shape == (1, samples) and np.abs(found).max() <= 1


def test_the_network_is_told_the_length_at_every_step(pipe):
    """The last channel is at each step what `add_noise` makes of the length, which the network cannot change."""
    seen = []

    def keep(run, step, timestep, tensors):
        seen.append(tensors["latents"])
        return {}

    noise = torch.randn(1, 2, LENGTH, generator=torch.Generator().manual_seed(7))
    call(pipe, audio_length_in_s=0.3, latents=noise, callback_on_step_end=keep)
    expected = (torch.where(torch.arange(LENGTH) < 30, 1.0, -1.0) - 0.2) / 0.9
    torch.testing.assert_close(seen[-1][0, 1], expected)
    pipe.scheduler.set_timesteps(3)
    for latents, timestep in zip(seen, pipe.scheduler.timesteps[1:], strict=False):
        noisy = pipe.scheduler.add_noise(expected[None, None], noise[:, 1:], timestep[None])
        torch.testing.assert_close(latents[:, 1:], noisy)


def test_where_it_is_not_told_the_last_channel_says_the_length():
    data = torch.zeros(3, 2, 10)
    data[:, 1] = -1.0
    data[0, 1, :4] = data[1, 1, :10] = 1.0
    data[2, 1] = torch.tensor([1, 0.5, -0.2, 0.9, 0.1, -0.6, -1, 0.1, -1, -1])  # noisy: best parted after 5
    assert [one.shape[1] for one in MezzotintAudioPipeline.cut(data, None)] == [4, 10, 5]


def test_what_a_mask_keeps_stays_to_the_bit_and_the_rest_is_drawn(pipe):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 50)).astype(np.float32)
    mask = np.zeros(50)
    mask[20:35] = 1
    (found,) = call(pipe, audio=sound, mask=mask)
    assert found.shape == (1, 50)
    np.testing.assert_array_equal(found[:, mask == 0], sound[:, mask == 0])
    assert (found[:, mask == 1] != sound[:, mask == 1]).all()
    (longer,) = call(pipe, audio=sound, mask=np.zeros(50), audio_length_in_s=0.8)  # continued
    assert longer.shape == (1, 80) and longer[:, 50:].any()
    np.testing.assert_array_equal(longer[:, :50], sound)


def test_the_less_strength_the_nearer_to_the_sound(pipe):
    sound = np.random.default_rng(0).uniform(-0.1, 0.1, (1, 64)).astype(np.float32)

    def seen(wave) -> torch.Tensor:  # phases of spectrograms are not the sound's
        wave = torch.from_numpy(wave)
        return wave if pipe.n_fft is None else to_spectrogram(wave, pipe.n_fft)

    near, far = (
        (seen(call(pipe, audio=sound, strength=x, steps=10)[0]) - seen(sound)).abs().mean() for x in (0.1, 1.0)
    )
    assert near < far / 2


def test_of_a_spectrogram_the_windows_that_are_known_whole_are_put_back():
    pipe, sound = sound_pipe(n_fft=8), torch.rand(1, 50, generator=torch.Generator().manual_seed(0)) - 0.5
    drawn = torch.zeros(50, dtype=torch.bool)
    drawn[21:30] = True
    start, known = pipe.known(sound, drawn, 50, torch.zeros(1, 2, LENGTH))
    # windows of 8 samples about every fourth one: those about 20 to 32 hear something that is drawn, and so does the
    # one about 48, as the sound ends at 50
    kept = {window for window in range(16) if known[0, 0, 4 * window : 4 * window + 4].all()}
    assert kept == {*range(5), *range(9, 12)} and known[0, 0].sum() == 4 * len(kept)
    padded = torch.nn.functional.pad(sound, (0, LENGTH - 50))
    torch.testing.assert_close(start[0, :1] * 0.1, to_spectrogram(padded, 8))  # of mean 0 and deviation 0.1


def test_forms_of_the_result(pipe):
    result = pipe(num_inference_steps=2, audio_length_in_s=0.2, num_waveforms_per_prompt=2, output_type="pt")
    assert isinstance(result, AudioPipelineOutput)
    assert [tuple(one.shape) for one in result.audios] == [(1, 20)] * 2
    (latent,) = pipe(num_inference_steps=2, output_type="latent", return_dict=False)
    assert latent.shape == (1, 2, LENGTH)
    (stereo,) = call(sound_pipe(channels=3), audio_length_in_s=0.2)
    assert stereo.shape == (2, 20)


def test_each_generator_draws_its_own_sound_whatever_the_batch(pipe):
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    both = pipe(num_inference_steps=3, num_waveforms_per_prompt=2, generator=generators, audio_length_in_s=0.64).audios
    for seed, found in zip((3, 4), both, strict=True):
        np.testing.assert_allclose(found, call(pipe, seed, audio_length_in_s=0.64)[0], atol=1e-5)


@pytest.mark.parametrize(
    "arguments, what",
    [
        ({"audio_length_in_s": 0}, "audio_length_in_s must be a number of seconds above 0: got 0"),
        ({"audio_length_in_s": "long"}, "audio_length_in_s must be a number of seconds above 0: got 'long'"),
        ({"mask": np.ones(3)}, "mask goes with audio: got it alone"),
        ({"strength": 0.5}, "strength goes with audio: got it alone"),
        ({"audio": "a.wav"}, r"audio must have shape \(1, samples\), of finite numbers: got 'a.wav'"),
        ({"audio": np.zeros((2, 9))}, r"audio must have shape \(1, samples\), of finite numbers: got shape \(2, 9\)"),
        ({"audio": np.full((1, 9), np.nan)}, r"audio must have shape \(1, samples\), of finite numbers: got .*"),
        ({"audio": np.zeros((1, 9)), "mask": np.ones(8)}, r"mask must have shape \(9,\), between 0 and 1: got .*"),
        ({"audio": np.zeros((1, 9)), "strength": 0}, "strength must be above 0 and at most 1: got 0"),
        ({"num_waveforms_per_prompt": 0}, "num_waveforms_per_prompt must be a positive whole number: got 0"),
        ({"output_type": "pil"}, "output_type must be one of 'np', 'pt', 'latent': got 'pil'"),
        ({"generator": [torch.Generator()] * 2}, "a list of generators needs one for each sound: got 2 for 1"),
        ({"latents": torch.zeros(1, 2, 60)}, r"latents must have shape \(1, 2, 64\): got \(1, 2, 60\)"),
    ],
)
def test_what_is_impossible_is_refused_in_one_line(pipe, arguments, what):
    with pytest.raises(ValueError, match=f"^{what}$"):
        pipe(**arguments)


def test_pictures_and_sounds_are_not_mistaken_for_each_other(pipe):
    with pytest.raises(ValueError, match="got some of modality audio, which MezzotintAudioPipeline takes$"):
        MezzotintPipeline(**pipe.components)()
    pictures = MezzotintUNetModel(sample_size=8, block_out_channels=(16,), transformer_layers_per_block=(0,))
    with pytest.raises(ValueError, match="got some of modality image, which MezzotintPipeline takes$"):
        MezzotintAudioPipeline(pictures, MezzotintScheduler(), None, None)()
    with pytest.raises(ValueError, match="^modality must say what a sample is"):
        MezzotintUNetModel(modality={"sampling_rate": 8000})


def test_saved_and_loaded_it_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = MezzotintAudioPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.sampling_rate == RATE
    np.testing.assert_array_equal(call(loaded)[0], call(pipe)[0])
