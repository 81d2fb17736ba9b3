"""Sounds from a set to a published pipeline: one short run on the embedded tones, gone on with, sampled, measured."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from strangers import forked
from tiny_run import TEXT_ENCODER, UNET, distilled, logged, run, saved, steered, trained

from mezzotint import MezzotintAudioPipeline
from mezzotint_training import cli
from mezzotint_training.config.autoencoder import AutoencoderConfig
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.rows import load_splits
from mezzotint_training.data.source import look_at, open_rows
from mezzotint_training.data.streaming import CaptionedStream, load_stream
from mezzotint_training.metrics import outliers
from mezzotint_training.metrics.pictures import draw
from mezzotint_training.modalities import audio
from mezzotint_training.modalities.contents import unit

soundfile = pytest.importorskip("soundfile")
TONES = {
    "recipe": ...,
    "dataset_name": "tones",
    "max_train_samples": ...,
    "validation_split": "test",
    "num_validation_samples": 48,
    "unet": UNET | {"patch_size": 8},
    "text_encoder": TEXT_ENCODER,
    "train_batch_size": 8,
    "max_train_steps": 4,
    "checkpointing_steps": 2,
    "validation_steps": 2,
    "num_copy_samples": 4,
    "num_inference_steps": 2,
    "num_validation_images": 1,
    "validation_prompts": ["a low tone", "a high tone"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with forked():
        return trained(tmp_path_factory.mktemp("audio") / "tones", **TONES | {"load_back": True})


def test_a_finished_run_is_a_pipeline_of_sounds_that_a_stranger_loads(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["load_back"]["where"] == "where mezzotint is not installed" and metrics["load_back"]["moved"] == 0
    config = json.loads((folder / "unet" / "config.json").read_text())
    assert config["modality"] == {"name": "audio", "sampling_rate": 2000}
    assert (config["spatial_dims"], config["sample_size"], config["out_channels"]) == (1, 512, 2)
    pipe = MezzotintAudioPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a low tone", num_inference_steps=2, audio_length_in_s=0.1).audios[0].shape == (1, 200)
    assert set(logged(folder, "held_out_loss")) == set(logged(folder, "copy_rate")) == {2, 4}


def test_samples_are_scaled_to_unit_variance(folder):
    """By the config's mean and deviation, over what the set holds, silence among it."""

    config = TrainConfig(dataset_name="tones", validation_split="test")
    rows = open_rows(config)
    facts = look_at(rows, config, None)
    data = CaptionedSamples(rows.known, config, 2, facts.size, about=facts.about)
    samples = unit(torch.stack([data.content(row) for row in range(len(data))]))  # (N, C, L)
    network = json.loads((folder / "unet" / "config.json").read_text())
    for channel in range(2):
        assert network["sample_mean"][channel] == pytest.approx(samples[:, channel].mean().item(), abs=1e-4)
        assert network["sample_std"][channel] == pytest.approx(samples[:, channel].std().item(), abs=1e-3)


