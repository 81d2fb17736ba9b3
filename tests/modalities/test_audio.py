"""One sound: formats, rates, channels, lengths, and what is wrong with a file. The oracle is a sine of known pitch."""

import io
import math
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from mezzotint.samples import audio as writer
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.lint import lint
from mezzotint_training.data.rows import load_splits, settle_modality
from mezzotint_training.data.source import first_sample, level_factor, look_at, open_rows
from mezzotint_training.metrics.audio import seen
from mezzotint_training.modalities import audio
from mezzotint_training.modalities.contents import unit, whole

soundfile = pytest.importorskip("soundfile")
RATE = 8000


def sine(frequency: float, samples: int, rate: int = RATE, loud: float = 0.5) -> np.ndarray:
    return (loud * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)).astype(np.float32)


def cell(sound: np.ndarray, rate: int = RATE, **kind) -> dict:
    """Of a sound (samples,) or (samples, channels)."""
    file, kind = io.BytesIO(), {"format": "WAV", "subtype": "PCM_16"} | kind
    if kind["subtype"] == "PCM_16":
        sound = np.round(sound * 32768).astype(np.int16)
    soundfile.write(file, sound, rate, **kind)
    return {"bytes": file.getvalue(), "path": None}


def test_16_bits_come_through_and_the_last_channel_says_where_there_is_sound():
    found = audio.read(cell(sine(440, 300)), 2, (512,))
    assert found.dtype == torch.int16 and found.shape == (2, 512)
    np.testing.assert_array_equal(found[0, :300], np.round(sine(440, 300) * 32768))
    assert not found[0, 300:].any() and (found[1, :300] == 32767).all() and (found[1, 300:] == -32768).all()
    assert torch.equal(whole(unit(found), torch.int16), found)  # all 16 bits


@pytest.mark.parametrize("kind", [{"format": "FLAC"}, {"subtype": "PCM_24"}, {"subtype": "FLOAT"}, {"format": "OGG"}])
def test_other_formats_hold_the_same_sound(kind):
    lossy = kind == {"format": "OGG"}
    found = audio.read(cell(sine(440, 4000), **{"subtype": None} | kind), 2, (4096,))
    np.testing.assert_allclose(unit(found[0, :4000]), sine(440, 4000), atol=0.05 if lossy else 2 / 32768)


@pytest.mark.parametrize("rate", [4000, 11_025, 44_100])
def test_another_rate_is_resampled_to_the_same_pitch_and_length(rate):
    about = {"sampling_rate": RATE}
    given = cell(sine(440, rate // 2, rate), rate)
    found = audio.read(given, 2, (8000,), about)
    assert int((found[1] > 0).sum()) == audio.header(given, about).length == pytest.approx(4000, abs=1)
    middle = slice(400, 3600)  # away from the edges, where a filter rings
    np.testing.assert_allclose(unit(found[0])[middle], sine(440, 8000)[middle], atol=0.01)


def test_what_is_above_half_the_rate_is_filtered_out():
    found = audio.read(cell(sine(7000, 16_000, 16_000), 16_000), 2, (8000,), {"sampling_rate": RATE})
    assert unit(found[0, 400:7600]).abs().max() < 0.02


def test_channels_are_mixed_or_repeated():
    both = np.stack([sine(200, 100), sine(300, 100)], 1)
    assert audio.header(cell(both)).channels == 3 and audio.header(cell(both[:, 0])).channels == 2
    stereo, mono = audio.read(cell(both), 3, (100,)), audio.read(cell(both), 2, (100,))
    np.testing.assert_allclose(unit(stereo[:2]), both.T, atol=1e-4)
    np.testing.assert_allclose(unit(mono[0]), both.mean(1), atol=1e-4)
    assert torch.equal(*audio.read(cell(both[:, 0]), 3, (100,))[:2])


def test_of_a_longer_sound_the_beginning_is_used():
    given, about = cell(sine(440, 1000)), {"sampling_rate": RATE}
    found = audio.read(given, 2, (512,))
    np.testing.assert_array_equal(found[0], np.round(sine(440, 512) * 32768))
    assert audio.header(given, about).findings((512,)) == [
        "a sound longer than 0.064 s, of which the beginning is used"
    ]
    assert audio.header(given, {"sampling_rate": 4000}).findings((512,)) == [
        "a sound of another sampling rate, which is brought to 4,000 Hz"
    ]


@pytest.mark.parametrize("bits", [{}, {"format": "FLAC", "subtype": None}])
def test_a_file_that_is_cut_short_is_refused(bits):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4000)
    whole_file = cell(noise, **bits)["bytes"]
    for part in (0.9, 0.5, 0.02):
        with pytest.raises(ValueError) as error:
            audio.read({"bytes": whole_file[: int(part * len(whole_file))], "path": None}, 2, (4096,))
        assert "\n" not in str(error.value)
    assert audio.read({"bytes": whole_file, "path": None}, 2, (4096,)) is not None


@pytest.mark.parametrize(
    "given, what",
    [
        (None, "there is none"),
        ({"bytes": None, "path": None}, "there is none"),
        ({"bytes": b"no sound at all", "path": None}, "Error opening"),
        (cell(np.zeros(0)), "it is of zero length"),
        (cell(np.array([0.0, np.nan]), subtype="FLOAT"), "its samples must be finite numbers: got others"),
    ],
)
def test_what_is_no_sound_is_said_in_one_line(given, what):
    with pytest.raises(ValueError, match=what) as error:
        audio.read(given, 2, (64,))
    assert "\n" not in str(error.value)


def test_without_the_library_one_line_says_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match=r"^sounds need soundfile; pip install 'mezzotint\[audio\]' brings it$"):
        open_rows(TrainConfig(dataset_name="tones"))


