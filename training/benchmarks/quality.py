# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks of the training recipe share: the sets and networks that they train on and with, runs of a given
length in processes of their own, and a judge who draws with any U-Net from the same noise and says how far that is from
real pictures. Nothing here trains a diffusion model.

Both sides read the same text. Of sets whose captions name a class: a frozen T5 of random weights, as no more is asked
of it than to tell few captions apart; pictures are drawn for training captions, and the judge is a classifier. Of sets
with a caption for each picture: a pretrained encoder, frozen too; pictures are drawn for captions of the test split,
which nobody was trained on, and the judge is a two-tower model with words of its own. Either is trained on the real
training split and used for nothing else.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from diffusers import UNet2DConditionModel
from scipy import stats

from mezzotint import MezzotintPipeline, MezzotintScheduler
from mezzotint_training.benchmarks import scenes
from mezzotint_training.benchmarks.diffusers_recipe import padded_states
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.digits import digits
from mezzotint_training.data.labels import labelled
from mezzotint_training.data.rows import held_out, load_splits
from mezzotint_training.metrics.accuracy import accuracy
from mezzotint_training.metrics.distances import frechet_distance, gaussian, kernel_distance
from mezzotint_training.metrics.features import make_features
from mezzotint_training.metrics.intervals import Figure, estimated
from mezzotint_training.metrics.pictures import Real, read, shuffled
from mezzotint_training.networks.text import load_text_encoder, new_text_encoder


@dataclass(frozen=True)
class Scale:
    """A set, and a U-Net of each side for it with as many parameters. The peer's has attention at the lowest level,
    where it costs least, and without which no text would come in. Ours reads the text with the timestep too, which is
    enough for captions that name a class (`ABLATIONS.md`)."""

    size: int  # pixels a side
    channels: int
    ours: dict[str, Any]  # arguments of MezzotintUNetModel
    peer: dict[str, Any]  # of UNet2DConditionModel
    settings: dict[str, Any] = field(default_factory=dict)  # of the runs of both sides
    recipe: dict[str, Any] = field(default_factory=dict)  # of ours alone
    classes: bool = True  # captions name a class, which is in the column "label"


UNIT = {"attention_head_dim": 16, "norm_num_groups": 8}


def _stock(size: int, channels: int, widths: list[int], attention: list[bool], **arguments: Any) -> dict[str, Any]:
    down = ["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in attention]
    up = ["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(attention)]
    shape = {"sample_size": size, "in_channels": channels, "out_channels": channels, "block_out_channels": widths}
    return {**shape, "down_block_types": down, "up_block_types": up, "layers_per_block": 1, **arguments}


# Those of the recipe emoji-64, with a shorter average, as runs are shorter
RECIPE = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "emoji-64.yaml").read_text(encoding="utf-8"))
EMOJI = RECIPE["unet"]
CAPTIONED: dict[str, Any] = {
    "settings": {name: RECIPE[name] for name in ("caption_column", "caption_weights", "mixed_precision")},
    "recipe": {
        name: RECIPE[name]
        for name in ("balance_column", "balance_power", "logit_mean", "train_batch_size")
    } | {"learning_rate": 1e-3, "lr_scheduler": "cosine", "ema_decay": 0.99},
    "classes": False,
}  # fmt: skip
SCALES = {
    "digits": Scale(
        8,
        1,
        {"block_out_channels": [32, 80], "transformer_layers_per_block": [0, 0], "layers_per_block": 2, **UNIT},
        _stock(8, 1, [32, 64], [False, True], norm_num_groups=8, attention_head_dim=8),
    ),
    "fashion": Scale(
        28,
        1,
        {"block_out_channels": [16, 32, 56], "transformer_layers_per_block": [0, 0, 0], "layers_per_block": 1, **UNIT},
        _stock(28, 1, [16, 32, 32], [False, False, True], norm_num_groups=8, attention_head_dim=4),
    ),
    "emoji-32": Scale(
        32,
        3,
        EMOJI | {"patch_size": 2},
        _stock(32, 3, [96, 128, 224], [False, False, True], norm_num_groups=16),
        **CAPTIONED,
    ),
    "emoji-64": Scale(
        64, 3, EMOJI, _stock(64, 3, [64, 128, 192, 192], [False, False, False, True], norm_num_groups=16), **CAPTIONED
    ),
    "scenes-128": Scale(
        128,
        3,
        EMOJI | {"patch_size": 8, "linear_skip_size": 8},
        _stock(128, 3, [48, 64, 128, 192, 192], [False, False, False, False, True], norm_num_groups=16),
        **CAPTIONED | {"recipe": CAPTIONED["recipe"] | {"logit_mean": 0.9}},
    ),
}
TOKENS = 64  # that a caption of a pretrained encoder is padded to on the peer's side


