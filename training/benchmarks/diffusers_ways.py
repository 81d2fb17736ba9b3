# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What a diffusers user would try on a published checkpoint, as a table: all work, or a line says why not. It is tried
by diffusers and the code that the checkpoint carries, where mezzotint cannot be imported.

    python training/benchmarks/diffusers_ways.py runs/digits
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers import AutoModel, DiffusionPipeline, ModularPipeline
from diffusers.utils import logging
from PIL import Image

SCHEDULERS = (
    "DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler", "LCMScheduler",
)  # fmt: skip
FEW = {"num_inference_steps": 2}


class Attempt(NamedTuple):
    """One thing to try: `run` takes the checkpoint's folder and a pipeline that nobody else has, and what it returns is
    shown. With `why` it must raise that error, and the text says why it does not work, or what does."""

    name: str
    run: Callable[[str, Any], Any]
    why: str | None = None
    error: type[Exception] = Exception


class Outcome(NamedTuple):
    """What came of an attempt, and whether it was what must come of it."""

    name: str
    said: str
    as_expected: bool


def drawn(pipe: Any, **call: Any) -> str:
    """What a call draws, in words. Raises `ValueError` for an empty picture."""
    images = pipe("a", **FEW | call).images
    if isinstance(images, list):
        images = np.stack([np.asarray(image) for image in images])
    if not (images.min() < images.max()):
        raise ValueError("an empty picture")
    return f"{len(images)} of {'x'.join(map(str, images.shape[1:]))}"


def after(change: Callable[[Any], Any]) -> Callable[[str, Any], str]:
    """Draws when something was done to the pipeline."""
    return lambda folder, pipe: (change(pipe), drawn(pipe))[1]


def swapped(name: str) -> Callable[[str, Any], str]:
    """Draws with another scheduler, made from the checkpoint's."""
    kind = getattr(diffusers, name)
    return after(lambda pipe: setattr(pipe, "scheduler", kind.from_config(pipe.scheduler.config)))


def several(folder: str, pipe: Any) -> str:
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    return f"{len(pipe(['a', 'b'], num_images_per_prompt=2, generator=generators, **FEW).images)} pictures"


def embedded(folder: str, pipe: Any) -> str:
    names = ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
    with torch.no_grad():
        call = dict(zip(names, pipe.encode_prompt("a"), strict=True))
    return f"{len(pipe(**call, **FEW).images)} picture"


def interrupted(folder: str, pipe: Any) -> str:
    seen = []

    def stop(pipe, step, timestep, tensors):
        seen.append(step)
        pipe._interrupt = True
        return tensors

    pipe("a", num_inference_steps=4, callback_on_step_end=stop)
    return f"after {len(seen)} of 4 steps"


def saved(variant: str | None = None) -> Callable[[str, Any], str]:
    """Saves, loads again and draws."""

    def run(folder: str, pipe: Any) -> str:
        with tempfile.TemporaryDirectory() as again:
            pipe.save_pretrained(again, variant=variant)
            return drawn(DiffusionPipeline.from_pretrained(again, variant=variant, trust_remote_code=True))

    return run


def modular(**pictures: Any) -> Callable[[str, Any], str]:
    """Draws with the modular pipeline, of a picture or a picture and a mask by their names."""

    def run(folder: str, pipe: Any) -> str:
        blocks = ModularPipeline.from_pretrained(folder, trust_remote_code=True)
        blocks.load_components(trust_remote_code=True)
        blocks.set_progress_bar_config(disable=True)
        side = pipe("a", **FEW).images[0].size
        given = {name: Image.new(mode, side, colour) for name, (mode, colour) in pictures.items()}
        return drawn(lambda prompt, **call: blocks(prompt=prompt, **given, **call))

    return run