# ------------------------------------------------------------------------------------------------- length and rate


def settings(**asked) -> SimpleNamespace:
    return SimpleNamespace(**{"sampling_rate": None, "audio_length_in_s": None, "n_fft": None, "unet": {}} | asked)


def test_length_and_rate_are_the_sets_or_as_asked_or_the_saved_models():
    headers = [audio.Header(frames, rate, 2, rate) for frames, rate in ((900, 8000), (4000, 16_000), (500, 8000))]

    def settled(size=None, about=None, **asked):
        return audio.settle(settings(**asked), headers[0], lambda: headers, size, about)

    assert settled() == ((2048,), {"sampling_rate": 8000})  # of the second 2000, rounded up
    assert settled(sampling_rate=4000) == ((1024,), {"sampling_rate": 4000})
    assert settled(audio_length_in_s=1) == ((8192,), {"sampling_rate": 8000})
    assert settled((640,), {"sampling_rate": 2000}) == ((640,), {"sampling_rate": 2000})
    with pytest.raises(ValueError, match="must be that of the saved pipeline, 2000: got 8000"):
        settled((640,), {"sampling_rate": 2000}, sampling_rate=8000)


@pytest.mark.parametrize("length", [1, 7, 100, 1000, 8000, 8193, 100_000])
def test_a_length_is_rounded_up_by_an_eighth_at_most_to_what_can_be_halved(length):
    ((found,), _) = audio.settle(
        settings(audio_length_in_s=length / RATE), audio.Header(9, RATE, 2, RATE), tuple, None, {}
    )
    assert length <= found <= max(1.125 * length, length + 1) and found % 2 ** max(length.bit_length() - 4, 0) == 0


def test_a_spectrogram_has_whole_windows_and_a_network_that_sees_them():
    header = audio.Header(900, RATE, 2, RATE)
    about = {"sampling_rate": RATE, "n_fft": 512}

    def settled(patch_size, size=None, about=None, n_fft: int | None = 512):
        asked = settings(n_fft=n_fft, unet={"patch_size": patch_size})
        return audio.settle(asked, header, lambda: [header], size, about)

    assert settled(256) == settled(512) == ((1024,), about)
    assert settled(1, (2048,), about) == settled(1, (2048,), about, None) == ((2048,), about)
    with pytest.raises(ValueError, match="^with n_fft 512, unet must have a patch_size of 256, .*: got 128$"):
        settled(128)
    with pytest.raises(ValueError, match="^n_fft must be that of the saved pipeline, none: got 512$"):
        settled(256, (1024,), {"sampling_rate": RATE})
    assert settled(1, (1024,), {"sampling_rate": RATE}, None) == ((1024,), {"sampling_rate": RATE})


def test_a_sound_is_read_as_the_spectrogram_of_what_is_heard_and_looked_at_alike():
    about, given = {"sampling_rate": RATE, "n_fft": 256}, cell(sine(1000, 3000))
    found = audio.read(given, 2, (4096,), about)
    assert found.dtype == torch.int16 and torch.equal(found[1], audio.read(given, 2, (4096,))[1])
    windows = unit(found[0]).unflatten(0, (-1, 128))
    assert (windows[2:22].argmax(1) == 31).all()  # 1000 Hz, of steps of 31.25 from the first on
    assert windows[2:22, 31].numpy() == pytest.approx(1 + math.log10(0.5) / 2, abs=0.01) and (windows[26:] == -1).all()
    both = (seen(x[None], RATE, n) for x, n in ((found, 256), (audio.read(given, 2, (4096,)), None)))
    one, other = (x[..., :32].float() for x in both)
    assert (one - other).abs().mean() < 2 and (one - other).abs().max() < 16  # of 255


