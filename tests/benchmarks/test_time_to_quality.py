"""What is made of the figures of runs: crossings and ratios against power laws, whose answers are known, and the runs
against programs whose cost is."""

import argparse
import json
import math
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from mezzotint import MezzotintPipeline, MezzotintScheduler, MezzotintUNetModel, MezzotintUpscalePipeline
from mezzotint_training.benchmarks import ablations, changes, diffusers_recipe, quality, time_to_emoji, time_to_quality
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.metrics import features, judges
from mezzotint_training.networks.text import load_text_encoder, new_text_encoder


def lines(side: str, seed: int, scale: float, speed: float = 1.0) -> list[dict]:
    """A curve KID = scale / seconds, of which each look is at a power of two."""
    return [
        {"side": side, "seed": seed, "share": 2.0**-i, "step": int(1000 * 2.0**-i), "guidance": 1.0,
         "processor": speed * 64 * 2.0**-i, "wall": 2 * speed * 64 * 2.0**-i,
         "kernel_distance": [scale / (speed * 64 * 2.0**-i), 0, 1], "frechet_distance": [2.0, 1, 3],
         "accuracy": [0.5, 0.4, 0.6]}
        for i in range(5)
    ]  # fmt: skip


def test_crossing_of_a_power_law():
    seconds = [1.0, 3.0, 10.0, 40.0]
    values = [5 * s**-1.5 for s in seconds]
    for goal in (4.0, 1.0, 0.1, 0.03):
        assert time_to_quality.crossing(seconds, values, goal) == (pytest.approx((5 / goal) ** (1 / 1.5)), "")
    assert time_to_quality.crossing(seconds, values, 6.0) == (pytest.approx(1), "<")
    assert time_to_quality.crossing(seconds, values, 0.001) == (pytest.approx(40), ">")
    # the first time counts, whatever comes after it, and in whatever order the runs ended
    assert time_to_quality.crossing([4, 1, 2], [9, 4, 1], 2.0) == (pytest.approx(2**0.5), "")


def test_ratio_is_that_of_the_times_at_equal_quality():
    """Ours has a third of the peer's KID at the same time, so it needs a third of the time."""
    found = []
    for seed, peer in enumerate((6.0, 7.0, 5.0)):
        found += lines("peer", seed, peer) + lines("ours", seed, peer / 3)
    for clock in ("processor", "wall"):
        values = [x for x, mark in time_to_quality.ratios(found, clock) if mark == ""]
        assert values == pytest.approx([1 / 3] * 3)
    real = {"side": "real", "kernel_distance": [0.001, 0, 1], "frechet_distance": [1.0, 0, 1], "accuracy": [0.9, 0, 1]}
    text = time_to_quality.table([real, *found], argparse.Namespace(scale="digits"))
    assert "processor: 0.333 (0.333 to 0.333); by seed 0.333, 0.333, 0.333" in text
    (last,) = [row for row in text.splitlines() if row.startswith("| peer | 64 | 128 | 1,000 ")]
    # the geometric mean of 6, 7 and 5 sixty-fourths, in thousandths; 4.30 is Student's t of two degrees
    logs = np.log(1000 * np.array([6, 7, 5]) / 64)
    low, high = (math.exp(logs.mean() + sign * 4.3027 * logs.std(ddof=1) / 3**0.5) for sign in (-1, 1))
    assert f"| {math.exp(logs.mean()):.3g} ({low:.3g} to {high:.3g}) |" in last and "| 50.0% |" in last


def test_ratio_of_an_ablation():
    """Against Welch's interval written out."""
    ours, peer = [1.0, 1.2, 1.1], [2.0, 2.4, 2.2, 2.6]
    value, low, high = quality.ratio(ours, peer)
    a, b = np.log(ours), np.log(peer)
    va, vb = a.var(ddof=1) / 3, b.var(ddof=1) / 4
    degrees = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
    assert value == pytest.approx(math.exp(a.mean() - b.mean())) and 3 < degrees < 5.1
    half = (math.log(high) - math.log(low)) / 2
    t = half / (va + vb) ** 0.5
    from scipy.stats import t as student

    assert 2 * student.sf(t, degrees) == pytest.approx(0.05, rel=1e-6)


