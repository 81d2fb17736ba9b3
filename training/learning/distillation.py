# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The student's target: where its teacher's guided flow takes a noisy sample.

The variance-preserving process on data of unit variance is TrigFlow's (<https://huggingface.co/papers/2410.11081>,
section 3): with the angle theta = arctan(sigma_t / alpha_t),

    x_t = cos(theta) x_0 + sin(theta) z,    v = dx_t / dtheta,    f(x_t, t) = cos(theta) x_t - sin(theta) v(x_t, t).

What the teacher's velocity implies for x_0 is a mean over all that x_t may come from; the student's f is to be the end
of the flow through x_t, a consistency function (<https://huggingface.co/papers/2303.01469>, section 3). It is the
identity without noise by itself, and so the teacher's weights are where the student begins.
"""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator

from mezzotint import MezzotintScheduler
from mezzotint_training.config.distillation import DistillConfig

# Of the pseudo-Huber metric, relative to unit variance; <https://huggingface.co/papers/2310.14189>, section 3.3
HUBER = 0.03


def times_of(steps: list[int]) -> set[Fraction]:
    """The times of all these numbers of steps, as shares of the way from noise to data."""
    return {Fraction(i, n) for n in steps for i in range(n)}


def student_timesteps(config: DistillConfig, scheduler: MezzotintScheduler) -> list[float]:
    """The times at which a student learns to predict, most noise first: those of any of its `steps` without a shift.
    Where it is drawn from at more noise, what it learns at less serves it better than what it would learn there.

    Args:
        scheduler: the student's.
    """
    times: dict[Fraction, float] = {}
    unshifted: Any = MezzotintScheduler.from_config(scheduler.config, consistency_shift=1.0)
    for n in config.steps:
        unshifted.set_timesteps(n)
        times |= {Fraction(i, n): t for i, t in enumerate(unshifted.timesteps.tolist())}  # where two numbers meet, one
    return sorted(times.values(), reverse=True)


def teacher_timesteps(config: DistillConfig, scheduler: MezzotintScheduler) -> list[float]:
    """The times of the teacher's steps, most noise first: the student's, and others, up to `teacher_steps` in all, each
    in the middle of what is then the widest gap in log sigma, that to the schedule's least noise among them.

    Args:
        scheduler: the student's.
    """
    times = student_timesteps(config, scheduler)
    levels = scheduler.timesteps_to_sigmas(torch.tensor([*times, 0.0])).log().tolist()
    while len(times) < config.teacher_steps:
        gaps = [round(a - b, 5) for a, b in pairwise(levels)]
        i = gaps.index(max(gaps))  # the first of equal ones
        levels.insert(i + 1, (levels[i] + levels[i + 1]) / 2)
        times.insert(i + 1, scheduler.sigmas_to_timesteps(torch.tensor([levels[i + 1]]).exp()).item())
    return times


def evaluations(config: DistillConfig) -> int:
    """Passes of a network over one picture that a picture of an update costs, the backward pass counted as two: two of
    the guided teacher for each of its steps, three of the student for each of its times."""
    times, passes = len(times_of(config.steps)), 2 if config.teacher_guidance_scale != 1 else 1
    return passes * max(config.teacher_steps, times) + 3 * times


class Teacher:
    """A network with guidance in it, and the flow that it defines.

    Args:
        unet: in evaluation mode, without gradients.
        scheduler (`MezzotintScheduler`): owns the noise levels.
        guidance_scale: of classifier-free guidance; 1 is off.
    """

    def __init__(self, unet: torch.nn.Module, scheduler: MezzotintScheduler, guidance_scale: float):
        self.unet, self.guidance_scale = unet, guidance_scale
        how = {"solver_order": 2, "variance_type": None, "fitted_schedules": None, "consistency_steps": None}
        self.scheduler = MezzotintScheduler.from_config(scheduler.config, **how)

    @torch.no_grad()
    def predict(self, sample: torch.Tensor, timestep: torch.Tensor, said: dict[str, torch.Tensor]) -> torch.Tensor:
        """The guided prediction, `uncond + w (cond - uncond)`, of samples (B, C, *spatial).

        Args:
            timestep: one, or one for each sample.
            said: the network's other arguments, with 2B rows: of nothing, then of what is asked for.
        """
        timestep = timestep.expand(len(sample))
        if self.guidance_scale == 1:
            said = {name: value[len(sample) :] for name, value in said.items()}
            return self.unet(sample, timestep, **said, return_dict=False)[0].float()
        both = self.unet(torch.cat([sample] * 2), timestep.repeat(2), **said, return_dict=False)[0].float()
        uncond, cond = both.chunk(2)
        return uncond + self.guidance_scale * (cond - uncond)

    @torch.no_grad()
    def trajectory(self, sample: torch.Tensor, timesteps: torch.Tensor, said: dict[str, torch.Tensor]) -> torch.Tensor:
        """The states at each of `timesteps`, the first of which is that of `sample`, and the end, (K + 1, B, C, ...),
        by DPM-Solver++(2M)."""
        self.scheduler.set_timesteps(timesteps=timesteps.tolist(), device=sample.device)
        states = [sample]
        for t in self.scheduler.timesteps:
            states.append(self.scheduler.step(self.predict(states[-1], t, said), t, states[-1], return_dict=False)[0])
        return torch.stack(states)


def pseudo_huber(difference: torch.Tensor) -> torch.Tensor:
    """sqrt(mean square + c^2) - c of each sample's difference (B, ...): (B,). <https://huggingface.co/papers/2310.14189>,
    eq. 7, whose sum over D numbers is a mean here."""
    return (difference.flatten(1).square().mean(dim=1) + HUBER**2).sqrt() - HUBER


class Distillation:
    """The student's loss.

    Args:
        config: the run's settings.
        teacher: the U-Net that the student begins as, in evaluation mode, without gradients.
        scheduler (`MezzotintScheduler`): the student's, whose steps say at which times it predicts.
        encode: captions to `(encoder_hidden_states, encoder_attention_mask)`.
        accelerator: of the run.
    """

    def __init__(
        self,
        config: DistillConfig,
        teacher: torch.nn.Module,
        scheduler: MezzotintScheduler,
        encode: Callable[[list[str]], tuple[torch.Tensor | None, torch.Tensor | None]],
        accelerator: Accelerator,
    ):
        self.teacher = Teacher(teacher, scheduler, config.teacher_guidance_scale)
        self.scheduler, self.encode, self.accelerator = scheduler, encode, accelerator
        times = teacher_timesteps(config, scheduler)
        self.timesteps = torch.tensor(times, device=accelerator.device)
        self.indices = [times.index(t) for t in student_timesteps(config, scheduler)]

    def said(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The network's arguments beside the sample and its timestep, for the B pictures of a batch, in 2B rows: of
        nothing, as guidance has it, then of what the batch says."""
        captions, said = batch["captions"], {}
        text, mask = self.encode([""] * len(captions) + captions)
        if text is not None:
            said = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
        if "attributes" in batch:
            attributes = batch["attributes"].to(self.accelerator.device)
            said["attributes"] = torch.cat([torch.zeros_like(attributes), attributes])
        return said

    def loss(self, unet: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """The distance between the ends of the teacher's flow and what the student predicts from where the flow passes
        at the student's times, (B,) in float32, a mean over these times.

        Args:
            unet: the student.
            batch: as of `objective.training_loss`.
        """
        sample, noise = (batch[name].to(self.accelerator.device) for name in ("sample", "noise"))
        with self.accelerator.autocast():
            said = self.said(batch)
            first = self.timesteps[:1].expand(len(sample))
            states = self.teacher.trajectory(self.scheduler.add_noise(sample, noise, first), self.timesteps, said)
            x_t = states[self.indices].flatten(0, 1)  # (times x B, C, ...)
            timesteps = self.timesteps[self.indices].repeat_interleave(len(sample))
            said = {
                name: value[len(sample) :].repeat(len(self.indices), *[1] * (value.ndim - 1))
                for name, value in said.items()
            }
            output = unet(x_t, timesteps, **said, return_dict=False)[0].float()
        x_0 = self.scheduler.predict_original_sample(output, timesteps, x_t)
        ends = states[-1].repeat(len(self.indices), *[1] * (sample.ndim - 1))
        return pseudo_huber(x_0 - ends).reshape(len(self.indices), -1).mean(dim=0)
