# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks of tasks share: sets, trained networks and the plain ones beside them, figures and grids."""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mezzotint import MezzotintUNetModel
from mezzotint_training.benchmarks.quality import finished, run
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.rows import held_out, load_splits
from mezzotint_training.metrics.accuracy import accuracy
from mezzotint_training.metrics.pictures import Real, read
from mezzotint_training.modalities.images import as_picture

UNET = {
    "patch_size": 2,
    "block_out_channels": [32, 64, 128],
    "transformer_layers_per_block": [0, 0, 1],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 32,
    "linear_skip_size": 4,
}
BATCH, RATE = 32, 1e-3


class Set:
    """The training and the test split of a set, decoded."""

    def __init__(self, args: argparse.Namespace, size: int, **settings: Any):
        self.config = TrainConfig(
            train_data_dir=args.data, resolution=[size], train_batch_size=BATCH, learning_rate=RATE,
            caption_column=[args.caption_column], report_to="none", num_validation_samples=0, validation_steps=10**6,
            checkpointing_steps=10**6, lr_scheduler="constant_with_warmup", ema_decay=0.995, random_flip=args.flip,
            text_encoder={"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}, max_text_length=64,
            **{"unet": UNET} | settings,
        )  # fmt: skip
        looked_at = replace(self.config, validation_split="test", num_validation_samples=10**9)
        parts = held_out(looked_at, load_splits(looked_at))
        self.size, self.images = size, [CaptionedSamples(rows, looked_at, 3, (size, size)) for rows in parts]
        for images in self.images:
            images.read_all(progress=False)
        self.train, self.test = (read(images, [], "label") for images in self.images)
        (self.means, self.stds) = self.images[0].statistics()

    def trained(self, args: argparse.Namespace, root: Path, **settings: Any) -> tuple[Path, float]:
        """The folder of a run of that many minutes, and its processor time in seconds."""
        folder = root / settings["task"]
        usual = {"max_train_minutes": args.minutes, "max_train_steps": 10**7, "logging_steps": 200}
        config = replace(self.config, output_dir=str(folder), **usual | settings | args.settings)
        return folder, ended(config, args)


def ended(config: TrainConfig, args: argparse.Namespace) -> float:
    """The processor seconds of a run, which is only read where --runs has it already."""
    folder = Path(config.output_dir)
    found = finished(config) if (folder / "model_index.json").is_file() else run("ours", config, args.threads)
    print(f"{folder.name}: {found.lines[-1]['step']} updates, {found.processor:.0f} s", flush=True)
    return found.processor


def fitted(folder: Path, inputs: Callable, loss: Callable, count: int, out: int, seconds: float) -> torch.nn.Module:
    """A U-Net of the same shape as that in `folder` without text and noise, trained to a target for so many seconds of
    processor time; its weights are averaged as those of the run.

    Args:
        inputs: pictures by their numbers, `(B, C, H, W)`.
        loss: of the prediction for these, a number.
        count: of pictures.
        out: channels of the prediction.
    """
    kept = folder.with_name(f"plain-{folder.name}")
    if kept.is_dir():
        return MezzotintUNetModel.from_pretrained(kept).eval().requires_grad_(False)
    shape = MezzotintUNetModel.load_config(folder / "unet")
    names = (*UNET, "sample_size")
    torch.manual_seed(0)
    example = inputs(torch.arange(1))
    unet = MezzotintUNetModel(in_channels=example.shape[1], out_channels=out, **{name: shape[name] for name in names})
    averaged = MezzotintUNetModel.from_config(unet.config)
    averaged.load_state_dict(unet.state_dict())
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    began, step = time.process_time(), 0
    while time.process_time() - began < seconds:
        rows = torch.randint(count, (BATCH,))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 100)
        value = loss(unet(inputs(rows), torch.zeros(BATCH)).sample, rows)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(0.995, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, weight in zip(averaged.parameters(), unet.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)
    print(f"plain U-Net: {step} updates, {time.process_time() - began:.0f} s", flush=True)
    averaged.save_pretrained(kept)
    return averaged.eval().requires_grad_(False)


def in_parts(function: Callable, *tensors: torch.Tensor, size: int = 64) -> torch.Tensor:
    return torch.cat([function(*parts) for parts in zip(*(x.split(size) for x in tensors), strict=True)])


def shown(figure: Any, digits: int = 2) -> str:
    return f"{figure.value:.{digits}f} ({figure.interval[0]:.{digits}f} to {figure.interval[1]:.{digits}f})"


def found_again(judge: Any, drawn: torch.Tensor, captions: list[list[str]], data: Set) -> str:
    """How often a two-tower model picks the caption of a picture among several, with its interval."""
    read = accuracy(judge, Real(drawn, captions, data.test.labels[: len(drawn)]), None, data.test)
    assert read is not None
    return f"{read['value']:.1%} ({read['interval'][0]:.1%} to {read['interval'][1]:.1%})"


def grid(path: Path, rows: list[torch.Tensor], count: int = 12) -> None:
    """Rows of pictures (N, C, H, W), bytes, one above the other."""
    cells = torch.cat([torch.cat(list(row[:count].expand(-1, 3, -1, -1)), dim=2) for row in rows], dim=1)
    scale = max(1, 64 // rows[0].shape[-1])
    picture = as_picture(cells)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)


def psnr(drawn: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Of each picture, in dB."""
    return -10 * ((drawn.float() - truth.float()) / 255).square().mean((1, 2, 3)).clamp(min=1e-10).log10()
