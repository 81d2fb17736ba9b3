# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Fits what is added to the end of fitted steps: out of the span that no linear form of n predictions leaves.

With few steps most of the error that is left lies outside the span of the start and the network's n answers, where no
coefficients reach. But it is no noise: how the predictions change from step to step says where a picture is going. So a
small convolutional network (`correction` in the scheduler's file) is shown the whole run, and learns what is missing at
its end from trajectories such as the steps are fitted to, and nothing else. It evaluates the U-Net no more often, and
costs a small part of one evaluation.
"""

import base64
import math

import torch

from mezzotint.schedulers.scheduling_mezzotint import correction

WIDTH, KERNEL = 32, 3  # channels within, and places along each axis that a convolution sees
UPDATES, WARMUP, RATE = 1200, 50, 3e-3
POSITIONS = 2**15  # of an update: places of its samples, at least 4 and at most 64 of them


def fit_correction(run: torch.Tensor, end: torch.Tensor, scale: float, seed: int = 0) -> dict[str, object]:
    """The `correction` of a table, by AdamW on the loss of the fit, scale^2 log(1 + (error / scale)^2).

    Args:
        run (`torch.Tensor` of shape `(N, (2 + predictions) * C, *spatial)`): x[n], x[n-1], D[n-1], ..., one after the
            other along the channels.
        end (`torch.Tensor` of shape `(N, C, *spatial)`): where the network's ODE ends.
        scale (`float`): of Cauchy's loss, in the data's units.
        seed (`int`): of the first weights and of the order of the samples.
    """
    with torch.inference_mode(False), torch.enable_grad():
        run, end = run.clone().float(), end.clone().float()
        channels, axes = end.shape[1], end.ndim - 2
        rest = end - run[:, :channels]
        over = (0, *range(2, run.ndim))
        spread, most = run.std(over).clamp(min=1e-6), float(rest.square().mean().sqrt())
        draw = torch.Generator().manual_seed(seed)
        weights = []
        for i, (fan_in, fan_out) in enumerate(((run.shape[1], WIDTH), (WIDTH, WIDTH), (WIDTH, channels))):
            bound = 0.0 if i == 2 else 1 / math.sqrt(fan_in * KERNEL**axes)  # it begins by adding nothing
            for shape in ((fan_out, fan_in, *[KERNEL] * axes), (fan_out,)):
                first = bound * (2 * torch.rand(shape, generator=draw) - 1)
                weights.append(first.to(run.device).requires_grad_())

        def scaled() -> list[torch.Tensor]:  # of inputs and outputs of unit variance
            k_0, b_0, k_1, b_1, k_2, b_2 = weights
            return [k_0 / spread.reshape(-1, *[1] * axes), b_0, k_1, b_1, most * k_2, most * b_2]

        optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=1e-4)
        course = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: min(1, (k + 1) / WARMUP) * (1 + math.cos(math.pi * k / UPDATES)) / 2
        )
        size = min(64, max(4, POSITIONS // math.prod(end.shape[2:])))
        for _ in range(UPDATES):
            rows = torch.randint(len(run), (size,), generator=draw).to(run.device)
            error = (correction(scaled(), run[rows]) - rest[rows]).flatten(1).square().mean(1)
            loss = torch.log1p(error / scale**2).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            course.step()
        found = [weight.detach().cpu().numpy().astype("<f2") for weight in scaled()]
    text = base64.b64encode(b"".join(weight.tobytes() for weight in found)).decode("ascii")
    return {"shapes": [list(weight.shape) for weight in found], "weights": text}
