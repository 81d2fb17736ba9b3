# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The training objective: which noise level, which target, which weight. The loss and nothing else."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from mezzotint_training.config.settings import TrainConfig


def draw_timesteps(config: TrainConfig, scheduler, uniform: torch.Tensor) -> torch.Tensor:
    """The timesteps to train at, by `config.weighting_scheme`: the share of the network's attention that each noise
    level gets.

    - `none`: any timestep is as likely as any other, fractional ones too (DDPM, algorithm 1).
    - `logit_normal`: log sigma ~ N(logit_mean, logit_std^2), with sigma = sigma_t / alpha_t, as EDM has it
      (<https://huggingface.co/papers/2206.00364>, table 1, whose P_mean is for data of standard deviation 0.5, and
      therefore smaller by log 2). It is Stable Diffusion 3's distribution of that name, whose t is sigma / (1 + sigma).
    - `laplace`: log sigma ~ Laplace with that mean and standard deviation
      (<https://huggingface.co/papers/2407.03297>, table 1).

    Levels beyond the schedule's ends are trained at its ends.

    Args:
        config: the run's settings.
        scheduler (`MezzotintScheduler`): owns the noise levels.
        uniform (`torch.Tensor` of shape `(batch_size,)`): in [0, 1); a larger one is a higher noise level.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, in `[0, num_train_timesteps - 1]`.
    """
    if config.weighting_scheme == "none":
        return uniform * (scheduler.config.num_train_timesteps - 1)
    p = uniform.double().clamp(1e-9, 1 - 1e-9)
    if config.weighting_scheme == "logit_normal":
        quantile = torch.special.ndtri(p)
    else:  # the Laplace distribution of unit variance: its scale is 1 / sqrt(2)
        quantile = (0.5 - p).sign() * (1 - 2 * (p - 0.5).abs()).log() / 2**0.5
    return scheduler.sigmas_to_timesteps((config.logit_mean + config.logit_std * quantile).exp())


def denoising_loss(
    unet: torch.nn.Module,
    scheduler,
    samples: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    encoder_attention_mask: torch.Tensor | None = None,
    augment_labels: torch.Tensor | None = None,
    condition: torch.Tensor | None = None,
    attributes: torch.Tensor | None = None,
    embeds: torch.Tensor | None = None,
) -> torch.Tensor:
    """The simple loss of DDPM (eq. 14) on the scheduler's target, for each sample. On velocities, of data of unit
    variance, it has EDM's weighting: lambda(sigma) |D - x_0|^2 with lambda = (sigma^2 + 1) / sigma^2 is |v - v_0|^2.

    Args:
        unet: the network.
        scheduler (`MezzotintScheduler`): owns the noise levels and the target.
        samples (`torch.Tensor` of shape `(batch_size, channels, *spatial)`): x_0, normalised to unit variance.
        noise (`torch.Tensor` of the same shape): standard normal.
        timesteps (`torch.Tensor` of shape `(batch_size,)`): in `[0, num_train_timesteps - 1]`, fractional or not.
        encoder_hidden_states (`torch.Tensor`, *optional*): the text, with its `encoder_attention_mask`.
        augment_labels (`torch.Tensor`, *optional*): how each sample was augmented.
        condition (`torch.Tensor` of shape `(batch_size, channels, *spatial)`, *optional*): what is known of each.
        attributes (`torch.Tensor` of shape `(batch_size, features)`, *optional*): what is said of each beside the text.
        embeds (`torch.Tensor` of shape `(batch_size, width)`, *optional*): an embedding of each, in place of a text.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`: the mean squared error of each sample, in float32.
    """
    noisy = scheduler.add_noise(samples, noise, timesteps)  # the forward process, in closed form
    target = scheduler.get_target(samples, noise, timesteps)
    if embeds is not None:
        encoder_hidden_states = embeds[:, None]  # (B, 1, D)
    said = {"augment_labels": augment_labels, "attributes": attributes}
    output = unet(
        noisy if condition is None else torch.cat([noisy, condition], dim=1),
        timesteps,
        encoder_hidden_states=encoder_hidden_states,
        encoder_attention_mask=encoder_attention_mask,
        **{name: value for name, value in said.items() if value is not None},
        return_dict=False,
    )[0]
    return F.mse_loss(output.float(), target.float(), reduction="none").flatten(1).mean(dim=1)


def training_loss(
    config: TrainConfig,
    unet: torch.nn.Module,
    scheduler,
    batch: dict[str, Any],
    encode: Callable[[list[str]], tuple[torch.Tensor | None, torch.Tensor | None]],
    accelerator: Accelerator,
) -> torch.Tensor:
    """The loss of each sample of a batch, in the precision that the run computes in.

    Args:
        config: the run's settings, which say how noise levels are drawn.
        unet, scheduler: as of `denoising_loss`.
        batch: `sample` and `noise` of shape `(batch_size, channels, *spatial)`, `uniform` in [0, 1) of shape
            `(batch_size,)`, `captions`, `augment_labels` where samples are augmented, and the `condition` of a task.
        encode: captions to `(encoder_hidden_states, encoder_attention_mask)`.
        accelerator: of the run.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, in float32.
    """
    device = accelerator.device
    tensors = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, torch.Tensor)}
    with accelerator.autocast():
        text, mask = encode(batch["captions"])
        return denoising_loss(
            unet,
            scheduler,
            tensors["sample"],
            tensors["noise"],
            draw_timesteps(config, scheduler, batch["uniform"]).to(device, torch.float32),
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            augment_labels=tensors.get("augment_labels"),
            condition=tensors.get("condition"),
            attributes=tensors.get("attributes"),
            embeds=tensors.get("embeds"),
        )
