# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The peer that `train_speed.py` and `time_to_quality.py` measure: what diffusers'
`examples/text_to_image/train_text_to_image.py` does in a step, on pixels in place of latents, with the text encoder and
settings of a run of ours, and the U-Net of ours or, with --stock_unet, diffusers' own and its objective.

    python training/benchmarks/diffusers_recipe.py --train_data_dir path/to/emoji-32 --max_train_steps 100
    python training/benchmarks/diffusers_recipe.py --train_data_dir path/to/emoji-32 --stock_unet --cached_text \\
        --unet '{"block_out_channels": [32, 64], ...}' --checkpointing_steps 1000

It takes the flags of `train.py`, keeps to those that the script knows too, and writes the lines of `metrics.jsonl` that
`train.py` writes. Nothing of ours may speed it up: pictures are decoded and transformed each time that they are drawn,
captions are padded to the tokenizer's full length and encoded in every step, AdamW and the moving average are as their
libraries have them by default, and the loss is fetched from the device at each step.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm.auto import tqdm

from mezzotint import MezzotintUNetModel
from mezzotint_training.config.flags import parse_args
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.captions import Choices, choices, drawn
from mezzotint_training.data.rows import composed
from mezzotint_training.engine.progress import peak_memory
from mezzotint_training.networks.text import load_text_encoder, new_text_encoder


