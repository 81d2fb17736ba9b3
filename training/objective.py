# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The training objective: which noise level, which target, which weight. The loss and nothing else."""

import torch
import torch.nn.functional as F


def denoising_loss(
    unet: torch.nn.Module,
    scheduler,
    samples: torch.Tensor,
    noise: torch.Tensor,
    uniform: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    encoder_attention_mask: torch.Tensor | None = None,
    augment_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """The simple loss of DDPM (eq. 14) on the scheduler's target, for each sample.

    Args:
        unet: the network.
        scheduler (`MezzotintScheduler`): owns the noise levels and the target.
        samples (`torch.Tensor` of shape `(batch_size, channels, *spatial)`): x_0, normalised to unit variance.
        noise (`torch.Tensor` of the same shape): standard normal.
        uniform (`torch.Tensor` of shape `(batch_size,)`): in [0, 1), where each noise level is drawn from.
        encoder_hidden_states (`torch.Tensor`, *optional*): the text, with its `encoder_attention_mask`.
        augment_labels (`torch.Tensor`, *optional*): how each sample was augmented.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`: the mean squared error of each sample, in float32.
    """
    # Any timestep is as likely as any other, fractional ones too
    timesteps = uniform * (scheduler.config.num_train_timesteps - 1)  # (B,)
    noisy = scheduler.add_noise(samples, noise, timesteps)  # the forward process, in closed form
    target = scheduler.get_target(samples, noise, timesteps)
    output = unet(
        noisy,
        timesteps,
        encoder_hidden_states=encoder_hidden_states,
        encoder_attention_mask=encoder_attention_mask,
        **({} if augment_labels is None else {"augment_labels": augment_labels}),
        return_dict=False,
    )[0]
    return F.mse_loss(output.float(), target.float(), reduction="none").flatten(1).mean(dim=1)
