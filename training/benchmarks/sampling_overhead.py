# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What a call of the pipeline costs beside its network, ours and diffusers' by turns.

    python training/benchmarks/sampling_overhead.py
    python training/benchmarks/sampling_overhead.py --checkpoint runs/digits --batches 1 8 64 --repeats 41

Ours is `MezzotintPipeline` with `MezzotintScheduler`'s multistep steps; the peers are `StableDiffusionPipeline` of
diffusers with `DPMSolverMultistepScheduler` and `UniPCMultistepScheduler`, without an autoencoder. All get the same
network, prompt embeddings and noise, and return the sample itself.

A call's overhead is its wall time less that of the network's work, over the steps. Twice: with the network,
and with one in its place that hands back a tensor made before (`nothing`), whose time is only that of calling it; the
second shows the overhead itself, without what a network does to caches and clocks. Figures are medians in microseconds
a step; ratios are ours over the better peer's in pairs of successive calls, with an interval of order statistics.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.utils import logging

from mezzotint import MezzotintPipeline, MezzotintScheduler, MezzotintUNetModel
from mezzotint_training.benchmarks.stock_pipeline import AsStock, stock_pipeline
from mezzotint_training.benchmarks.train_speed import median_interval
from mezzotint_training.config.flags import Help

PEERS = {"DPM-Solver++(2M)": DPMSolverMultistepScheduler, "UniPC": UniPCMultistepScheduler}


clock = time.perf_counter


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


class Timed(AsStock):
    """A network that adds up the time spent in it, in `seconds`."""

    def __init__(self, network: torch.nn.Module):
        super().__init__(network)
        self.seconds = 0.0

    def project_text(self, *args):
        return self.timed(self.network.project_text, *args)

    def __call__(self, *args, **kwargs):
        return self.timed(super().__call__, *args, **kwargs)

    def timed(self, function: Callable, *args, **kwargs):
        started = now(self.device)
        output = function(*args, **kwargs)
        self.seconds += now(self.device) - started
        return output


class Nothing(torch.nn.Module):
    """In place of a network: no work."""

    def __init__(self, like: MezzotintUNetModel):
        super().__init__()
        self.config, self.device, self.dtype, self.outputs = like.config, like.device, like.dtype, {}

    def project_text(self, encoder_hidden_states, encoder_attention_mask=None):
        return encoder_hidden_states

    def forward(self, sample, timestep, encoder_hidden_states=None, encoder_attention_mask=None, return_dict=True):
        if sample.shape not in self.outputs:
            self.outputs[sample.shape] = torch.zeros_like(sample)
        return (self.outputs[sample.shape],)


def samplers(
    network: Timed, steps: int, guidance_scale: float, prompt_embeds: torch.Tensor, negative_prompt_embeds: torch.Tensor
) -> dict[str, Callable[[], Any]]:
    """The calls to compare, by name; each returns the sample."""
    pipe = MezzotintPipeline(network, MezzotintScheduler(solver_order=2), None, None)
    pipe.set_progress_bar_config(disable=True)
    pipes: dict[str, Any] = {"ours": pipe}
    for name, scheduler in PEERS.items():
        pipes[name] = stock_pipeline(network, scheduler.from_config(pipe.scheduler.config))
    call = {"prompt_embeds": prompt_embeds, "num_inference_steps": steps, "guidance_scale": guidance_scale}
    call |= {"negative_prompt_embeds": negative_prompt_embeds if guidance_scale > 1 else None, "output_type": "latent"}
    device, size = network.device, network.config.sample_size

    def sampler(name: str) -> Callable[[], Any]:
        # a peer's pixels are eight times as many as its U-Net's
        pixels = {} if name == "ours" else {"height": 8 * size, "width": 8 * size}
        return lambda: pipes[name](**call, **pixels, generator=torch.Generator(device).manual_seed(0)).images

    return {name: sampler(name) for name in pipes}


def overheads(calls: dict[str, Callable], network: Timed, steps: int, repeats: int) -> dict[str, list[float]]:
    """Microseconds a step beside the network, of each call by turns, and under `network` what that took in ours; the
    first turn, of warming up, is passed over."""
    found: dict[str, list[float]] = {name: [] for name in ("network", *calls)}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            network.seconds, started = 0.0, now(network.device)
            call()
            ended = now(network.device)
            if turn > 0 and name == "ours":
                found["network"].append(1e6 * network.seconds / steps)
            if turn > 0:
                found[name].append(1e6 * (ended - started - network.seconds) / steps)
    return found


def row(found: dict[str, list[float]], *cells: str) -> str:
    """A line of the table."""
    middle = {name: statistics.median(values) for name, values in found.items()}
    best = min(PEERS, key=lambda name: middle[name])
    median, low, high, coverage = median_interval([a / b for a, b in zip(found["ours"], found[best], strict=True)])
    ratio = f"{median:.2f} ({low:.2f} to {high:.2f}, {100 * coverage:.0f} %)"
    return "| " + " | ".join([*cells, *(f"{x:,.0f}" for x in middle.values()), ratio]) + " |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument(
        "--checkpoint", help="pipeline whose network is used; by default a small one with random weights"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64], help="pictures in each call")
    parser.add_argument("--num_inference_steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="weight of the guidance; 1 turns it off")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of calls")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="take the time of one processor thread, not the clock's: where other programs run too",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to use")
    args = parser.parse_args(argv)

    if args.cpu_time:
        global clock
        clock = time.thread_time
    torch.set_num_threads(1 if args.cpu_time else args.threads)
    logging.set_verbosity_error()  # a stock scheduler names the settings that it has no use for
    torch.manual_seed(0)
    if args.checkpoint:
        unet = MezzotintPipeline.from_pretrained(args.checkpoint).unet
    else:
        shape = {"block_out_channels": (32, 64), "layers_per_block": 1, "transformer_layers_per_block": (0, 1)}
        unet = MezzotintUNetModel(sample_size=8, in_channels=1, out_channels=1, cross_attention_dim=64, **shape).eval()
    unet.to(args.device)
    tokens, dim = 24, unet.config.cross_attention_dim
    name = torch.cuda.get_device_name() if unet.device.type == "cuda" else platform.processor() or platform.machine()
    kind = "processor" if args.cpu_time else "wall"
    print(
        f"{name}, {args.threads} threads, {platform.platform()}, torch {torch.__version__}; {unet.num_parameters():,} "
        f"parameters, {unet.config.in_channels} channels of {unet.config.sample_size} px, {args.num_inference_steps} "
        f"steps, {args.repeats} turns; {kind} time beside the network, microseconds a step\n"
    )
    print(f"| network | batch | guidance | network's own | ours | {' | '.join(PEERS)} | ours / the better |")
    print("|---" * (5 + len(PEERS) + 1) + "|")
    for kind, network in {"nothing": Timed(Nothing(unet)), "the U-Net": Timed(unet)}.items():
        for batch in args.batches:
            for scale in (1.0, args.guidance_scale):
                steps = args.num_inference_steps
                text = (torch.randn(batch, tokens, dim, device=unet.device) for _ in range(2))
                found = overheads(samplers(network, steps, scale, *text), network, steps, args.repeats)
                cells = kind, str(batch), f"{scale:g}" if scale > 1 else "off"
                print(row(found, *cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
