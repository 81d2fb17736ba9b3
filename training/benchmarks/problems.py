# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What `few_steps.py` solves: a network, closed-form or trained, its noise schedule and the noises to start from; and
the solution to compare with."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mezzotint import MezzotintPipeline, MezzotintScheduler
from mezzotint_training.benchmarks.closed_form import ClosedFormNetwork, Empirical, GaussianMixture, pictures_of
from mezzotint_training.config.recipe import read_recipe
from mezzotint_training.few_steps.network import PipelineNetwork
from mezzotint_training.few_steps.stock_solvers import Network


@dataclass
class Problem:
    """
    Args:
        network: of the batch of all noises, guidance included.
        scheduler: ours, with what it carries.
        noise (`torch.Tensor` of shape `(N, C, H, W)`): where every solver starts.
        real (`torch.Tensor` of shape `(M, C, H, W)`, *optional*): real pictures, normalised.
        guidance_scale: at which `network` answers.
    """

    name: str
    network: Network
    scheduler: SchedulerMixin
    noise: torch.Tensor
    real: torch.Tensor | None
    guidance_scale: float


def closed_form(name: str, args: argparse.Namespace) -> Problem:
    """The problem of `gmm`, `empirical` or `empirical:FOLDER`."""
    kind, _, folder = name.partition(":")
    pictures, labels = pictures_of(folder or "digits")
    if labels is None and args.guidance_scale != 1:
        raise SystemExit(f"{name} has no labels to guide by: --guidance_scale must be 1, got {args.guidance_scale:g}")
    noise = start_noise(args.noises, pictures.shape[1:], args.seed)
    exact = GaussianMixture.of(pictures, labels) if kind == "gmm" else Empirical(pictures, labels, args.bandwidth)
    kinds = torch.arange(args.noises) % 10
    scheduler = MezzotintScheduler()
    network = ClosedFormNetwork(exact, scheduler, args.guidance_scale, kinds)
    return Problem(name, network, scheduler, noise, pictures, args.guidance_scale)


def trained(name: str, args: argparse.Namespace) -> Problem:
    """The problem of a pipeline in a folder or on the Hub. Real pictures are those of its recipe, where at hand."""
    pipe = MezzotintPipeline.from_pretrained(name).to(args.device)
    recipe = read_recipe(name)
    prompts = recipe.get("validation_prompts") or [""]
    if args.prompts is not None:
        prompts = Path(args.prompts).read_text(encoding="utf-8").splitlines()
    config = pipe.unet.config
    size = config.sample_size
    shape = (config.in_channels, *(size if isinstance(size, (list, tuple)) else (size, size)))
    real = None
    source = args.real or ("digits" if recipe.get("dataset_name") == "digits" else recipe.get("train_data_dir"))
    if source is not None and (source == "digits" or Path(source).is_dir()):
        pictures = pictures_of(source)[0]
        real = pictures if pictures.shape[1:] == shape else None
    if real is None:
        print(f"{name}: no real pictures of {shape} at hand (--real FOLDER): no distance to them", file=sys.stderr)
    network = PipelineNetwork(pipe, prompts, args.guidance_scale)
    noise = start_noise(args.noises, shape, args.seed).to(args.device)
    return Problem(name, network, pipe.scheduler, noise, real, args.guidance_scale)


def start_noise(count: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def reference(
    network: Network, scheduler: SchedulerMixin, noise: torch.Tensor, steps: int, tick: Callable[[], Any] = lambda: None
) -> torch.Tensor:
    """The probability-flow ODE by a third-order exponential multistep method on a uniform grid of log-SNR, over all of
    the schedule's levels; the last state is replaced by its denoised one, as every solver that ends on 0 does.

    With h the step in lambda = log(alpha / sigma), and in data prediction (DPM-Solver++ eq. 8,
    <https://huggingface.co/papers/2211.01095>):

        x(lambda + h) = sigma' / sigma x + sigma' / sigma alpha int_0^h e^tau x_0(lambda + tau) dtau

    where x_0 is taken for the parabola through its last three values.
    """
    if steps < 4:
        raise ValueError(f"a reference needs 4 or more steps: got {steps}")
    ends = scheduler.timesteps_to_sigmas(torch.tensor([len(scheduler) - 1.0, 0.0])).double()
    ends = ends.clamp(max=1e4)  # where there is no signal left
    ratios = torch.logspace(*ends.log10().tolist(), steps, dtype=torch.float64)
    h = float((ratios[0] / ratios[1]).log())
    moments = [np.expm1(h)]  # int_0^h e^tau tau^k dtau
    for k in (1, 2):
        moments.append(h**k * np.exp(h) - k * moments[-1])
    weights = [np.linalg.solve(np.vander(-h * np.arange(n), increasing=True).T, moments[:n]) for n in (1, 2, 3)]
    x, history = noise.double(), []
    for i, timestep in enumerate(scheduler.sigmas_to_timesteps(ratios)):
        sample = x.to(noise.dtype)
        x_0 = scheduler.predict_original_sample(network(sample, timestep.to(noise.device)), timestep, sample).double()
        tick()
        if i + 1 == steps:
            break
        history = [x_0, *history[:2]]
        (alpha, sigma), (_, sigma_next) = (
            (1 / np.hypot(1, r), r / np.hypot(1, r)) for r in (float(ratios[i]), float(ratios[i + 1]))
        )
        total = sum(float(w) * past for w, past in zip(weights[len(history) - 1], history, strict=True))
        x = sigma_next / sigma * (x + alpha * total)
    return x_0.to(noise.dtype)