def test_steps_that_fit(monkeypatch, tmp_path):
    """Of a program that takes 5 s and 0.25 s an update, the first time 100 s more, for what it keeps."""
    asked = []

    def run(side, config, threads):
        asked.append((side, config.max_train_steps, threads))
        return quality.Run([], 1000.0, 5 + 0.25 * config.max_train_steps + (100 if len(asked) == 1 else 0))

    monkeypatch.setattr(quality, "run", run)
    config = TrainConfig(dataset_name="digits", output_dir=str(tmp_path / "x"), train_batch_size=32)
    assert quality.steps_within([65, 1], "ours", config, 3) == [240, 2]
    assert asked == [("ours", 2, 3), ("ours", 2, 3), ("ours", 80, 3)]
    assert quality.update_seconds("ours", config, 3) == pytest.approx(0.25)


@pytest.mark.parametrize("name", list(quality.SCALES))
def test_both_sides_have_as_many_parameters(name):
    scale = quality.SCALES[name]
    with torch.device("meta"):
        channels = {"in_channels": scale.channels, "out_channels": scale.channels, "cross_attention_dim": 64}
        ours = MezzotintUNetModel(**channels, **scale.ours)
        peer = UNet2DConditionModel(**channels | scale.peer)
    assert ours.num_parameters() == pytest.approx(peer.num_parameters(), rel=0.05)


