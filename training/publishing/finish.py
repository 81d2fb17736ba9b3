# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Shows what a run has learned: drawings while it goes, and in the end the pipeline with its card, samples and figures,
as they are published."""

import json
import os
import platform
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from huggingface_hub.errors import HTTPError
from PIL import Image, ImageOps

from mezzotint import samples
from mezzotint_training.config.errors import CannotGoOn, UserError, one_line
from mezzotint_training.config.recipe import versions
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.engine.files import aside, replacing, sync, write_text
from mezzotint_training.engine.machine import hardware
from mezzotint_training.engine.position import Position
from mezzotint_training.engine.progress import peak_memory
from mezzotint_training.engine.report import Meter, finite
from mezzotint_training.learning.learner import Learner
from mezzotint_training.networks.adapters import save_adapters
from mezzotint_training.publishing import card, load_back, plots, publication
from mezzotint_training.publishing.examples import Examples

METRICS = "metrics.json"
# Files that are of one kind by the first group of their name, of which an old one must not stand beside a new one:
# weights in another number of files, and code of another version
KIND = re.compile(r"(.+?)(?:_v[0-9a-f]{8}\.py|(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?)")


def draw_samples(
    pipe, config: TrainConfig, shown: Examples, output_dir: Path, step: int, accelerator: Accelerator
) -> str | None:
    """Draw the examples, a column each, every row from its own noise, between what is given and the truth where there
    are such; write the grid as PNG and to trackers, and of what is no picture the first row as files of its own.

    Returns:
        the PNG's path, relative to `output_dir`; `None` where the network draws nothing that is finite, which is said.
    """
    pipe.set_progress_bar_config(disable=True)
    rows, kind, about = config.num_validation_images, samples.of(pipe.modality), pipe.unet.config.get("modality") or {}
    images, first = [], []
    try:
        for row in range(rows):
            with torch.autocast(accelerator.device.type, enabled=False):
                (drawn, *_) = pipe(
                    shown.prompts,
                    **shown.inputs,
                    num_inference_steps=config.num_inference_steps,
                    guidance_scale=config.guidance_scale,
                    generator=[torch.Generator().manual_seed(config.seed + row) for _ in shown.prompts],
                    return_dict=False,
                )
                first = first or list(drawn)
                images += [kind.show(one, about, pipe.default_size) for one in drawn]
    except ValueError as error:
        accelerator.print(f"the validation prompts are not drawn at step {step}: {one_line(error)}")
        return None
    name = f"samples/step-{step:06d}.png"
    if not accelerator.is_main_process:  # of a sharded network, which all must call
        return name
    rows = rows + bool(shown.given) + bool(shown.truth)
    save_grid([*shown.given, *images, *shown.truth], rows, output_dir / name, step, accelerator)
    if kind.ENDINGS:
        for number, one in enumerate(first, 1):
            file = name.replace(".png", f"-{number}{kind.ENDINGS[0]}")
            new = aside(output_dir, f"sample{kind.ENDINGS[0]}")
            new.write_bytes(kind.encoded(one, kind.ENDINGS[0], about))
            sync(new)
            new.replace(output_dir / file)
    return name


def save_grid(images: list[Image.Image], rows: int, path: Path, step: int, accelerator: Accelerator) -> None:
    """Write pictures of one size as a grid of so many rows, as PNG and to trackers; small ones are shown larger."""
    scale = max(1, -(-64 // max(images[0].size)))  # pixel by pixel
    size = [scale * x for x in images[0].size]
    cells = [image.convert("RGB").resize(size, Image.Resampling.NEAREST) for image in images]
    cells = [ImageOps.expand(image, border=max(2, max(size) // 32), fill="white") for image in cells]
    grid = make_image_grid(cells, rows=rows, cols=len(cells) // rows)
    path.parent.mkdir(exist_ok=True)
    new = aside(path.parent.parent, "samples.png")
    grid.save(new, "PNG")
    sync(new)
    new.replace(path)
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": np.asarray(grid)[None]}, step=step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({"samples": [grid]}, step=step)


def figures(
    position: Position,
    meter: Meter,
    learner: Learner,
    components: dict[str, Any],
    *,
    pictures: int,
    bad_rows: int,
    held_out: dict[str, Any] | None,
    plan: dict[str, Any],
    energy: float | None = None,
) -> dict[str, Any]:
    """What a finished run measured, for `finish`.

    Args:
        position, meter, learner: of the run.
        components: by name. Of the networks among them the parameters are counted: of adapters those that were
            trained.
        pictures: that were trained on.
        bad_rows: that were left out.
        held_out: the figures of the last look at held-out pictures, if there were any.
        plan: what was said before step 1.
        energy: in kWh, where it was counted.
    """
    accelerator, whole = learner.accelerator, position.config.adapter is None
    return {
        "updates": meter.updates,
        "steps": position.step,
        "loss": position.loss,
        "seconds": position.seconds,
        "images_per_second": meter.images_per_second,
        "pictures": pictures,
        "bad_rows": bad_rows,
        "skipped_steps": position.skipped_steps,
        "parameters": {
            name: sum(p.numel() for p in network.parameters() if p.requires_grad or whole)
            for name, network in components.items()
            if isinstance(network, torch.nn.Module) and (name in learner.trained or whole)
        },
        "peak_memory": peak_memory(accelerator.device),
        "device": str(accelerator.device),
        "processor": platform.processor() or platform.machine(),
        "hardware": hardware(accelerator.device),
        "energy": energy,
        "versions": dict(versions()),
        "command": shlex.join(["mezzotint", position.config.program, *map(without_place, position.config.argv)]),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "held_out": held_out,
        "plan": plan,
    }


def without_place(word: str) -> str:
    """A word of a command line as it is published: in place of a path on this machine `./` and its last part."""
    flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    place = os.path.isabs(value) or value.startswith(("~", "./", "../")) or "/" in value and os.path.exists(value)
    return f"{flag}{equals}./{os.path.basename(os.path.abspath(value))}" if place else word


def check_saved(
    pipe: DiffusionPipeline,
    loaded: DiffusionPipeline,
    folder: Path,
    config: TrainConfig,
    shown: Examples,
    accelerator: Accelerator,
) -> dict[str, Any] | None:
    """See that what was saved draws the picture that was trained: loaded here, and with `load_back`, unless it is of
    adapters, in a process of its own too, where mezzotint is not installed.

    Args:
        pipe: as it was trained.
        loaded: the same, from `folder`; it may be on another device afterwards.
        folder: what was saved.

    Returns:
        the verdict, as plain data; `None` where the network draws nothing that is finite, which is said.

    Raises:
        CannotGoOn: for another picture, or a pipeline that does not load elsewhere.
    """
    prompts = shown.prompts if config.task in ("text_to_image", "cascade") else []
    drawing = load_back.drawing(loaded, prompts[0] if prompts else "", config.seed)
    for model in (pipe.unet, pipe.text_encoder):  # what autocasts while it trains goes back to full precision
        if model is not None:
            extract_model_from_parallel(model, keep_fp32_wrapper=False)
    pipe.to(pipe.unet.device)
    loaded.to(pipe.unet.device)
    try:
        trained = drawing.by(pipe)
    except ValueError as error:
        accelerator.print(f"the saved pipeline is not compared with the trained one: {one_line(error)}")
        return None
    began, where = time.monotonic(), "here"
    try:
        saved = drawing.by(loaded)
        verdict = load_back.compare(saved, trained, time.monotonic() - began)
        if verdict.same and config.load_back and config.adapter is None:
            saved = drawing.by(loaded.to("cpu")) if pipe.unet.device.type != "cpu" else saved
            try:
                verdict = load_back.as_a_stranger(load_back.Source(str(folder)), drawing, saved)
                where = "where mezzotint is not installed"
            except load_back.NotTried as error:  # which says nothing of the pipeline
                accelerator.print(f"{error}; `mezzotint doctor {shlex.quote(config.output_dir)}` tries it again")
        if not verdict.same:
            raise CannotGoOn(f"loaded back, it draws {verdict}")
    except (CannotGoOn, ValueError) as error:
        raise CannotGoOn(
            f"what was saved is not what was trained, and not put in place: {one_line(error)}; the checkpoint is whole"
        ) from None
    words = str(verdict).replace("picture", pipe.word)
    accelerator.print(f"loaded back {where}: {words} ({verdict.seconds:.1f} s)")
    return verdict._asdict() | {"where": where, "words": words}


def finish(
    pipe: DiffusionPipeline,
    config: TrainConfig,
    output_dir: Path,
    metrics: dict[str, Any],
    accelerator: Accelerator,
    shown: Examples,
) -> dict[str, Any]:
    """Write the finished pipeline, or its adapters, and its figures; load it back as a stranger would; draw the card's
    pictures; upload. Whenever it is interrupted, the folder holds the pipeline that was there, or the new one, or one
    that nothing loads until the same command has written it.

    Args:
        pipe: with the weights to publish.
        metrics: what `figures` returned; of a finished run that is run again (`updates` 0), what is there stays.
        shown: what to draw.

    Returns:
        the figures that are in `metrics.json`.

    Raises:
        CannotGoOn: for a saved pipeline that draws another picture than the trained one, which is not put in place; or
            for an upload that failed, where the finished pipeline is there.
    """
    metrics, again = _or_before(metrics, output_dir)
    new = aside(output_dir, "pipeline")
    if config.adapter is None:
        if again and (output_dir / "scheduler").is_dir():  # which may have been fitted to these weights since
            pipe.scheduler = type(pipe.scheduler).from_pretrained(output_dir / "scheduler")
        pipe.save_pretrained(new)
        loaded, index = type(pipe).from_pretrained(new), type(pipe).config_name
    else:
        index = save_adapters(new, pipe.unet, pipe.text_encoder).name
        loaded = type(pipe).from_pretrained(config.pretrained_model_name_or_path, revision=config.revision)
        loaded.load_lora_weights(new)
        loaded.unet.register_to_config(sample_size=pipe.unet.config.sample_size)  # that the adapters were trained at
    found = check_saved(pipe, loaded, new, config, shown, accelerator)
    metrics["load_back"] = metrics.get("load_back") or found
    loaded.to(accelerator.device)
    grid = None
    if shown.prompts:
        grid = draw_samples(loaded, config, shown, output_dir, metrics["steps"], accelerator)
    plots.plot(output_dir)
    with replacing(new, output_dir, index, KIND):
        if not again:  # what was measured is of other weights
            card.drop_evaluation(output_dir)
        _write_figures(output_dir, metrics)
        card.write(output_dir, asdict(config), metrics, grid)
    loss = "no finite loss" if metrics["loss"] is None else f"loss {metrics['loss']:.4f}"
    accelerator.print(f"finished: {output_dir} ({metrics['steps']} steps, {metrics['seconds']:.0f} s, {loss})")
    if config.push_to_hub:
        try:
            base = config.pretrained_model_name_or_path if config.adapter else None
            ready, found = publication.prepare(output_dir, base=base)
            if found:
                raise UserError("; ".join(found))
            trusted = config.load_back and not ready.foreign  # what a stranger's process would run
            publication.upload(
                ready,
                config.hub_model_id or output_dir.name,
                publication.proof(ready) if trusted else None,
                private=config.hub_private_repo,
                say=accelerator.print,
            )
        except (OSError, UserError, CannotGoOn, HTTPError) as error:
            raise CannotGoOn(
                f"the pipeline is finished in {output_dir}, but its upload failed ({one_line(error)}); "
                f"`mezzotint publish {shlex.quote(str(output_dir))} --hub_model_id ...` uploads it"
            ) from None
    return metrics


def finish_network(
    save: Callable[[Path], object],
    config: TrainConfig,
    output_dir: Path,
    metrics: dict[str, Any],
    accelerator: Accelerator,
    kind: str,
    grid: str | None = None,
) -> dict[str, Any]:
    """Write a finished network that is no pipeline as its library reads it, its figures and its card, as `finish` does
    a pipeline.

    Args:
        save: writes the weights to publish, and all that goes with them, into a folder.
        metrics: what `figures` returned, and what else was measured, among it `quality`.
        kind: of network, as `card.NETWORKS` has it.
        grid: path of what it makes of pictures, relative to `output_dir`.
    """
    metrics, _ = _or_before(metrics, output_dir)
    new = aside(output_dir, kind)
    save(new)
    with replacing(new, output_dir, "config.json", KIND):
        _write_figures(output_dir, metrics)
        card.write_network(output_dir, asdict(config), metrics, kind, grid)
    accelerator.print(
        f"finished: {output_dir} ({metrics['steps']} steps, {metrics['seconds']:.0f} s, "
        + ", ".join(f"{name} {value:.4g}" for name, value in (metrics["quality"] or {}).items())
        + ")"
    )
    return metrics


def _write_figures(output_dir: Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json`: of a row that was left out its number is published, not the path of its picture."""
    if found := (metrics.get("plan") or {}).get("data"):
        found["dropped"] = [" ".join(line.split()[:4]) for line in found.get("dropped", ())]
    write_text(output_dir / METRICS, json.dumps(finite(metrics), indent=1) + "\n")


def _or_before(metrics: dict[str, Any], output_dir: Path) -> tuple[dict[str, Any], bool]:
    """The figures of a run, or where it was finished before and only run again, those that are there; and which."""
    path = output_dir / METRICS
    if metrics.pop("updates") > 0 or not path.is_file():
        return metrics, False
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        again = before["steps"] == metrics["steps"]  # else they are of a shorter run that was finished before
    except (ValueError, KeyError, TypeError):
        again = False
    return (before if again else metrics), again
