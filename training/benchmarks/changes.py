# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Changes to the training recipe: settings that differ, and what was tried and is no setting."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from mezzotint_training import train as program
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.learning import learner, objective
from mezzotint_training.learning.objective import denoising_loss

# By name: the settings that differ, and whether a step may cost more or less for it
CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "none": ({}, False),
    "any timestep alike": ({"weighting_scheme": "none"}, False),
    "logit_mean 0": ({"logit_mean": 0.0}, False),
    "logit_mean -0.5": ({"logit_mean": -0.5}, False),
    "logit_mean 1": ({"logit_mean": 1.0}, False),
    "logit_std 1.8": ({"logit_std": 1.8}, False),
    "laplace": ({"weighting_scheme": "laplace"}, False),
    "learned uncertainty": ({}, False),
    "min-SNR 5, any timestep": ({"weighting_scheme": "none"}, False),
    "epsilon": ({"scheduler": {"prediction_type": "epsilon"}}, False),
    "cosine betas": ({"scheduler": {"beta_schedule": "squaredcos_cap_v2"}}, False),
    "muon": ({"optimizer": "muon"}, True),
    "rate x 0.4": ({"learning_rate": 8e-4}, False),
    "rate x 2.5": ({"learning_rate": 5e-3}, False),
    "batch 64": ({"train_batch_size": 64}, True),
    "batch 16": ({"train_batch_size": 16}, True),
    "constant rate": ({"lr_scheduler": "constant_with_warmup"}, False),
    "linear rate": ({"lr_scheduler": "linear"}, False),
    "beta2 0.999": ({"adam_beta2": 0.999}, False),
    "longer average": ({"ema_decay": 0.998}, False),
    "no average": ({"use_ema": False}, False),
    "dropout 0.1": ({"unet": {"dropout": 0.1}}, True),
    "no empty captions": ({"proportion_empty_prompts": 0.0}, False),
    "augment 0.15": ({"augment_probability": 0.15}, True),
    "not channels last": ({"channels_last": False}, True),
    "attention": ({"unet": {"transformer_layers_per_block": 1}}, True),
    "magnitude preserving": ({}, True),
}


@contextlib.contextmanager
def learned_uncertainty() -> Iterator[None]:
    """Every noise level weighted by one over its own loss, which is what EDM2's learned uncertainty comes to (arXiv
    2312.02696, eq. 21): here the loss is a moving average over 64 bins of the timestep."""
    average = torch.ones(64)

    def loss(unet, scheduler, samples, noise, timesteps, *rest, **options):
        each = denoising_loss(unet, scheduler, samples, noise, timesteps, *rest, **options)
        bins = (timesteps / len(scheduler) * 64).long()
        if torch.is_grad_enabled():
            for i, x in zip(bins.tolist(), each.detach().tolist(), strict=True):
                average[i].lerp_(torch.tensor(x), 0.02)
        return each / average[bins].clamp(min=1e-4) * average.mean()

    with mock.patch.object(objective, "denoising_loss", loss):
        yield


@contextlib.contextmanager
def min_snr() -> Iterator[None]:
    """Min-SNR-5 weights (arXiv 2303.09556) on velocities: min(SNR, 5) / (SNR + 1)."""

    def loss(unet, scheduler, samples, noise, timesteps, *rest, **options):
        snr = scheduler.timesteps_to_sigmas(timesteps) ** -2
        weights = snr.clamp(max=5) / (snr + 1)
        return weights * denoising_loss(unet, scheduler, samples, noise, timesteps, *rest, **options)

    with mock.patch.object(objective, "denoising_loss", loss):
        yield


@contextlib.contextmanager
def magnitude_preserving() -> Iterator[None]:
    """Config E of EDM2 (arXiv 2312.02696, eqs. 47 and 66): every matrix and kernel of the U-Net between hidden layers
    is used at unit norm for each output, and brought back to it after every step, so that the learning rate is a rate
    of turning. Where a layer starts from zero it has a gain that does."""

    class UnitNorm(torch.nn.Module):
        def __init__(self, weight: torch.Tensor):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(0.0 if not weight.any() else 1.0))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            flat = weight.flatten(1)
            return (F.normalize(flat, dim=1) * self.gain).reshape(weight.shape)

    def new_components(*args: Any) -> dict[str, Any]:
        components = made(*args)
        for name, module in components["unet"].named_modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and name not in ("conv_in", "conv_out"):
                start = UnitNorm(module.weight)
                if not module.weight.any():
                    torch.nn.init.normal_(module.weight)
                with torch.no_grad():
                    module.weight.copy_(F.normalize(module.weight.flatten(1), dim=1).reshape(module.weight.shape))
                torch.nn.utils.parametrize.register_parametrization(module, "weight", start, unsafe=True)
        return components

    def finished(pipe: Any, *args: Any) -> Any:
        for module in pipe.unet.modules():
            if torch.nn.utils.parametrize.is_parametrized(module):
                torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
        return finish(pipe, *args)

    def make_optimizer(config: TrainConfig, named: dict[str, torch.nn.Parameter], device: torch.device) -> Any:
        optimizer = make(config, named, device)
        weights = [p for name, p in named.items() if name.endswith("original")]

        def forced(*_: Any) -> None:
            with torch.no_grad():
                for p in weights:
                    p.copy_(F.normalize(p.flatten(1), dim=1).reshape(p.shape))

        optimizer.register_step_post_hook(forced)
        return optimizer

    made, finish, make = program.new_components, program.finish, learner.make_optimizer
    with (
        mock.patch.object(program, "new_components", new_components),
        mock.patch.object(program, "finish", finished),
        mock.patch.object(learner, "make_optimizer", make_optimizer),
    ):
        yield


CONTEXTS = {
    "learned uncertainty": learned_uncertainty,
    "min-SNR 5, any timestep": min_snr,
    "magnitude preserving": magnitude_preserving,
}
