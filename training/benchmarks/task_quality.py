# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How well the tasks that start from a picture are done, each beside what one would do without it, on test pictures.

    pip install -c constraints.txt -e ".[benchmarks]"
    python training/benchmarks/task_quality.py segment --data path/to/nuclei-64 --minutes 8
    python training/benchmarks/task_quality.py upscale --data path/to/emoji-32 --scale 2 --minutes 8
    python training/benchmarks/task_quality.py inpaint --data path/to/emoji-32 --minutes 8
    python training/benchmarks/task_quality.py attributes --minutes 3
    python training/benchmarks/task_quality.py img2img --checkpoint model_cards/emoji-64 --data path/to/emoji-64

- segment: Dice of the classes, and whether the map of doubt finds the errors (the chance that a wrong pixel has more
  doubt than a right one; expected calibration error of the probabilities), beside a U-Net of the same size that is
  trained by cross-entropy for the same processor time.
- upscale: PSNR, and kernel distance on the features of a two-tower model, beside bicubic and Lanczos enlargement and a
  U-Net of the same size that is trained to the mean (by squares) for the same processor time.
- inpaint: distance in the hole and how often a two-tower model finds the caption again, over a box, a half and strokes:
  a network that is trained for it and, with one of text to image that had the same time, our loop that puts back what
  is known, and diffusers' `RePaintScheduler`; beside the nearest known pixel and biharmonic filling (scikit-image).
- attributes: digits by class and by how much ink they have, without text: how often a support vector machine of real
  digits reads the class, and how the ink of drawn ones follows what was asked for; classes 0 to 4 were trained on with
  little ink only, 5 to 9 with much. Each of the two has a weight of its own.
- img2img: faithfulness and accuracy for another picture's caption over `strength`, beside diffusers' loop with
  `DDIMScheduler` on the same weights; and how exactly a picture comes back by `invert`.

Networks are trained by `train.py` with `--size`'s settings, unless --settings says otherwise. Grids go to --output.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, RePaintScheduler
from PIL import Image
from scipy import ndimage, stats