def test_each_channel_of_a_sound_has_a_spectrogram_of_its_own():
    about, left, right = {"sampling_rate": RATE, "n_fft": 256}, sine(1000, 3000), sine(440, 3000)
    both = audio.read(cell(np.stack([left, right], axis=1)), 3, (4096,), about)
    for channel, sound in enumerate((left, right)):
        alone = audio.read(cell(sound), 2, (4096,), about)
        assert torch.equal(both[channel], alone[0]) and torch.equal(both[2], alone[1])
    assert not torch.equal(both[0], both[1])


# ------------------------------------------------------------------------------------------------------ as a data set


def test_the_type_of_a_column_tells_the_modality_and_settings_of_pictures_are_refused(tmp_path):
    config = TrainConfig(dataset_name="tones")
    rows = open_rows(config)
    assert config.modality == "audio" and first_sample(rows.known, config).sampling_rate == 2000
    facts = look_at(rows, config, None)
    assert (facts.size, facts.channels, facts.about) == ((512,), 2, {"sampling_rate": 2000})
    for setting in ({"random_flip": True}, {"resolution": [8]}, {"task": "inpaint"}, {"augment_probability": 0.1}):
        with pytest.raises(UserError, match=rf"^{next(iter(setting))} is not for sounds \(modality audio\): got "):
            load_splits(TrainConfig(dataset_name="tones", **setting))
    for told in (None, "image"):
        with pytest.raises(UserError, match=r"^sampling_rate is not for pictures \(modality image\): got 8000$"):
            load_splits(TrainConfig(dataset_name="digits", modality=told, sampling_rate=8000))
    with pytest.raises(UserError, match="audio_length_in_s, in samples, must be a multiple of 1024 for a model of 11"):
        level_factor(TrainConfig(dataset_name="tones", modality="audio", unet={"block_out_channels": [8] * 11}), facts)


@pytest.mark.parametrize("name", ["audio", "clip"])
def test_the_only_column_of_sounds_is_taken_whatever_its_name(name):
    config = TrainConfig(dataset_name="tones")
    settle_modality(config, {"text": datasets.Value("string"), name: datasets.Audio()})
    assert config.modality == "audio" and config.sample_column == (None if name == "audio" else name)


def test_bad_rows_are_named_and_skipped_and_oddities_are_found():
    sounds = [
        cell(sine(440, 300)),
        cell(np.zeros(0)),
        {"bytes": b"x", "path": None},
        cell(sine(440, 700)),
        cell(sine(9, 90), 4000),
    ]
    sounds.append(sounds[0])
    file = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"audio": file, "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"audio": sounds, "text": ["a"] * len(sounds)}, features=features)
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    like = {"dataset_name": "tones", "modality": "audio", "on_bad_row": "skip"}
    data = CaptionedSamples(rows, TrainConfig(**like), 2, (512,), about={"sampling_rate": RATE})
    data.read_all(progress=False)
    assert [line.partition(":")[0] for line in data.bad] == [f"sound in row {row} cannot be read" for row in (1, 2)]
    found = lint(data, 100)
    assert found.measures["seconds"] == pytest.approx((90 / 4000, 300 / RATE, 700 / RATE), abs=1e-3)
    assert {what: rows for what, _, rows in found.findings} == {
        "a sound longer than 0.064 s, of which the beginning is used": [3],
        "a sound of another sampling rate, which is brought to 8,000 Hz": [4],
        "a sound that an earlier row has too": [5],
    }
    with pytest.raises(UserError, match="sound in row 1 cannot be read: it is of zero length; --on_bad_row skip"):
        CaptionedSamples(rows, TrainConfig(**like | {"on_bad_row": "stop"}), 2, (512,)).read_all(progress=False)


# ------------------------------------------------------------------------------------------------------ back to files


def test_a_spectrogram_is_brightest_at_the_pitch_and_dark_where_there_is_nothing():
    shown = np.asarray(writer.show(sine(1000, 4096)[None], {"sampling_rate": RATE}, (8192,)))
    assert shown.shape == (128, 128)
    assert 127 - shown[:, 20].argmax() == pytest.approx(1000 / (RATE / 2) * 128, abs=1.5)
    assert not shown[:, 80:].any()


@pytest.mark.parametrize("ending", writer.ENDINGS)
def test_a_sound_is_written_and_read_back(ending):
    sound = np.stack([sine(200, 500), sine(300, 500)])
    found, rate = soundfile.read(io.BytesIO(writer.encoded(sound, ending, {"sampling_rate": 2000})))
    assert rate == 2000
    np.testing.assert_allclose(found.T, sound, atol=1 / 32768)