def test_a_run_that_is_stopped_ends_bit_for_bit_as_one_that_was_not(folder, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    for path in ("checkpoint-4", "unet", "scheduler"):
        shutil.rmtree(again / path)
    (again / "model_index.json").unlink()
    result = run(output_dir=again, **TONES)
    assert result.code == 0 and "going on from step 2" in result.out, result.err
    for name in ("weights", "optimizer", "ema"):
        before, after = saved(folder, 4, name), saved(again, 4, name)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert logged(folder) == logged(again)


def test_its_card_has_players_and_a_spectrogram(folder):
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-to-audio" in card and "url: samples/step-000004-1.wav" in card
    assert "picture" not in card.partition("## How it was trained")[0]
    players = re.findall(r'<audio controls src="(.*?)">', card)
    assert players == ["samples/step-000004-1.wav", "samples/step-000004-2.wav"]
    for name in players:
        sound, rate = soundfile.read(folder / name)
        assert rate == 2000 and sound.ndim == 1 and 0 < len(sound) <= 512
    assert Image.open(folder / "samples/step-000004.png").size[0] > 2 * 128


@pytest.mark.parametrize("name", ["tone.wav", "tone.flac", "tone.png"])
def test_sample_writes_files_or_a_picture_of_them(folder, tmp_path, capsys, name):
    argv = ["sample", str(folder), "a low tone", "a high tone", "--num_inference_steps", "2", "--device", "cpu"]
    assert cli.main([*argv, "--audio_length_in_s", "0.2", "--output", str(tmp_path / name)]) == 0
    if name.endswith(".png"):
        assert Image.open(tmp_path / name).size == (128, 256)
        return
    for number in (1, 2):
        sound, rate = soundfile.read(tmp_path / name.replace(".", f"-{number}."))
        assert rate == 2000 and sound.shape == (400,)
    # From a sound at another rate, as long as it is
    soundfile.write(tmp_path / "mine.wav", np.sin(np.arange(1200) / 9), 4000)
    argv = [*argv[:3], "--num_inference_steps", "5", "--device", "cpu", "--output", str(tmp_path / "again.wav")]
    assert cli.main([*argv, "--audio", str(tmp_path / "mine.wav"), "--strength", "0.3"]) == 0
    assert soundfile.read(tmp_path / "again.wav")[0].shape == (600,)
    assert cli.main([*argv, "--audio", str(tmp_path / "none.wav")]) == 2
    assert f"audio {tmp_path / 'none.wav'} cannot be loaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, what",
    [
        (["--height", "8"], "height is not for MezzotintAudioPipeline, which these weights ask for: got it"),
        (["--output", "tone.doc"], r"output must end in one of .*\.wav, \.flac.*: got tone.doc"),
        (
            ["--output", "tone.smi"],
            "output must be a picture file, or end in .wav or .flac, as sounds are drawn: got tone.smi",
        ),
        (["--audio_length_in_s", "0"], "audio_length_in_s must be a number above 0: got 0"),
    ],
)
def test_sample_refuses_what_does_not_go_with_sounds(folder, capsys, flags, what):
    assert cli.main(["sample", str(folder), "a low tone", "--device", "cpu", *flags]) == 2
    assert re.search(what, capsys.readouterr().err)


def test_evaluate_measures_pictures_of_the_sounds(folder, capsys):
    argv = ["evaluate", str(folder), "--count", "40", "--num_inference_steps", "2", "--judge_steps", "4", "--card"]
    argv += ["--likelihood", "--likelihood_count", "2", "--likelihood_tolerance", "0.09"]
    assert cli.main([*argv, "--device", "cpu"]) == 0, capsys.readouterr().err
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["prompt_accuracy"]["classifier"]["real"]["value"] >= 0.5
    assert found["features"]["classifier"]["frechet_distance"]["real"]["value"] > 0
    assert "40 sounds in 2 steps" in (folder / "README.md").read_text()
    assert found["likelihood"]["pictures"] == 2 and found["likelihood"]["dimensions"] == 2 * 512


@pytest.mark.parametrize("n_fft", [None, 32])
def test_a_stream_of_sounds_has_the_same_samples(n_fft):
    about = {"sampling_rate": 2000} | ({"n_fft": n_fft} if n_fft else {})
    config = TrainConfig(dataset_name="tones", streaming=True, validation_split="test", shuffle_buffer_size=40)
    stream = load_stream(config)
    data = CaptionedStream(stream, config, 2, (512,), about=about)
    whole = {audio.read(row["audio"], 2, (512,), about).numpy().tobytes() for row in load_stream(config).rows}
    batch = next(data.batches(8))
    assert batch["sample"].shape == (8, 2, 512) and batch["sample"].dtype == torch.float32
    for sample in batch["sample"]:
        content = torch.where(torch.tensor([[False], [True]]), (sample > 0) * 65535 - 32768, sample * 32768)
        assert content.round().to(torch.int16).numpy().tobytes() in whole


