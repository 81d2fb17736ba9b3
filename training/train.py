# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Train a text-to-image pipeline.

    accelerate launch training/train.py --recipe digits
    accelerate launch training/train.py --recipe emoji-32 --train_data_dir path/to/emoji-32
    accelerate launch training/train.py --pretrained_model_name_or_path runs/digits --train_data_dir pictures/

One plain loop, from a batch of pictures to a published pipeline. Settings are in `config.py`, data in `data.py`, models
in `components.py` and `text.py`, the loss in `objective.py`, the state on disk in `checkpoint.py`.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import datasets
import diffusers
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from huggingface_hub.errors import HTTPError
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from mezzotint import MezzotintPipeline, MezzotintScheduler, hub
from mezzotint_training import checkpoint
from mezzotint_training.components import first_picture, new_components, picture_size, pretrained_components
from mezzotint_training.config import TrainConfig, UserError, parse_args, read_yaml
from mezzotint_training.data import CaptionedImages, KeyedBatches, collate, load_rows
from mezzotint_training.objective import denoising_loss
from mezzotint_training.text import TextEncoding

# Settings that may differ between a run and its continuation: they say when to stop and what to show, not what to learn
FREE = {
    "output_dir", "max_train_steps", "max_train_minutes", "checkpointing_steps", "checkpoints_total_limit",
    "resume_from_checkpoint", "validation_prompts", "num_validation_images", "validation_steps", "num_inference_steps",
    "guidance_scale", "logging_steps", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "license",
    "dataset_license", "dataloader_num_workers", "gradient_checkpointing",
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    try:
        train(parse_args(argv, description=__doc__))
    except UserError as error:
        # One raised in a data worker comes with that worker's traceback above it
        line = str(error).splitlines()[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
        print(f"mezzotint: {line}", file=sys.stderr)
        return 2
    return 0


def train(config: TrainConfig) -> Path:
    """Run `config` to its end and return the folder of the finished pipeline.

    Raises:
        UserError: for bad input, before anything on disk is touched.
    """
    started = time.time()
    output_dir = Path(config.output_dir)
    resumed = previous_run(config, output_dir)
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=trackers(config),
            project_dir=output_dir,
            step_scheduler_with_optimizer=False,
        )
    except ValueError as error:  # a precision that the device lacks
        raise UserError(" ".join(str(error).split())) from None
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # accelerate passes over it there
        raise UserError("mixed_precision fp16 needs a GPU: got a CPU; possible are bf16 and no")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if launched and accelerator.device.type == "cpu":
        # accelerate's launcher gives a process one thread unless it is told otherwise, and leaves the other cores idle
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    say = accelerator.print
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()

    # 1. The data
    with accelerator.main_process_first():
        rows = load_rows(config)
    first = first_picture(rows, config)
    components = pretrained_components(config) if config.pretrained_model_name_or_path else None
    channels = components["unet"].config.in_channels if components else config.unet.get("in_channels")
    data = CaptionedImages(
        rows,
        config,
        channels=channels or (1 if first.mode in ("1", "L", "I", "I;16") else 3),
        size=picture_size(config, components, first),
    )
    data.read_all(progress=accelerator.is_local_main_process)

    # 2. The models
    torch.manual_seed(config.seed)
    components = components or new_components(config, data)
    unet, text_encoder, tokenizer = (components[name] for name in ("unet", "text_encoder", "tokenizer"))
    unet.register_to_config(sample_size=data.size[0] if data.size[0] == data.size[1] else data.size)
    # The noise levels are ours to handle whatever sampler a saved pipeline came with (and keeps)
    scheduler = MezzotintScheduler.from_config(components["scheduler"].config)
    data.mean = torch.tensor(unet.config.sample_mean).reshape(-1, 1, 1)
    data.std = torch.tensor(unet.config.sample_std).reshape(-1, 1, 1)
    train_text = config.train_text_encoder
    if train_text is None:
        train_text = not (config.pretrained_model_name_or_path or config.text_encoder_name_or_path)
    trained = {"unet": unet} | ({"text_encoder": text_encoder} if train_text and text_encoder is not None else {})
    for model in (unet, text_encoder):
        if model is not None:
            model.to(accelerator.device).requires_grad_(model in trained.values()).train(model in trained.values())
            if config.gradient_checkpointing and model in trained.values():
                model.enable_gradient_checkpointing() if model is unet else model.gradient_checkpointing_enable()

    # 3. Optimizer, learning rate, moving average
    named = {f"{name}.{key}": p for name, model in trained.items() for key, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        named.values(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        fused=accelerator.device.type in ("cpu", "cuda"),
    )
    lr_scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=min(config.lr_warmup_steps, config.max_train_steps),
        num_training_steps=config.max_train_steps,
    )
    ema = EMAModel(named.values(), decay=config.ema_decay, foreach=True) if config.use_ema else None

    # 4. Go on where an earlier run of the same command stopped
    step, seconds_before, loss_average = 0, 0.0, float("nan")
    if resumed is not None:
        tensors, state = resumed
        checkpoint.restore(tensors, state, named, optimizer, lr_scheduler, ema, accelerator.scaler)
        step, seconds_before, loss_average = state["step"], state["seconds"], state["loss"]
        say(f"going on from step {step}")
    prepared = accelerator.prepare(*trained.values(), optimizer)
    models, optimizer = dict(zip(trained, prepared, strict=False)), prepared[-1]
    encode = TextEncoding(models.get("text_encoder", text_encoder), tokenizer, accelerator, trained=train_text)

    world, accumulation = accelerator.num_processes, config.gradient_accumulation_steps
    say(
        f"{len(data):,} pictures of {data.size[0]}x{data.size[1]}"
        + (f" ({len(data.bad)} bad ones skipped)" if data.bad else "")
        + f", {sum(p.numel() for p in named.values()):,} trained parameters, updates of "
        f"{config.train_batch_size * accumulation * world} pictures, {accelerator.device}, "
        f"precision {accelerator.mixed_precision}"
    )
    if accelerator.is_main_process:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            (output_dir / "recipe.yaml").write_text(recipe_yaml(config), encoding="utf-8")
        except OSError as error:
            raise UserError(f"output_dir must be a folder to write to: {error}") from None
        log = output_dir / "metrics.jsonl"
        if log.is_file():  # what an interrupted run logged after its last checkpoint comes again
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
            log.write_text("".join(kept), encoding="utf-8")
        for message in data.bad:
            tqdm.write(f"skipped: {message}")
    if accelerator.log_with:
        accelerator.init_trackers("logs", config={k: str(v) for k, v in asdict(config).items()})

    # 5. The loop
    batches = torch.utils.data.DataLoader(
        data,
        batch_sampler=KeyedBatches(
            len(data), config.train_batch_size, accumulation, accelerator.process_index, world, config.seed, step
        ),
        num_workers=config.dataloader_num_workers,
        collate_fn=collate,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=config.dataloader_num_workers > 0,
    )
    batches = iter(batches)
    loop_started, first_step, window_started = time.time(), step, time.time()
    window = [torch.tensor(loss, device=accelerator.device) for loss in (resumed[1]["window"] if resumed else [])]
    bar = tqdm(
        total=config.max_train_steps, initial=step, unit="step", disable=not accelerator.is_local_main_process,
        mininterval=0.5, dynamic_ncols=True,
    )  # fmt: skip
    while step < config.max_train_steps:
        for micro in range(accumulation):
            # Dropout inside the networks is the only randomness not in the batch
            key = [config.seed, step, micro, accelerator.process_index]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
            batch = next(batches)
            with accelerator.accumulate(*models.values()):
                text, mask = encode(batch["captions"])
                loss = denoising_loss(
                    models["unet"],
                    scheduler,
                    *(batch[name].to(accelerator.device, non_blocking=True) for name in ("sample", "noise", "uniform")),
                    text,
                    mask,
                ).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    gradient_norm = accelerator.clip_grad_norm_(named.values(), config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            window.append(loss.detach())
        lr_scheduler.step()
        if ema is not None:
            ema.step(named.values())
        step += 1
        bar.update()

        last = step == config.max_train_steps
        if config.max_train_minutes is not None:  # all processes stop at the same step
            minutes = (seconds_before + time.time() - started) / 60
            late = torch.tensor(float(minutes >= config.max_train_minutes), device=accelerator.device)
            last = last or bool(accelerator.reduce(late, "sum") > 0)
        if step % config.logging_steps == 0 or last:
            loss_average = accelerator.reduce(torch.stack(window).mean(), "mean").item()
            rate = len(window) * config.train_batch_size * world / (time.time() - window_started)
            line = {
                "step": step,
                "loss": loss_average,
                "gradient_norm": float(gradient_norm),
                "learning_rate": lr_scheduler.get_last_lr()[0],
                "images_per_second": rate,
            }
            window, window_started = [], time.time()
            bar.set_postfix(loss=f"{loss_average:.4f}", images_per_s=f"{rate:.0f}", refresh=False)
            accelerator.log({k: v for k, v in line.items() if k != "step"}, step=step)
            if accelerator.is_main_process:
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        if config.validation_prompts and step % config.validation_steps == 0 and not last:
            if accelerator.is_main_process:
                with publishable(ema, named, trained):
                    draw_samples(MezzotintPipeline(**components), config, output_dir, step, accelerator)
            window_started = time.time()
        if step % config.checkpointing_steps == 0 or last:
            if accelerator.is_main_process:
                tensors, state = checkpoint.capture(named, optimizer, lr_scheduler, ema, accelerator.scaler)
                state |= {"config": asdict(config), "loss": loss_average, "window": [loss.item() for loss in window]}
                state["seconds"] = seconds_before + time.time() - started
                checkpoint.save(output_dir, step, tensors, state)
                checkpoint.prune(output_dir, config.checkpoints_total_limit)
            accelerator.wait_for_everyone()
            window_started = time.time()
        if last:
            break
    bar.close()

    # 6. The finished pipeline, loaded back as a stranger would load it, draws the card's pictures
    if accelerator.is_main_process:
        if ema is not None:
            ema.copy_to(named.values())
        MezzotintPipeline(**components).save_pretrained(output_dir)
        loop_seconds, updates = time.time() - loop_started, step - first_step
        metrics = {
            "steps": step,
            "loss": loss_average,
            "seconds": seconds_before + time.time() - started,
            "images_per_second": updates * config.train_batch_size * accumulation * world / max(loop_seconds, 1e-9),
            "pictures": len(data),
            "bad_pictures": len(data.bad),
            "parameters": {
                name: sum(p.numel() for p in model.parameters())
                for name, model in (("unet", unet), ("text_encoder", text_encoder))
                if model is not None
            },
            "device": str(accelerator.device),
            "processor": platform.processor() or platform.machine(),
            "processes": world,
            "threads": torch.get_num_threads(),
            "mixed_precision": accelerator.mixed_precision,
        }
        finished = output_dir / "metrics.json"
        if updates == 0 and finished.is_file():  # a finished run, run again
            metrics = json.loads(finished.read_text(encoding="utf-8"))
        finished.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        loaded = MezzotintPipeline.from_pretrained(output_dir).to(accelerator.device)
        grid = draw_samples(loaded, config, output_dir, step, accelerator) if config.validation_prompts else None
        hub.write_card(output_dir, asdict(config), metrics, grid)
        say(f"finished: {output_dir} ({step} steps, {metrics['seconds']:.0f} s, loss {loss_average:.4f})")
        if config.push_to_hub:
            try:
                name = config.hub_model_id or output_dir.name
                say(f"published: {hub.push(output_dir, name, private=config.hub_private_repo)}")
            except (OSError, ValueError, HTTPError) as error:
                message = " ".join(str(error).split())
                raise UserError(
                    f"the pipeline is finished in {output_dir}, but its upload failed ({message}); "
                    f"`mezzotint publish {output_dir} --hub_model_id ...` uploads it"
                ) from None
    accelerator.end_training()
    return output_dir


# ------------------------------------------------------------------------------------------------ before the first step


def previous_run(config: TrainConfig, output_dir: Path):
    """The state to go on from: of `resume_from_checkpoint`, or of a run with the same settings in `output_dir`.

    Raises:
        UserError: for a folder that is no checkpoint or one of another run, or an `output_dir` that holds another run
            or other files.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"output_dir must be a folder: {output_dir} is a file")
    recipe, source = output_dir / "recipe.yaml", config.resume_from_checkpoint
    if recipe.is_file():
        same_run(config, read_yaml(recipe), output_dir, "choose another output_dir, or remove that one")
    elif source != "latest" and output_dir.exists() and any(output_dir.iterdir()):
        raise UserError(f"output_dir must be empty, new, or hold this run: {output_dir} holds other files")
    found = checkpoint.latest(output_dir) if source in (None, "latest") else checkpoint.load(Path(source))
    if found is not None:
        same_run(config, found[1]["config"], source or output_dir, "a run goes on with the settings that it began with")
    elif source is not None:
        raise UserError(f"resume_from_checkpoint is 'latest', but {output_dir} has no whole checkpoint")
    return found


def same_run(config: TrainConfig, before: dict, place: Path | str, advice: str) -> None:
    for name, now in asdict(config).items():
        if name not in FREE and before.get(name) != now:
            raise UserError(f"{place} holds another run ({name} was {before.get(name)!r}, now {now!r}): {advice}")


def trackers(config: TrainConfig) -> str | None:
    available = sorted(str(name) for name in get_available_trackers())
    if config.report_to == "auto":
        return "tensorboard" if "tensorboard" in available else None
    if config.report_to not in (*available, "all", "none"):
        raise UserError(
            f"report_to must be 'auto', 'none', 'all' or a tracker that is installed ({', '.join(available)}): "
            f"got {config.report_to!r}"
        )
    return None if config.report_to == "none" else config.report_to


def recipe_yaml(config: TrainConfig) -> str:
    """Every setting in force, with the versions of what ran them."""
    names = ("mezzotint", "torch", "diffusers", "transformers", "accelerate", "datasets")
    versions = {name: importlib.metadata.version(name) for name in names}
    header = f"# python {platform.python_version()}, " + ", ".join(f"{k} {v}" for k, v in versions.items())
    return f"{header}\n{config.to_yaml()}"


# ------------------------------------------------------------------------------------------------------- in the loop


@contextlib.contextmanager
def publishable(ema: EMAModel | None, named: dict[str, torch.nn.Parameter], models: dict[str, torch.nn.Module]):
    """Within it the models hold the moving average of their weights and are in evaluation mode."""
    if ema is not None:
        ema.store(named.values())
        ema.copy_to(named.values())
    for model in models.values():
        model.eval()
    yield
    for model in models.values():
        model.train()
    if ema is not None:
        ema.restore(named.values())


def draw_samples(pipe, config: TrainConfig, output_dir: Path, step: int, accelerator: Accelerator) -> str:
    """Draw the validation prompts, a column each, every row from its own noise; write the grid as PNG and to trackers.

    Returns:
        the PNG's path, relative to `output_dir`.
    """
    pipe.set_progress_bar_config(disable=True)
    prompts, rows = config.validation_prompts, config.num_validation_images
    images = []
    for row in range(rows):
        with torch.autocast(accelerator.device.type, enabled=False):
            images += pipe(
                prompts,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                generator=[torch.Generator().manual_seed(config.seed + row) for _ in prompts],
            ).images
    scale = max(1, -(-64 // max(images[0].size)))  # small pictures are shown larger, pixel by pixel
    size = [scale * x for x in images[0].size]
    shown = [image.convert("RGB").resize(size, Image.Resampling.NEAREST) for image in images]
    shown = [ImageOps.expand(image, border=max(2, max(size) // 32), fill="white") for image in shown]
    grid = make_image_grid(shown, rows=rows, cols=len(prompts))
    name = f"samples/step-{step:06d}.png"
    (output_dir / "samples").mkdir(parents=True, exist_ok=True)
    grid.save(output_dir / name)
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": np.asarray(grid)[None]}, step=step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({"samples": [grid]}, step=step)
    return name


if __name__ == "__main__":
    sys.exit(main())