from mezzotint import (
    MezzotintImg2ImgPipeline,
    MezzotintInpaintPipeline,
    MezzotintPipeline,
    MezzotintSegmentPipeline,
    MezzotintUNetModel,
    MezzotintUpscalePipeline,
)
from mezzotint_training.benchmarks.digits_accuracy import reader
from mezzotint_training.benchmarks.quality import run
from mezzotint_training.config.flags import Help
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.conditions import random_mask, shrunk
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.digits import digits
from mezzotint_training.data.rows import held_out, load_splits
from mezzotint_training.metrics.accuracy import accuracy
from mezzotint_training.metrics.distances import kernel_distance
from mezzotint_training.metrics.features import make_features
from mezzotint_training.metrics.intervals import average, estimated
from mezzotint_training.metrics.pictures import Real, read
from mezzotint_training.modalities.contents import unit
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
            train_data_dir=args.data, resolution=[size], unet=UNET, train_batch_size=BATCH, learning_rate=RATE,
            caption_column=[args.caption_column], report_to="none", num_validation_samples=0, validation_steps=10**6,
            checkpointing_steps=10**6, lr_scheduler="constant_with_warmup", ema_decay=0.995, random_flip=args.flip,
            text_encoder={"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}, max_text_length=64,
            **settings,
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
        folder = root / "-".join(map(str, settings.values()))
        config = replace(self.config, max_train_minutes=args.minutes, max_train_steps=10**7, output_dir=str(folder),
                         logging_steps=200, **settings)  # fmt: skip
        found = run("ours", config, args.threads)
        print(f"{folder.name}: {found.lines[-1]['step']} updates, {found.processor:.0f} s", flush=True)
        return folder, found.processor


def fitted(folder: Path, inputs: Callable, loss: Callable, count: int, out: int, seconds: float) -> torch.nn.Module:
    """A U-Net of the same shape as that in `folder` without text and noise, trained to a target for so many seconds of
    processor time; its weights are averaged as those of the run.

    Args:
        inputs: pictures by their numbers, `(B, C, H, W)`.
        loss: of the prediction for these, a number.
        count: of pictures.
        out: channels of the prediction.
    """
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


# --------------------------------------------------------------------------------------------------------- segmentation


def segment(args: argparse.Namespace, root: Path) -> list[list[str]]:
    data = Set(args, 64, task="segment")
    folder, seconds = data.trained(args, root, task="segment", proportion_empty_prompts=0.5)
    pixels, truth = data.test.pixels[:, :3], data.test.pixels[:, 3].bool()
    pipe = MezzotintSegmentPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": args.steps, "ensemble_size": args.samples, "output_type": "pt"}
    ours = in_parts(lambda x: pipe(image=x / 255, generator=generator, **call).probabilities[:, 1], pixels, size=16)
    one = {**call, "ensemble_size": 1}
    single = in_parts(lambda x: pipe(image=x / 255, generator=generator, **one).probabilities[:, 1], pixels)

    known = data.train.pixels
    masks = known[:, 3:].float()

    def inputs(rows: torch.Tensor) -> torch.Tensor:
        return unit(known[rows, :3])

    plain = fitted(
        folder, inputs, lambda y, rows: F.binary_cross_entropy_with_logits(y, masks[rows]), len(known), 1, seconds
    )
    theirs = in_parts(lambda x: plain(unit(x), torch.zeros(len(x))).sample.sigmoid()[:, 0], pixels)

    found = []
    for name, p, evaluations in (
        ("one drawing", single, args.steps),
        (f"{args.samples} drawings", ours, args.steps * args.samples),
        ("U-Net by cross-entropy", theirs, 1),
    ):
        wrong = (p > 0.5) != truth
        both = ((p > 0.5) & truth).sum((1, 2)) * 2 / ((p > 0.5).sum((1, 2)) + truth.sum((1, 2))).clamp(min=1)
        doubt = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
        a, b = doubt[wrong].numpy(), doubt[~wrong].numpy()
        finds = stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) if len(a) else math.nan
        bins = (p * 10).long().clamp(max=9)
        error = sum(
            ((bins == i).float().mean() * (p[bins == i].mean() - truth[bins == i].float().mean()).abs()).item()
            for i in range(10)
            if (bins == i).any()
        )
        found.append([name, str(evaluations), shown(average(both), 3), f"{finds:.3f}", f"{error:.4f}"])
    grid(args.output / "segment.png", [pixels[:: len(pixels) // 12], *(
        (255 * x[:: len(x) // 12, None]).byte() for x in (single, ours, theirs, truth.float()))])  # fmt: skip
    return [["", "evaluations", "Dice", "doubt finds errors (AUC)", "calibration error"], *found]


# ----------------------------------------------------------------------------------------------------- super-resolution


def psnr(drawn: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Of each picture, in dB."""
    return -10 * ((drawn.float() - truth.float()) / 255).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def upscale(args: argparse.Namespace, root: Path) -> list[list[str]]:
    data = Set(args, args.size)
    folder, seconds = data.trained(args, root, task="upscale", scale=args.scale)
    judge = make_features("two-tower", data.train, [], torch.device("cpu"), args.judge_steps, seed=0)
    truth = data.test.pixels[: args.count]
    small = torch.stack([shrunk(x.float(), args.scale) for x in truth]).round().clamp(0, 255).byte()
    pipe = MezzotintUpscalePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)

    def drawn(seed: int, **call: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        call = {"num_inference_steps": args.steps, "generator": generator, "output_type": "pt"} | call
        return in_parts(lambda x: (pipe(image=x / 255, **call).images * 255).round().byte(), small)

    samples = [drawn(seed) for seed in range(args.samples)]
    captioned = [texts[0] for texts in data.test.captions[: args.count]]
    texts = torch.arange(len(small))
    call = {"num_inference_steps": args.steps, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    prompted = in_parts(
        lambda x, rows: (
            (pipe([captioned[i] for i in rows], image=x / 255, guidance_scale=1.5, **call).images * 255).round().byte()
        ),
        small,
        texts,
    )

    known = data.train.pixels
    little = torch.stack([shrunk(x.float(), args.scale) for x in known]).round().clamp(0, 255)

    def enlarged(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x.float(), (args.size, args.size), mode="bicubic").clamp(0, 255)

    def inputs(rows: torch.Tensor) -> torch.Tensor:
        return unit(enlarged(little[rows]))

    plain = fitted(
        folder, inputs, lambda y, rows: F.mse_loss(y, unit(known[rows]) - inputs(rows)), len(known), 3, seconds
    )

    def regressed(x: torch.Tensor) -> torch.Tensor:
        base = unit(enlarged(x))
        return ((base + plain(base, torch.zeros(len(x))).sample).clamp(-1, 1) * 127.5 + 127.5).round().byte()

    lanczos = [as_picture(x).resize((args.size, args.size), Image.Resampling.LANCZOS) for x in small]
    rows = {
        "bicubic": enlarged(small).round().byte(),
        "Lanczos": torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in lanczos]),
        "U-Net by squares": in_parts(regressed, small),
        "one drawing": samples[0],
        "one drawing, noise_level 0.1": drawn(0, noise_level=0.1),
        "one drawing, with its caption, guidance 1.5": prompted,
        f"mean of {args.samples} drawings": torch.stack(samples).float().mean(0).round().byte(),
    }
    real = judge(truth)
    found = []
    for name, pixels in rows.items():
        (distance,) = estimated(kernel_distance, judge(pixels), real)
        found.append([name, shown(average(psnr(pixels, truth))), f"{1000 * distance.value:.1f}"])
    given = small[:12].repeat_interleave(args.scale, 2).repeat_interleave(args.scale, 3)
    grid(args.output / f"upscale-{args.size}.png", [given, *rows.values(), truth])

    # Seams: how much more a picture changes across the edges of tiles than elsewhere
    generator = np.random.default_rng(0)
    board = torch.cat([torch.cat(list(small[generator.integers(0, len(small), 32)]), dim=2) for _ in range(20)], dim=1)
    wide = board[None, :, :300, :500]
    big = pipe(
        image=wide / 255, num_inference_steps=5, output_type="pt", generator=torch.Generator().manual_seed(0)
    ).images
    tile, overlap = pipe.tiles()
    steps = big.diff(dim=-1).abs().mean((0, 1, 2))
    edges = [
        x - 1 + shift for x in range(tile - overlap, big.shape[-1] - tile, tile - overlap) for shift in (0, overlap)
    ]
    others = [x for x in range(len(steps)) if x not in edges]
    ratio = steps[edges].mean() / steps[others].mean()
    print(f"{wide.shape[-1]}x{wide.shape[-2]} in tiles of {tile}: changes across their edges are {ratio:.3f} of others")
    return [["", "PSNR, dB", "KID x 1000"], *found]


# ----------------------------------------------------------------------------------------------------------- inpainting


def inpaint(args: argparse.Namespace, root: Path) -> list[list[str]]:
    from skimage.restoration import inpaint_biharmonic

    data = Set(args, args.size)
    trained, _ = data.trained(args, root, task="inpaint")
    usual, _ = data.trained(args, root, task="text_to_image")
    judge = make_features("two-tower", data.train, [], torch.device("cpu"), args.judge_steps, seed=0)
    truth, captions = data.test.pixels[: args.count], data.test.captions[: args.count]
    prompts = [texts[0] for texts in captions]
    specialist = MezzotintInpaintPipeline.from_pretrained(trained)
    generalist = MezzotintInpaintPipeline(**MezzotintPipeline.from_pretrained(usual).components)
    side, n, found = args.size, args.steps, []
    masks = {"box": torch.zeros(side, side), "half": torch.zeros(side, side)}
    masks["box"][side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    masks["half"][:, side // 2 :] = 1
    rng = np.random.default_rng(0)
    strokes = [random_mask(rng, side, side) for _ in range(40 * len(truth))]
    strokes = [x for x in strokes if 0.1 < x.mean() < 0.35 and x[0].any() != x[:, 0].all()][: len(truth)]
    for kind in ("box", "half", "strokes"):
        mask = torch.stack(strokes[: len(truth)]) if kind == "strokes" else masks[kind].expand(len(truth), -1, -1)
        some = truth[: len(mask)]

        def ours(pipe: Any, some=some, mask=mask, **call: Any) -> torch.Tensor:
            pipe.set_progress_bar_config(disable=True)
            call = {"guidance_scale": 2.0, "output_type": "pt", "generator": torch.Generator().manual_seed(0)} | call
            return in_parts(
                lambda x, m, rows: (pipe([prompts[i] for i in rows], x / 255, m, **call).images * 255).round().byte(),
                some, mask, torch.arange(len(some)))  # fmt: skip

        def theirs(some=some, mask=mask) -> torch.Tensor:
            return in_parts(lambda x, m, rows: repaint(generalist, [prompts[i] for i in rows], x, m, args.steps),
                            some, mask, torch.arange(len(some)))  # fmt: skip

        methods: dict[str, tuple[int, Callable]] = {
            "nearest known pixel": (0, lambda some=some, mask=mask: torch.stack(list(map(nearest, some, mask)))),
            "biharmonic (scikit-image)": (0, lambda some=some, mask=mask: torch.stack([
                torch.from_numpy((inpaint_biharmonic(x.permute(1, 2, 0).numpy() / 255, m.numpy() > 0, channel_axis=-1)
                                  * 255).round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
                for x, m in zip(some, mask, strict=True)])),
            "put back, text-to-image weights": (n, lambda ours=ours: ours(generalist, num_inference_steps=n)),
            "put back, num_resamples 5": (5 * n, lambda ours=ours: ours(
                generalist, num_inference_steps=n, num_resamples=5)),
            "RePaintScheduler, the same weights": (evaluations(n), theirs),
            "trained for it": (n, lambda ours=ours: ours(specialist, num_inference_steps=n)),
        }  # fmt: skip
        pictures = []
        for name, (cost, method) in methods.items():
            drawn = method()
            hole = mask[:, None].expand_as(some) > 0
            error = ((drawn.float() - some.float()) / 255).square().mul(hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))
            right = found_again(judge, drawn, captions, data)
            found.append([kind, name, str(cost), shown(average(error.sqrt()), 3), right])
            print(found[-1], flush=True)
            pictures.append(drawn)
        hidden = torch.where(mask[:, None] > 0, torch.tensor(128, dtype=torch.uint8), some)
        grid(args.output / f"inpaint-{kind}.png", [hidden, *pictures, some])
    found.append(["", "the pictures themselves", "", "0", found_again(judge, truth, captions, data)])
    return [["hole", "", "evaluations", "RMS distance in it", "caption found"], *found]


def nearest(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A picture whose hole holds the nearest known pixels."""
    known: Any = ndimage.distance_transform_edt(mask.numpy() > 0, return_distances=False, return_indices=True)
    return picture[:, torch.from_numpy(known[0]), torch.from_numpy(known[1])]


def _repaint(steps: int) -> RePaintScheduler:
    scheduler = RePaintScheduler(beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(steps, jump_length=2, jump_n_sample=5)
    return scheduler


def evaluations(steps: int) -> int:
    """Of the network, in RePaint's course of so many steps."""
    times = _repaint(steps).timesteps.tolist()
    return sum(t < last for t, last in zip(times, [times[0] + 1, *times], strict=False))


@torch.no_grad()
def repaint(pipe: Any, prompts: list[str], pixels: torch.Tensor, mask: torch.Tensor, steps: int) -> torch.Tensor:
    """diffusers' `RePaintPipeline` on a network that reads text and predicts velocities: its loop and its scheduler."""
    scheduler, ours = _repaint(steps), pipe.scheduler
    scheduler.alphas_cumprod = ours.alphas_cumprod.float()
    config = pipe.unet.config
    mean, std = (torch.tensor(x).reshape(1, -1, 1, 1) for x in (config.sample_mean, config.sample_std))
    original, keep = (unit(pixels) - mean) / std, 1 - mask[:, None]
    generator = torch.Generator().manual_seed(0)
    text, none, text_mask, none_mask = pipe.encode_prompt(prompts)
    assert scheduler.timesteps is not None
    texts, masks = torch.cat([none, text]), torch.cat([none_mask, text_mask])
    x, last = torch.randn(original.shape, generator=generator), scheduler.timesteps[0] + 1
    for t in scheduler.timesteps:
        if t < last:
            uncond, cond = pipe.unet(torch.cat([x] * 2), t, texts, masks).sample.chunk(2)
            noise = ours.predict_noise(uncond + 2.0 * (cond - uncond), t, x)
            x = scheduler.step(noise, int(t), x, original, keep, generator).prev_sample
        else:
            x = scheduler.undo_step(x, int(last), generator)
        last = t
    drawn = (((x * std + mean).clamp(-1, 1) + 1) * 127.5).round().byte()
    return torch.where(mask[:, None] > 0, drawn, pixels)


# -------------------------------------------------------------------------------------------- image to image, inversion


def img2img(args: argparse.Namespace, root: Path) -> list[list[str]]:
    base = MezzotintPipeline.from_pretrained(args.checkpoint)
    size = base.unet.config.sample_size
    data = Set(args, size)
    judge = make_features("two-tower", data.train, [], torch.device("cpu"), args.judge_steps, seed=0)
    some = data.test.pixels[: args.count]
    # Each picture is to become what the one after it shows
    captions = [*data.test.captions[1 : args.count], data.test.captions[0]]
    prompts = [texts[0] for texts in captions]
    pipe: Any = MezzotintImg2ImgPipeline(**base.components)
    pipe.set_progress_bar_config(disable=True)
    features, found, pictures = judge(some), [], [some]
    schedulers = {
        "MezzotintScheduler": pipe.scheduler,
        "DDIMScheduler": DDIMScheduler.from_config(pipe.scheduler.config),
    }
    for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
        for name, scheduler in schedulers.items():
            pipe.scheduler = scheduler
            generator = torch.Generator().manual_seed(0)
            drawn = in_parts(
                lambda x, rows, strength=strength, generator=generator: (
                    pipe([prompts[i] for i in rows], x / 255, strength, args.steps, generator=generator,
                         guidance_scale=3.0, output_type="pt").images * 255).round().byte(),
                some, torch.arange(len(some)), size=16)  # fmt: skip
            far = 1 - F.cosine_similarity(judge(drawn), features)
            right = found_again(judge, drawn, captions, data)
            found.append([f"strength {strength}", name, shown(average(psnr(drawn, some))), shown(average(far)), right])
            print(found[-1], flush=True)
            if name == "MezzotintScheduler":
                pictures.append(drawn)
    grid(args.output / "img2img.png", pictures)
    own = [texts[0] for texts in data.test.captions[: args.count]]
    cut, edited = some[:24], []
    first = type(base.scheduler).from_config(base.scheduler.config, solver_order=1)
    for steps in (10, 20, 50):
        pipe.scheduler = base.scheduler = first
        base.set_progress_bar_config(disable=True)
        noise = pipe.invert(own[: len(cut)], cut / 255, num_inference_steps=steps)
        call = {"latents": noise, "num_inference_steps": steps, "output_type": "pt"}
        back = (base(own[: len(cut)], guidance_scale=1.0, **call).images * 255).round().byte()
        edited.append((base(prompts[: len(cut)], guidance_scale=3.0, **call).images * 255).round().byte())
        found.append([f"invert, {steps} steps", "solver_order 1", shown(average(psnr(back, cut))), "", ""])
    grid(args.output / "invert.png", [cut, back, *edited])
    return [["", "scheduler", "PSNR to the picture, dB", "distance of features", "the new caption found"], *found]


# ----------------------------------------------------------------------------------------------------------- attributes


def attributes(args: argparse.Namespace, root: Path) -> list[list[str]]:
    splits = digits()
    ink = {split: [float(np.asarray(x).mean() / 255) for x in rows["image"]] for split, rows in splits.items()}
    middle = float(np.median(ink["train"]))
    for split, rows in splits.items():
        rows = rows.remove_columns("mask").add_column("ink", ink[split])
        kept = [i for i, row in enumerate(rows) if (row["ink"] < middle) == (row["label"] < 5)]
        (root / "set").mkdir(exist_ok=True)
        (rows.select(kept) if split == "train" else rows).to_parquet(root / "set" / f"{split}-00000-of-00001.parquet")
    config = TrainConfig(
        train_data_dir=str(root / "set"), label_column="label", attribute_columns=["ink"], proportion_empty_prompts=1.0,
        max_train_minutes=args.minutes, max_train_steps=10**7, lr_scheduler="constant_with_warmup", ema_decay=0.995,
        learning_rate=RATE, train_batch_size=64, num_validation_samples=0, validation_steps=10**6, report_to="none",
        checkpointing_steps=10**6, output_dir=str(root / "attributes"), logging_steps=100,
        unet={"block_out_channels": [32, 64], "transformer_layers_per_block": [0, 0], "layers_per_block": 2,
              "norm_num_groups": 8, "attention_head_dim": 16},
        text_encoder={"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}, max_text_length=32,
    )  # fmt: skip
    ended = run("ours", config, args.threads)
    print(f"attributes: {ended.lines[-1]['step']} updates, {ended.processor:.0f} s", flush=True)
    pipe = MezzotintPipeline.from_pretrained(config.output_dir)
    pipe.set_progress_bar_config(disable=True)
    svm, ceiling = reader()
    levels = np.quantile(ink["train"], [0.1, 0.3, 0.5, 0.7, 0.9]).tolist()
    found = [["real digits of the test split", f"{ceiling:.1%}", "", "", ""]]
    scales: list[dict[str, float]] = [
        {"class_labels": a, "ink": b}
        for a, b in ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (2.0, 2.0), (4.0, 1.0), (1.0, 4.0))
    ]
    shown_rows = []
    for scale in scales:
        said = [{"class_labels": str(k), "ink": level} for k in range(10) for level in levels]
        call: dict[str, Any] = {"num_inference_steps": args.steps, "guidance_scale": 1.0, "output_type": "pt"}
        generator = [torch.Generator().manual_seed(seed) for _ in said for seed in range(20)]
        parts = []
        for first in range(0, len(said), 10):
            some, own = said[first : first + 10], generator[20 * first : 20 * first + 200]
            call |= {"attributes": some, "attribute_guidance_scale": scale, "num_images_per_prompt": 20}
            parts.append(pipe([""] * len(some), generator=own, **call).images)
        drawn = torch.cat(parts)
        pixels = (drawn * 255).round() / 255
        right = torch.from_numpy(svm.predict(pixels.flatten(1).numpy())) == torch.arange(10).repeat_interleave(100)
        got = pixels.mean((1, 2, 3)).reshape(10, 5, 20)
        seen = torch.tensor([[(level < middle) == (k < 5) for level in levels] for k in range(10)])
        of_each = right.reshape(10, 5, 20).float()
        rises = (got.mean(2).diff(dim=1) > 0).float().mean()
        slope = np.polyfit(np.tile(levels, 10), got.mean(2).flatten().numpy(), 1)[0]
        right_of = [f"{of_each[some].mean():.1%}" for some in (seen, ~seen)]
        name = f"class {scale['class_labels']:g}, ink {scale['ink']:g}"
        found.append([name, *right_of, f"{rises:.0%}", f"{slope:.2f}"])
        print(found[-1], flush=True)
        shown_rows.append((pixels.reshape(10, 5, 20, 1, 8, 8)[3::4, :, 0].flatten(0, 1) * 255).byte())
    grid(args.output / "attributes.png", shown_rows)
    return [["weights", "class read, trained combinations", "held-out combinations",
             "more ink for the next level", "ink drawn by ink asked for, slope"], *found]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    tasks = {"segment": segment, "upscale": upscale, "inpaint": inpaint, "attributes": attributes, "img2img": img2img}
    parser.add_argument("task", choices=tasks, help="what is measured")
    parser.add_argument("--data", help="folder of the set; digits need none")
    parser.add_argument("--caption_column", default="text", help="column of captions")
    parser.add_argument("--checkpoint", help="a text-to-image pipeline, for img2img")
    parser.add_argument("--minutes", type=float, default=8.0, help="of each run's training")
    parser.add_argument("--size", type=int, default=32, help="pixels a side, for upscale and inpaint")
    parser.add_argument("--scale", type=int, default=2, help="times to enlarge")
    parser.add_argument("--flip", action="store_true", help="mirror half of the training pictures")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps")
    parser.add_argument("--samples", type=int, default=8, help="drawings of a picture, for means and doubt")
    parser.add_argument("--count", type=int, default=192, help="test pictures")
    parser.add_argument("--judge_steps", type=int, default=500, help="updates of the model that judges")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for the grids and the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        rows = tasks[args.task](args, Path(root))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{'---|' * len(rows[0])}")
    print("\n".join(lines))
    (args.output / f"{args.task}.json").write_text(json.dumps({"arguments": sys.argv[1:], "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