@pytest.fixture(scope="module", autouse=True)
def judges_once():
    """Each judge is trained once, and knows fewer pieces of words: there are a dozen captions."""
    train, trained = features.train_caption_judge, {}

    def once(pixels, captions, *options):
        key = (pixels.numpy().tobytes(), str(captions), *options)
        if key not in trained:
            trained[key] = train(pixels, captions, *options)
        return trained[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "train_caption_judge", once)
        patch.setattr(judges.TextTower.__init__, "__defaults__", (128, 2**10))
        yield


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """The folder of a set of pictures of one colour each, named by it, with that of a text encoder."""
    root = tmp_path_factory.mktemp("captioned")
    generator = np.random.default_rng(0)
    for split, count in (("train", 240), ("test", 48)):
        numbers = np.arange(count) % 12
        pixels = 40 * (numbers[:, None] // np.array([1, 2, 4]) % 3) + 60 + generator.integers(-9, 9, (count, 3))
        pictures = [Image.new("RGB", (8, 8), tuple(map(int, colour))) for colour in pixels]
        captions = [f"colour {chr(97 + number)}" for number in numbers]
        (root / "set").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(
            {"image": pictures, "text": captions},
            features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
        ).to_parquet(root / "set" / f"{split}.parquet")
    for part in new_text_encoder(
        TrainConfig(dataset_name="digits", text_encoder={"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1})
    ):
        part.save_pretrained(root / "text")
    return root


def test_sets_of_captions_are_judged_by_captions_of_the_test_split(captioned, tmp_path, monkeypatch):
    unet = {"block_out_channels": [8, 8], "transformer_layers_per_block": [0, 0], "norm_num_groups": 4}
    scale = quality.Scale(8, 3, unet, {}, settings={"caption_column": ["a picture of {text}"]}, classes=False)
    monkeypatch.setitem(quality.SCALES, "any", scale)
    with pytest.raises(UserError, match="^the scale any needs --text, .*: got none$"):
        quality.prepare("any", str(captioned / "set"), tmp_path)
    config = quality.prepare("any", str(captioned / "set"), tmp_path, str(captioned / "text"))
    assert load_text_encoder(str(config.text_encoder_name_or_path))[1].model_max_length == quality.TOKENS
    judge = quality.QualityJudge(config, scale, count=100, sampling_steps=2, judge_steps=80)
    assert len(judge.asked.pixels) == 48 and judge.asked.captions[0][0].startswith("a picture of colour ")
    real = judge.of_real()
    assert real.accuracy.value > 0.9 and abs(real.kernel_distance.value) < 0.2
    # pictures of other captions are not recognised; those of no colour are far away
    assert judge.judge(judge.asked.pixels.roll(1, dims=0), judge.asked).accuracy.value < 0.5
    assert judge.judge(torch.full_like(judge.asked.pixels, 255), judge.asked).kernel_distance.value > 1


@pytest.mark.parametrize("racer", ["ours", "cascade", "peer"])
def test_a_race_gives_a_row_of_the_leaderboard(captioned, tmp_path, monkeypatch, capsys, make_unet, racer):
    """A run that leaves an untrained network has a row too: what it draws is not recognised."""
    stock = quality._stock(8, 3, [8, 8], [False, True], norm_num_groups=4, attention_head_dim=2)
    scale = quality.Scale(8, 3, {}, stock, settings={"caption_column": ["text"]}, classes=False)
    monkeypatch.setitem(quality.SCALES, "emoji-64", scale)
    asked = []

    def run(side, config, threads):
        asked.append((side, config))
        encoder, tokenizer = load_text_encoder(config.text_encoder_name_or_path)
        if side == "peer":
            unet = UNet2DConditionModel(cross_attention_dim=8, **config.unet)
            unet.save_pretrained(f"{config.output_dir}/unet-{config.max_train_steps}")
        else:
            shape, pipeline = {"cross_attention_dim": 8}, MezzotintPipeline
            if config.task == "upscale":
                about = {"task": "upscale", "scale": config.scale}
                shape, pipeline = shape | {"in_channels": 7, "condition": about}, MezzotintUpscalePipeline
            size = config.resolution[0] if racer == "cascade" else 8
            unet = make_unet(**shape, sample_size=size)
            pipeline(unet, MezzotintScheduler(), encoder, tokenizer).save_pretrained(config.output_dir)
        return quality.Run([], 1234.5 / (2 if racer == "cascade" else 1), 2000.0)

    monkeypatch.setattr(time_to_emoji, "run", run)
    flags = ["--data", str(captioned / "set"), "--text", str(captioned / "text"), "--judge_steps", "60"]
    flags += ["--sampling_steps", "2", "--output", str(tmp_path / "out"), "--threads", "1", "--side", racer]
    given = ["--max_train_steps", "77"] if racer != "cascade" else ["--stages", "{max_train_steps: 77}", "{}"]
    assert time_to_emoji.main([*flags, *given]) == 0
    side, config = asked[0]
    assert side == ("peer" if racer == "peer" else "ours") and config.max_train_steps == 77
    if racer == "cascade":
        first, second = (config for _, config in asked)
        assert (first.resolution, second.resolution, second.task) == ([2, 2], [8, 8], "upscale")
        assert first.balance_column == second.balance_column == "subgroup" and second.max_train_steps > 77
        assert first.cache_dir == second.cache_dir and not second.train_text_encoder
    else:
        assert len(asked) == 1
        assert config.unet == stock if racer == "peer" else config.unet["linear_skip_size"] == 4
        assert racer == "peer" or config.balance_column == "subgroup"  # the recipe's
    row = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert row[0] == "1,234" and float(row[1][:-1]) < 50 and float(row[3]) > 50 and row[4] == "no"
    (figures,) = map(json.loads, (tmp_path / "out/time_to_emoji.jsonl").read_text().splitlines())
    assert figures["seconds"] == 1234.5 and figures["real"] > 0.9 and figures["flags"] == given
    (picture,) = (tmp_path / "out").glob("*.png")
    assert Image.open(picture).size[0] == 560  # ten columns


def test_padded_states_are_those_of_the_captions_alone(captioned):
    encoder, tokenizer = load_text_encoder(str(captioned / "text"))
    tokenizer.model_max_length = 20
    captions = ["colour a", "", "a longer caption"] * 30
    states = diffusers_recipe.padded_states(encoder, tokenizer, captions)
    assert states.shape == (90, 20, 8) and torch.equal(states[:3], states[-3:])
    for caption, found in zip(captions[:3], states, strict=False):
        tokens = tokenizer(caption, return_tensors="pt").input_ids
        torch.testing.assert_close(found[: tokens.shape[1]], encoder(tokens)[0][0], rtol=1e-4, atol=1e-5)


def test_changes_are_settings_or_contexts():
    base = TrainConfig(dataset_name="digits")
    assert set(changes.CONTEXTS) <= set(changes.CHANGES)
    for name, (settings, _) in changes.CHANGES.items():
        replace(base, **settings)  # which checks each setting
        assert bool(settings) or name in changes.CONTEXTS or name == "none"


def test_table_of_ablations_puts_the_best_first():
    found = [
        {"change": name, "updates": 9, "steps": 7, "processor": 9.0, "kernel_distance": kid * (1 + seed / 10),
         "frechet_distance": 2 * kid * (1 + seed / 10), "accuracy": 0.5}
        for name, kid in (("none", 0.02), ("worse", 0.04), ("better", 0.01)) for seed in range(3)
    ]  # fmt: skip
    rows = ablations.table(json.loads(json.dumps(found)), 9).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| better", "| none", "| worse"]
    assert " 0.50 (" in rows[0] and " 2.00 (" in rows[2]