def test_a_run_on_spectrograms_is_a_pipeline_that_is_tuned_as_one_and_draws_sounds(tmp_path):
    of_spectrograms = {"n_fft": 32, "unet": UNET | {"patch_size": 16}, "max_train_steps": 1, "validation_prompts": []}
    with forked():
        folder = trained(tmp_path / "made", **TONES | of_spectrograms | {"load_back": True})
    assert json.loads((folder / "metrics.json").read_text())["load_back"]["moved"] == 0  # by a stranger
    like = {"pretrained_model_name_or_path": folder, "unet": ..., "text_encoder": ..., "n_fft": ...}
    tuned = trained(tmp_path / "tuned", **TONES | of_spectrograms | like)
    pipe = MezzotintAudioPipeline.from_pretrained(tuned)
    about = pipe.unet.config.modality
    assert about == {"name": "audio", "sampling_rate": 2000, "n_fft": 32} and pipe.unet.config.sample_size == 512
    pixels = draw(pipe, [["a low tone"], ["a high tone"]], 2, 1.0, batch_size=2, seed=0, progress=False)
    assert pixels.shape == (2, 1, 32, 32) and pixels.dtype == torch.uint8  # bands, windows


def test_it_is_distilled_to_two_steps(folder, tmp_path):
    result = distilled(folder, tmp_path / "student", "--no-load_back")
    assert result.code == 0, result.err
    pipe, evaluations = MezzotintAudioPipeline.from_pretrained(tmp_path / "student"), []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: evaluations.append(inputs[0].shape))
    drawn = pipe("a low tone", audio_length_in_s=0.1, output_type="np").audios
    assert drawn[0].shape == (1, 200) and evaluations == [(1, 2, 512)] * 2
    card = (tmp_path / "student" / "README.md").read_text()
    assert "A text-to-sound diffusion pipeline, distilled from" in card and "It draws in 2 steps by default" in card
    assert "picture" not in card.partition("## How it was trained")[0]


def test_a_classifier_steers_it(folder, tmp_path):
    (plain, guided), classifier = steered(folder, tmp_path / "classified", dataset_name="tones")
    assert classifier.config.spatial_dims == 1 and classifier.config.id2label == {0: "low", 1: "high"}
    assert guided > plain + 0.01


def test_sounds_are_classified_by_their_likelihood_and_looked_through(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(outliers, "LEVELS", 8)
    found = tmp_path / "found.json"
    wave = str(tmp_path / "low.wav")
    soundfile.write(wave, np.sin(np.arange(400) / 3), 2000)
    words = ["classify", str(folder), "--rounds", "6", "--output", str(found), "--device", "cpu"]
    assert cli.main([*words, wave, "--captions", "a low tone", "a high tone"]) == 0
    (verdict,) = json.loads(found.read_text())["verdicts"]
    said = capsys.readouterr().out
    assert verdict["sound"] == wave and said == f"{wave}: {verdict['caption']} ({verdict['probability']:.1%})\n"
    assert cli.main([*words, "--count", "6"]) == 0
    assert "of 6 held-out sounds are likeliest under their own caption of" in capsys.readouterr().out
    assert cli.main(["outliers", str(folder), "--count", "40", "--output", str(found), "--device", "cpu"]) == 0
    said, results = capsys.readouterr().out, json.loads(found.read_text())
    assert results["word"] == "sound" and results["dimensions"] == 2 * 512
    assert "40 sounds trained on: " in said and "a sound trained on is likelier than one held out in" in said


def test_a_saved_pipeline_is_tuned_on_sounds_and_on_nothing_else(folder, tmp_path):
    like = {"pretrained_model_name_or_path": folder, "unet": ..., "text_encoder": ..., "max_train_steps": 1}
    tuned = trained(tmp_path / "tuned", **TONES | like | {"adapter": "lora", "validation_prompts": []})
    pipe = MezzotintAudioPipeline.from_pretrained(folder)
    pipe.load_lora_weights(tuned)
    assert (tuned / "pytorch_lora_weights.safetensors").is_file() and pipe.unet.peft_config
    result = run(output_dir=tmp_path / "other", **{"pretrained_model_name_or_path": folder, "unet": ...})
    assert result.code == 2 and "draws samples of modality audio: got a set of modality image" in result.err
    with pytest.raises(UserError, match=r"^train-autoencoder is for pictures: got sounds \(modality audio\)$"):
        load_splits(AutoencoderConfig(dataset_name="tones"))