def transform(picture: Image.Image, resolution: int, flip: bool, mode: str = "RGB") -> torch.Tensor:
    """torchvision's Resize, RandomCrop, RandomHorizontalFlip, ToTensor and Normalize, which need not be installed.

    Returns:
        `torch.Tensor` of shape `(channels, resolution, resolution)`, in [-1, 1].
    """
    picture = picture.convert(mode)
    scale = resolution / min(picture.size)
    width, height = (max(resolution, int(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = random.randint(0, width - resolution), random.randint(0, height - resolution)
    picture = picture.crop((left, top, left + resolution, top + resolution))
    if flip and random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(picture).reshape(resolution, resolution, -1)).permute(2, 0, 1).contiguous()
    return pixels.float().div(255).sub(0.5).div(0.5)


def train(config: TrainConfig, cached_text: bool = False, stock_unet: bool = False) -> None:
    """Train for `config.max_train_steps` updates, and log. Every `config.checkpointing_steps` and at the end the moving
    average of a stock U-Net is written as `unet-{step}`.

    Args:
        config: the settings of a run of `train.py` on square pictures from a `train_data_dir`.
        cached_text: encode each caption once, before the first step, which the script does not do (a frozen encoder);
            with `cache_dir` once for all runs of a benchmark, which are of one set and one encoder.
        stock_unet: `config.unet` are the arguments of diffusers' U-Net, which predicts the noise; and captions are
            dropped as guidance needs it, which the script's elder brother for SDXL does.
    """
    started, began = time.perf_counter(), time.process_time()
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    accumulation = config.gradient_accumulation_steps
    accelerator = Accelerator(mixed_precision=config.mixed_precision, gradient_accumulation_steps=accumulation)
    set_seed(config.seed)

    # 1. The models
    if config.text_encoder_name_or_path is not None:
        text_encoder, tokenizer = load_text_encoder(config.text_encoder_name_or_path)
    else:
        text_encoder, tokenizer = new_text_encoder(config)
    kind = UNet2DConditionModel if stock_unet else MezzotintUNetModel
    unet = kind(**{"cross_attention_dim": text_encoder.config.hidden_size, **config.unet}).train()
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    train_text = config.train_text_encoder
    if train_text is None:
        train_text = config.text_encoder_name_or_path is None
    text_encoder.requires_grad_(train_text).train(train_text)
    trained = [unet, text_encoder] if train_text else [unet]
    noise_scheduler = DDPMScheduler(prediction_type="epsilon" if stock_unet else "v_prediction")

    # 2. Optimizer and moving average
    parameters = [parameter for model in trained for parameter in model.parameters()]
    ema = EMAModel(parameters) if config.use_ema else None
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )

    # 3. The data
    rows = composed(datasets.load_dataset(config.train_data_dir)[config.dataset_split], config.caption_column)
    resolution = (config.resolution or [rows[0][config.image_column].height])[0]
    mode = "L" if config.unet.get("in_channels") == 1 else "RGB"

    def tokenize(captions: list[str]) -> torch.Tensor:
        length = tokenizer.model_max_length
        return tokenizer(
            captions, max_length=length, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids

    def texts(examples) -> list[Choices]:
        columns = (examples[name] for name in config.caption_column)
        return [choices(cells, config) for cells in zip(*columns, strict=True)]

    hidden: dict[str, torch.Tensor] = {}
    if cached_text:
        captions = {text for row in texts(rows) for _, some in row for text in some}
        captions |= {""} if stock_unet else set()
        kept = Path(config.cache_dir, "padded.pt") if config.cache_dir else None
        if kept is not None and kept.is_file():
            hidden = torch.load(kept)
        else:
            hidden = dict(zip(sorted(captions), padded_states(text_encoder, tokenizer, sorted(captions)), strict=True))
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                torch.save(hidden, kept)

    def preprocess(examples: dict) -> dict:
        captions = [drawn(row, random.random()) for row in texts(examples)]
        if stock_unet:
            captions = ["" if random.random() < config.proportion_empty_prompts else c for c in captions]
        pictures = examples[config.image_column]
        return {
            "pixel_values": [transform(picture, resolution, config.random_flip, mode) for picture in pictures],
            "text": [hidden[caption] for caption in captions] if cached_text else list(tokenize(captions)),
        }

    def collate(examples: list[dict]) -> dict:
        batch = {key: torch.stack([example[key] for example in examples]) for key in ("pixel_values", "text")}
        return {**batch, "pixel_values": batch["pixel_values"].contiguous().float()}

    loader = torch.utils.data.DataLoader(
        rows.with_transform(preprocess),
        shuffle=True,
        collate_fn=collate,
        batch_size=config.train_batch_size,
        num_workers=config.dataloader_num_workers,
    )
    lr_scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=config.max_train_steps * accelerator.num_processes,
    )
    *prepared, optimizer, loader, lr_scheduler = accelerator.prepare(*trained, optimizer, loader, lr_scheduler)
    unet = prepared[0]
    if train_text:
        text_encoder = prepared[1]
    else:  # what is not trained is held in the precision that it is used in
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
        text_encoder.to(accelerator.device, dtype)
    if ema is not None:
        ema.to(accelerator.device)

    # 4. The loop
    step, train_loss, pictures, waited, window_started = 0, 0.0, 0, 0.0, time.perf_counter()
    batches = endless(loader)
    bar = tqdm(total=config.max_train_steps, desc="Steps", disable=not accelerator.is_local_main_process)
    while step < config.max_train_steps:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        with accelerator.accumulate(*prepared):
            pixels = batch["pixel_values"]
            noise = torch.randn_like(pixels)
            count = noise_scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, count, (len(pixels),), device=pixels.device).long()
            noisy = noise_scheduler.add_noise(pixels, noise, timesteps)
            text = batch["text"] if cached_text else text_encoder(batch["text"])[0]
            target = noise if stock_unet else noise_scheduler.get_velocity(pixels, noise, timesteps)
            output = unet(noisy, timesteps, text).sample
            loss = F.mse_loss(output.float(), target.float(), reduction="mean")
            average = accelerator.gather(loss.repeat(config.train_batch_size)).mean()
            train_loss += average.item() / accumulation
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        pictures += len(pixels) * accelerator.num_processes
        if accelerator.sync_gradients:
            if ema is not None:
                ema.step(parameters)
            bar.update(1)
            step += 1
            if step % config.logging_steps == 0 and accelerator.is_main_process:
                seconds = time.perf_counter() - window_started
                line = {
                    "step": step,
                    "seconds": time.perf_counter() - started,
                    "loss": train_loss,
                    "images_per_second": pictures / seconds,
                    "data_wait": waited / seconds,
                    "peak_memory": peak_memory(accelerator.device),
                }
                with (output_dir / "metrics.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(line) + "\n")
                pictures, waited, window_started = 0, 0.0, time.perf_counter()
            train_loss = 0.0
            if (step % config.checkpointing_steps == 0 or step == config.max_train_steps) and stock_unet:
                seconds, processor = time.perf_counter() - started, time.process_time() - began
                if ema is not None:
                    ema.store(parameters)
                    ema.copy_to(parameters)
                unet.save_pretrained(output_dir / f"unet-{step}")
                if ema is not None:
                    ema.restore(parameters)
                (output_dir / f"unet-{step}" / "seconds.json").write_text(
                    json.dumps([seconds, processor]), encoding="utf-8"
                )
                started += time.perf_counter() - started - seconds  # writing is not counted
                began += time.process_time() - began - processor
        bar.set_postfix(step_loss=loss.detach().item(), lr=lr_scheduler.get_last_lr()[0])
    bar.close()


@torch.no_grad()
def padded_states(text_encoder, tokenizer, captions: list[str], rows: int = 64) -> torch.Tensor:
    """The hidden states of captions, each padded to the tokenizer's full length, where the encoder reads no padding:
    `torch.Tensor` of shape `(captions, tokens, channels)`."""
    length, parts = tokenizer.model_max_length, []
    for start in range(0, len(captions), rows):
        some = captions[start : start + rows]
        tokens = tokenizer(some, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
        parts.append(text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0])
    return torch.cat(parts)


def endless(loader: torch.utils.data.DataLoader) -> Iterator[dict]:
    while True:
        yield from loader


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    own = ("--cached_text", "--stock_unet")
    config = parse_args([flag for flag in argv if flag not in own], description=__doc__)
    train(config, *(flag in argv for flag in own))
    return 0


if __name__ == "__main__":
    sys.exit(main())