def prepare(name: str, data: str | None, folder: Path, text: str | None = None) -> TrainConfig:
    """The settings that all runs at a scale share; what they need is written to `folder`.

    Args:
        name: of the scale.
        data: the set's own folder, where it is not `digits`, which is at hand; of scenes that of the emoji in them.
        text: folder or Hub name of the pretrained text encoder, where captions do not name a class.

    Raises:
        UserError: where one of them is missing.
    """
    scale = SCALES[name]
    if name == "digits":
        source = folder / "digits"
        source.mkdir(parents=True, exist_ok=True)
        for split, rows in digits().items():
            rows.to_parquet(source / f"{split}-00000-of-00001.parquet")
        data = str(source)
    if data is None:
        raise UserError(f"the scale {name} needs --data, the folder of its parquet files: got none")
    if text is None and not scale.classes:
        raise UserError(f"the scale {name} needs --text, the folder or Hub name of a pretrained encoder: got none")
    if name == "scenes-128":
        data = str(scenes.write(data, folder / name))
    config = TrainConfig(
        train_data_dir=data, resolution=[scale.size], unet=scale.ours, num_validation_samples=0, report_to="none",
        text_encoder={"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}, max_text_length=32,
        text_encoder_name_or_path=str(folder / "text"), checkpointing_steps=10**6, validation_steps=10**6,
        cache_dir=str(folder / "cache"),
        **scale.settings,
    )  # fmt: skip
    if not (folder / "text").is_dir():
        torch.manual_seed(0)
        if text is not None and not scale.classes:
            encoder, tokenizer = load_text_encoder(text)
            tokenizer.model_max_length = TOKENS
        else:
            encoder, tokenizer = new_text_encoder(config)
        encoder.save_pretrained(folder / "text")
        tokenizer.save_pretrained(folder / "text")
    return config


class Run(NamedTuple):
    """A finished run: the lines of its log, and the seconds of all of it, without Python's imports."""

    lines: list[dict[str, Any]]
    wall: float
    processor: float  # of all its threads


def run(side: str, config: TrainConfig, threads: int) -> Run:
    """Train in a process of its own, forked off one that has imported everything.

    Args:
        side: `ours`, `peer`, or the name of one of `changes.CONTEXTS`.
        config: of the run.

    Raises:
        UserError: if it fails, with the last that it said.
    """
    output = Path(config.output_dir)
    output.parent.mkdir(parents=True, exist_ok=True)
    said, told = (output.with_name(f"{output.name}.{ending}") for ending in ("txt", "json"))
    told.unlink(missing_ok=True)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mezzotint_training.benchmarks.changes"])
    process = processes.Process(target=_run, args=(side, config, threads, said, told))
    process.start()
    process.join()
    if not told.is_file():
        raise UserError(f"a run of {side} failed with code {process.exitcode}: {said.read_text()[-2000:].strip()}")
    return finished(config)


def finished(config: TrainConfig) -> Run:
    """The run of these settings, which `run` has ended."""
    output = Path(config.output_dir)
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = json.loads(output.with_name(f"{output.name}.json").read_text())
    return Run([json.loads(line) for line in lines], *seconds)


def _run(side: str, config: TrainConfig, threads: int, said: Path, told: Path) -> None:
    from mezzotint_training.benchmarks import changes, diffusers_recipe

    program: Any = importlib.import_module(f"mezzotint_training.{config.program.replace('-', '_')}")

    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    wall, processor = time.perf_counter(), time.process_time()
    if side == "peer":
        diffusers_recipe.train(config, cached_text=True, stock_unet=True)
    else:
        with changes.CONTEXTS.get(side, contextlib.nullcontext)():
            program.train(config)
    told.write_text(json.dumps([time.perf_counter() - wall, time.process_time() - processor]))


def update_seconds(side: str, config: TrainConfig, threads: int) -> float:
    """Processor seconds of an update, from two short runs."""
    few, many = _short_runs(side, config, threads)
    return (many[1] - few[1]) / (many[0] - few[0])


def steps_within(seconds: list[float], side: str, config: TrainConfig, threads: int) -> list[int]:
    """Updates that fit into each of so many seconds of processor time, start and end included; by two short runs."""
    few, many = _short_runs(side, config, threads)
    an_update = (many[1] - few[1]) / (many[0] - few[0])
    return [max(few[0], int(many[0] + (x - many[1]) / an_update)) for x in seconds]


def encoding_seconds(config: TrainConfig, threads: int) -> float:
    """Processor seconds that the first run of these settings spends on what later ones find in its cache: the captions
    of a frozen encoder, the latents of an autoencoder."""
    short = replace(config, max_train_steps=2, logging_steps=2, output_dir=f"{config.output_dir}-first")
    times = []
    for _ in range(2):
        times.append(run("ours", short, threads).processor)
        shutil.rmtree(short.output_dir)
    return max(times[0] - times[1], 0.0)


def _short_runs(side: str, config: TrainConfig, threads: int) -> list[tuple[int, float]]:
    """Updates and processor seconds of two runs, after one that fills the caches of all (a frozen encoder's texts)."""
    found = []
    for steps in (2, 2, max(12, 2560 // config.train_batch_size)):
        short = replace(config, max_train_steps=steps, logging_steps=steps, output_dir=f"{config.output_dir}-{steps}")
        found.append((steps, run(side, short, threads).processor))
        shutil.rmtree(short.output_dir, ignore_errors=True)
    return found[1:]


# ----------------------------------------------------------------------------------------------------------- the judge


class Judged(NamedTuple):
    kernel_distance: Figure
    frechet_distance: Figure  # on random features, which know nothing of either side
    accuracy: Figure  # how often the judge reads what was asked for; a two-tower model among 32 captions
    pixels: torch.Tensor  # (N, C, H, W), bytes


class QualityJudge:
    """Real pictures of a scale, networks that know them, and what drawn ones come to beside them.

    Args:
        config: of `prepare`.
        scale: of the same name.
        count: pictures to draw for each verdict, and as many real test ones to compare with, four times over.
        steps: of sampling, and of training the classifier.
    """

    def __init__(self, config: TrainConfig, scale: Scale, count: int, sampling_steps: int, judge_steps: int):
        splits, classes = load_splits(config), []
        if scale.classes:
            splits, classes = labelled(splits, "label")
        settings = replace(config, validation_split="test", num_validation_samples=10**9)
        images = [
            CaptionedSamples(rows, settings, scale.channels, (scale.size, scale.size))
            for rows in held_out(settings, splits)
        ]
        for some in images:
            some.read_all(progress=False)
        train, test = (read(some, classes, "label") for some in images)
        self.real = test.rows(shuffled(len(test.pixels), 0)[: 4 * count])
        rows = shuffled(len(train.pixels), 0)
        self.asked, self.floor = train.rows(rows[:count]), train.rows(rows[count : 2 * count])
        if not scale.classes:
            self.asked = self.real.rows(torch.arange(min(count, len(self.real.pixels))))
        kinds = {"judge": "classifier" if scale.classes else "two-tower", "random": "random"}
        device = torch.device("cpu")
        self.features = {k: make_features(v, train, classes, device, judge_steps, seed=0) for k, v in kinds.items()}
        self.seen = {k: look(self.real.pixels) for k, look in self.features.items()}
        self.scale, self.sampling_steps = scale, sampling_steps
        self.text_encoder, self.tokenizer = load_text_encoder(str(config.text_encoder_name_or_path))

    def judge(self, pixels: torch.Tensor, asked: Real) -> Judged:
        found = {k: (look(pixels), self.seen[k]) for k, look in self.features.items()}
        (kernel,) = estimated(kernel_distance, *found["judge"])
        (frechet,) = estimated(
            lambda a, b: frechet_distance(gaussian(a), gaussian(b)).clamp(min=1e-12), *found["random"], "log"
        )
        read: Any = accuracy(self.features["judge"], Real(pixels, asked.captions, asked.labels), None, self.real)
        return Judged(kernel, frechet, Figure(read["value"], tuple(read["interval"])), pixels)

    def of_real(self) -> Judged:
        """What perfect pictures would come to."""
        found = self.judge(self.floor.pixels, self.floor)
        return (
            found if self.scale.classes else found._replace(accuracy=self.judge(self.asked.pixels, self.asked).accuracy)
        )

    def of_ours(self, run_dir: Path, guidance_scale: float = 1.0, seed: int = 0) -> Judged:
        pipe: Any = MezzotintPipeline.from_pretrained(run_dir)
        config = pipe.unet.config

        def encode(captions: list[str]) -> dict[str, torch.Tensor]:
            states, _, mask, _ = pipe.encode_prompt(captions, torch.device("cpu"), do_classifier_free_guidance=False)
            return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

        kind = pipe.scheduler.config.prediction_type
        return self._drawn(pipe.unet, encode, kind, config.sample_mean, config.sample_std, guidance_scale, seed)

    def of_peer(self, unet_dir: Path, guidance_scale: float = 1.0, seed: int = 0) -> Judged:
        unet = UNet2DConditionModel.from_pretrained(unet_dir, use_safetensors=True)

        def encode(captions: list[str]) -> dict[str, torch.Tensor]:
            unique = list(dict.fromkeys(captions))
            states = dict(zip(unique, padded_states(self.text_encoder, self.tokenizer, unique), strict=True))
            return {"encoder_hidden_states": torch.stack([states[caption] for caption in captions])}

        return self._drawn(unet, encode, "epsilon", [0.0], [1.0], guidance_scale, seed)

    @torch.no_grad()
    def _drawn(self, unet: Any, encode, prediction_type: str, mean, std, guidance_scale: float, seed: int) -> Judged:
        """The same sampler, steps and noise for everyone; data beyond the range of pictures is clamped in between."""
        unet.eval()
        mean, std = (torch.tensor(x).reshape(1, -1, 1, 1) for x in (mean, std))
        captions, parts = [texts[0] for texts in self.asked.captions], []
        generator = torch.Generator().manual_seed(seed)
        shape = (self.scale.channels, self.scale.size, self.scale.size)
        for start in range(0, len(captions), 128):
            some = captions[start : start + 128]
            text, none = encode(some), encode([""] * len(some)) if guidance_scale != 1 else {}
            network = MezzotintScheduler(prediction_type=prediction_type)
            sampler = MezzotintScheduler(prediction_type="sample")
            sampler.set_timesteps(self.sampling_steps)
            x = torch.randn(len(some), *shape, generator=generator)
            for t in sampler.timesteps:
                output = unet(x, t, **text).sample
                if none:
                    without = unet(x, t, **none).sample
                    output = without + guidance_scale * (output - without)
                clean = network.predict_original_sample(output, t, x) * std + mean
                x = sampler.step((clean.clamp(-1, 1) - mean) / std, t, x, return_dict=False)[0]
            parts.append(((x * std + mean + 1) * 127.5).round().clamp(0, 255).byte())
        return self.judge(torch.cat(parts), self.asked)


def ratio(ours: list[float], peer: list[float]) -> tuple[float, float, float]:
    """The ratio of geometric means with its 95 % interval by Welch's t on logarithms."""
    a, b = np.log(ours), np.log(peer)
    test = stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return float(np.exp(a.mean() - b.mean())), float(np.exp(low)), float(np.exp(high))