def compiled(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


IMAGE, MASK = {"image": ("RGB", "red")}, {"mask_image": ("L", "white")}
SIBLING = (
    "diffusers lets no class from outside in; the modular pipeline, or `MezzotintImg2ImgPipeline.from_pipe`, does it"
)
ATTEMPTS = (
    Attempt("`DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)`", lambda folder, pipe: drawn(pipe)),
    Attempt(
        "the same without `trust_remote_code`",
        lambda folder, pipe: DiffusionPipeline.from_pretrained(folder),
        "diffusers asks for it, as the code is the checkpoint's; `MezzotintPipeline.from_pretrained` needs none",
        ValueError,
    ),
    Attempt("`ModularPipeline.from_pretrained`: text to image", modular()),
    Attempt("… with `image`", modular(**IMAGE)),
    Attempt("… with `image` and `mask_image`", modular(**IMAGE, **MASK)),
    Attempt(
        "`dtype=torch.bfloat16`",
        lambda folder, pipe: drawn(
            DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=True)
        ),
    ),
    Attempt(
        "a list of prompts and of generators, `num_images_per_prompt`",
        several,
    ),
    Attempt(
        "`negative_prompt`, `guidance_scale`, `guidance_rescale`",
        lambda folder, pipe: drawn(pipe, negative_prompt="b", guidance_scale=3.0, guidance_rescale=0.5),
    ),
    Attempt("`height`, `width`", lambda folder, pipe: drawn(pipe, height=20, width=28)),
    *(
        Attempt(f"`output_type=\"{kind}\"`", lambda folder, pipe, kind=kind: drawn(pipe, output_type=kind))
        for kind in ("np", "pt", "latent")
    ),
    Attempt("`encode_prompt`, then `prompt_embeds`", embedded),
    Attempt("`callback_on_step_end` that sets `pipe._interrupt`", interrupted),
    Attempt(
        "`guider=AdaptiveProjectedGuidance(…)`",
        lambda folder, pipe: drawn(pipe, guider=diffusers.AdaptiveProjectedGuidance(guidance_scale=3.0)),
    ),
    *(Attempt(f"`pipe.scheduler = {name}.from_config(…)`", swapped(name)) for name in SCHEDULERS),
    Attempt(
        "`pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(…)`",
        swapped("FlowMatchEulerDiscreteScheduler"),
        "flow matching is another process than the diffusion that the network learned",
        ValueError,
    ),
    Attempt(
        "`from_pretrained(repo, scheduler=mine)`",
        lambda folder, pipe: DiffusionPipeline.from_pretrained(
            folder, scheduler=pipe.scheduler, trust_remote_code=True
        ),
        "diffusers 0.42.1 refuses components beside code of their own; assign it after loading",
    ),
    Attempt("`torch.compile(pipe.unet)`", after(compiled)),
    Attempt(
        "`unet.enable_layerwise_casting(torch.float8_e4m3fn)`",
        after(lambda pipe: pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)),
    ),
    Attempt("`unet.enable_gradient_checkpointing()`", after(lambda pipe: pipe.unet.enable_gradient_checkpointing())),
    Attempt(
        "`unet.attn_processors`, `set_attn_processor`",
        after(lambda pipe: pipe.unet.set_attn_processor(pipe.unet.attn_processors)),
    ),
    Attempt("`unet.set_attention_backend(\"native\")`", after(lambda pipe: pipe.unet.set_attention_backend("native"))),
    Attempt("`unet.fuse_qkv_projections()`", after(lambda pipe: pipe.unet.fuse_qkv_projections())),
    Attempt("`enable_attention_slicing()`", after(lambda pipe: pipe.enable_attention_slicing())),
    Attempt(
        "`enable_vae_slicing()`",
        after(lambda pipe: pipe.enable_vae_slicing()),
        "for pipelines with an autoencoder; this one draws pixels",
        ValueError,
    ),
    Attempt(
        "`enable_freeu(…)`", after(lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)),
        "FreeU is made for the blocks of Stable Diffusion's U-Net",
    ),
    Attempt(
        "LoRA of Stable Diffusion: `load_lora_weights(…)`",
        lambda folder, pipe: pipe.load_lora_weights({"unet.a.processor.to_q_lora.down.weight": torch.zeros(1, 1)}),
        "another network's; adapters of this one, from `--adapter lora`, load",
    ),
    Attempt("`save_pretrained`, loaded again", saved()),
    Attempt("`save_pretrained(variant=\"fp16\")`, loaded again", saved("fp16")),
    Attempt(
        "`AutoModel.from_pretrained(repo + \"/unet\", trust_remote_code=True)`",
        lambda folder, pipe: type(AutoModel.from_pretrained(f"{folder}/unet", trust_remote_code=True)).__name__,
    ),
    Attempt(
        "`AutoModel.from_pretrained(repo, subfolder=\"unet\", trust_remote_code=True)`",
        lambda folder, pipe: AutoModel.from_pretrained(folder, subfolder="unet", trust_remote_code=True),
        "diffusers 0.42.1 looks for the code in the pipeline's index, not in the network's; the line above does it",
    ),
    Attempt(
        "`AutoPipelineForText2Image.from_pretrained(repo)`",
        lambda folder, pipe: diffusers.AutoPipelineForText2Image.from_pretrained(folder, trust_remote_code=True),
        "diffusers lets no class from outside in; `DiffusionPipeline.from_pretrained` does it",
    ),
    Attempt(
        "`AutoPipelineForImage2Image.from_pipe(pipe)`",
        lambda folder, pipe: diffusers.AutoPipelineForImage2Image.from_pipe(pipe),
        SIBLING,
    ),
)  # fmt: skip


def outcomes(folder: str) -> list[Outcome]:
    """What comes of each attempt on the checkpoint in `folder`."""
    loaded, found = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True), []
    for name, run, why, error in ATTEMPTS:
        pipe = type(loaded)(**{part: deepcopy(component) for part, component in loaded.components.items()})
        pipe.set_progress_bar_config(disable=True)
        try:
            said = f"works: {run(folder, pipe)}"
        except Exception as refusal:
            line = f"{type(refusal).__name__}: {' '.join(str(refusal).split())[:200]}"
            found.append(Outcome(name, f"no: {why or line}", why is not None and isinstance(refusal, error)))
        else:
            found.append(Outcome(name, said, why is None))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("diffusers_ways", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a text-to-image pipeline, as published")
    args = parser.parse_args(argv)
    sys.modules["mezzotint"] = None  # pyright: ignore[reportArgumentType] (it cannot be imported then)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    rows = outcomes(str(args.checkpoint))
    print("| tried | outcome |\n|---|---|")
    for name, said, as_expected in rows:
        print(f"| {name} | {said}{'' if as_expected else ' **(unexpected)**'} |")
    return 0 if all(row.as_expected for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
