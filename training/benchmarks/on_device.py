# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What `one_gpu.py` asks of a device that no program does by itself.

    python training/benchmarks/on_device.py draw runs/digits --how model_offload
    python training/benchmarks/on_device.py again runs/digits --work /tmp/twin --kill -- --recipe digits
    python training/benchmarks/on_device.py sampling --size small --resolution 64 --batches 1 64

Figures are printed as soon as they are there, a line of JSON each, and appended to the file of --output.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from safetensors.torch import load_file

from mezzotint import MezzotintUNetModel
from mezzotint_training.benchmarks.sampling_overhead import Timed, now, samplers
from mezzotint_training.config.errors import CannotGoOn, exit_code
from mezzotint_training.config.flags import Help
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.sizes import SIZES, Facts, applied, derive
from mezzotint_training.engine import checkpoint
from mezzotint_training.networks.saved import load_pipeline

# How a pipeline may be set up
HOW: dict[str, Callable[[Any, str], Any]] = {
    "float16": lambda pipe, device: pipe.to(device, torch.float16),
    "bfloat16": lambda pipe, device: pipe.to(device, torch.bfloat16),
    "model_offload": lambda pipe, device: pipe.enable_model_cpu_offload(device=device),
    "sequential_offload": lambda pipe, device: pipe.enable_sequential_cpu_offload(device=device),
    "compiled": lambda pipe, device: setattr(pipe.to(device), "unet", torch.compile(pipe.unet)),
}
# Mean absolute difference of pixels in [0, 1] from the plain pipeline's: above it something else was drawn
TOLERANCE = 0.05
# How a network may be called: `torch.compile`'s modes, of which the last captures its kernels as a CUDA graph
MODES: dict[str, dict[str, Any] | None] = {
    "eager": None, "compiled": {"dynamic": False}, "captured": {"dynamic": False, "mode": "reduce-overhead"},
}  # fmt: skip
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to use")
    common.add_argument("--output", help="a file of JSON lines to append to")
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser(
        "draw", parents=[common], help="draw with a pipeline that is set up in another way, and compare"
    )
    one.add_argument("checkpoint", help="a trained pipeline: a folder or a Hub name")
    one.add_argument("--how", choices=list(HOW), required=True, help="how the pipeline is set up")
    one = verbs.add_parser(
        "again",
        parents=[common],
        help="train a finished run again, by train.py's flags after --, and compare every weight",
    )
    one.add_argument("like", help="the folder of the finished run")
    one.add_argument("--work", required=True, help="a new folder for the second run")
    one.add_argument("--kill", action="store_true", help="kill it by SIGKILL at its first checkpoint, and resume it")
    one = verbs.add_parser("sampling", parents=[common], help="measure pictures a second beside stock pipelines")
    one.add_argument("--size", default="small", choices=list(SIZES), help="size of the network")
    one.add_argument("--resolution", type=int, default=64, help="side of the pictures in pixels")
    one.add_argument("--batches", type=int, nargs="+", default=[1, 64], help="pictures in each call")
    one.add_argument("--steps", type=int, default=20, help="sampling steps")
    one.add_argument("--turns", type=int, default=5, help="turns of each call, after two of warming up")
    one.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="number format of weights and pictures")
    one.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES), help="ways to run the network")
    # argparse's versions differ in what they make of -- after a verb
    words = sys.argv[1:] if argv is None else argv
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:end])
    args.flags = words[end + 1 :]

    def say(**figures: Any) -> None:
        line = json.dumps(figures)
        print(line, flush=True)
        if args.output:
            with open(args.output, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    return exit_code(lambda: {"draw": draw, "again": again, "sampling": sampling}[args.verb](args, say))


def draw(args: argparse.Namespace, say: Callable) -> None:
    """Draw four pictures with the pipeline set up as `args.how` says, and compare them with the plain one's.

    Raises:
        CannotGoOn: where they are not finite, or others.
    """

    def pictures(pipe: Any) -> torch.Tensor:
        generator = [torch.Generator().manual_seed(seed) for seed in range(4)]
        return pipe("red heart", num_images_per_prompt=4, generator=generator, output_type="pt").images.float().cpu()

    plain = pictures(load_pipeline(args.checkpoint, device=args.device))  # (B, C, H, W)
    pipe = load_pipeline(args.checkpoint)
    HOW[args.how](pipe, args.device)
    difference = (pictures(pipe) - plain).abs().mean().item()
    say(difference=difference)
    if not difference <= TOLERANCE:  # NaN is no picture either
        raise CannotGoOn(f"pictures of {args.how} must be within {TOLERANCE} of the plain pipeline's: got {difference}")


def again(args: argparse.Namespace, say: Callable) -> None:
    """Train in `args.work` what was trained in `args.like`, and find how far apart their published weights are.

    Raises:
        CannotGoOn: where the other run fails, or has ended before it could be killed.
    """
    work = Path(args.work)
    command = [sys.executable, "-m", "mezzotint_training.train", *args.flags, "--output_dir", str(work)]
    if args.kill:
        process = subprocess.Popen(command)
        while process.poll() is None and not checkpoint.found(work):
            time.sleep(0.002)
        process.kill()
        if process.wait() >= 0:
            raise CannotGoOn(f"the run ended with code {process.returncode} before it could be killed")
    if (code := subprocess.run(command).returncode) != 0:
        raise CannotGoOn(f"the run{' that was killed' if args.kill else ''} ended with code {code}")
    farthest = 0.0
    for path in sorted(Path(args.like).glob("*/*.safetensors")):
        if path.parent.name.startswith("checkpoint-"):
            continue
        other = load_file(work / path.relative_to(args.like))
        for name, weight in load_file(path).items():
            farthest = max(farthest, (weight.double() - other[name].double()).abs().max().item())
    say(identical=farthest == 0, largest_difference=farthest)


class Untimed(Timed):
    """A network for any of the pipelines, called without waiting for the device."""

    def timed(self, function: Callable, *args, **kwargs):
        return function(*args, **kwargs)


def sampling(args: argparse.Namespace, say: Callable) -> None:
    """Time whole calls of our pipeline and of the stock ones with one and the same network, by turns."""
    logging.set_verbosity_error()  # a stock scheduler names the settings that it has no use for
    config = TrainConfig(size=args.size, train_data_dir="none", resolution=[args.resolution])
    config = applied(config, derive(config, Facts(None, (args.resolution, args.resolution), channels=3)))
    shape = {"in_channels": 3, "out_channels": 3, "cross_attention_dim": config.text_encoder["d_model"]}
    torch.manual_seed(0)
    unet = MezzotintUNetModel(**config.unet, **shape, sample_size=args.resolution)
    unet.eval().requires_grad_(False).to(args.device, DTYPES[args.dtype]).to(memory_format=torch.channels_last)
    device, tokens = unet.device, 24
    for mode in args.modes:
        for batch in args.batches:
            torch.compiler.reset()
            unet._compiled_call_impl = None
            if MODES[mode] is not None:
                unet.compile(**MODES[mode])
            text = (torch.randn(batch, tokens, shape["cross_attention_dim"]).to(device, unet.dtype) for _ in range(2))
            calls = samplers(Untimed(unet), args.steps, 2.0, *text)
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(2 + args.turns):
                for name, call in calls.items():
                    began = now(device)
                    call()
                    if turn >= 2:
                        seconds[name].append(now(device) - began)
                    else:
                        now(device)
            for name, values in seconds.items():
                middle = statistics.median(values)
                say(mode=mode, batch=batch, pipeline=name, seconds=middle, images_per_second=batch / middle)


if __name__ == "__main__":
    sys.exit(main())
