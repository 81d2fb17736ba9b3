"""The student's loss against a closed form: of Gaussian data the teacher, its guided flow, the consistency function and
so the loss and its gradient are known."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from mezzotint import MezzotintScheduler
from mezzotint_training.benchmarks.distillation import LatentConsistencyDistillation
from mezzotint_training.config.distillation import DistillConfig
from mezzotint_training.learning.distillation import (
    HUBER,
    Distillation,
    Teacher,
    evaluations,
    pseudo_huber,
    student_timesteps,
    teacher_timesteps,
)

SPREAD = 0.5  # standard deviation of the data
MEANS = {"": -0.5, "a": 0.7}  # of data without a caption, and with one
SCALE = 2.0
GUIDED = MEANS[""] + SCALE * (MEANS["a"] - MEANS[""])
PROCESS = SimpleNamespace(device=torch.device("cpu"), autocast=contextlib.nullcontext)


class Flow(torch.nn.Module):
    """A network that predicts the velocity of N(mean, SPREAD^2), mean being its text: `posterior` D(x_t) = E[x_0 | x_t]
    as a teacher learns it, or the end of the flow through x_t, as a student does."""

    def __init__(self, scheduler: MezzotintScheduler, student: bool, shift: float = 0.0):
        super().__init__()
        self.scheduler, self.student = scheduler, student
        self.shift = torch.nn.Parameter(torch.tensor(shift))

    def forward(self, sample, timestep, encoder_hidden_states, encoder_attention_mask, return_dict):
        assert encoder_attention_mask.shape == encoder_hidden_states.shape[:2]
        alpha, sigma = self.scheduler._alpha_sigma(timestep, sample)
        mean = encoder_hidden_states[:, 0, 0].reshape(-1, 1, 1, 1) + self.shift
        variance = alpha**2 * SPREAD**2 + sigma**2  # of x_t
        if self.student:  # quantiles stay quantiles
            x_0 = mean + SPREAD * (sample - alpha * mean) / variance.sqrt()
        else:
            x_0 = mean + alpha * SPREAD**2 / variance * (sample - alpha * mean)
        return ((alpha * sample - x_0) / sigma,)


def encode(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    means = torch.tensor([MEANS[caption] for caption in captions]).reshape(-1, 1, 1)
    return means, torch.ones(len(captions), 1, dtype=torch.bool)


def config(**settings) -> DistillConfig:
    return DistillConfig(**{"dataset_name": "digits", "teacher_guidance_scale": SCALE} | settings)


def batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    sample, noise = (torch.randn(3, 1, 4, 4, generator=generator) for _ in range(2))
    return {"sample": SPREAD * sample + MEANS["a"], "noise": noise, "captions": ["a"] * 3}


@pytest.mark.parametrize("scale, mean", [(1.0, MEANS["a"]), (SCALE, GUIDED)])
def test_the_teachers_trajectory_is_the_guided_flow(scale, mean):
    """Guidance of Gaussians of one variance is the flow of a Gaussian whose mean is guided."""
    scheduler = MezzotintScheduler()
    teacher = Teacher(Flow(scheduler, student=False), scheduler, scale)
    timesteps = scheduler.sigmas_to_timesteps(torch.arange(1.56, 0, -0.02).tan())
    text, mask = encode(["", "", "a", "a"])
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    states = teacher.trajectory(x, timesteps, {"encoder_hidden_states": text, "encoder_attention_mask": mask})
    assert len(states) == len(timesteps) + 1 and torch.equal(states[0], x)
    alpha, sigma = scheduler._alpha_sigma(timesteps[0], x)
    quantile = (x - alpha * mean) / (alpha**2 * SPREAD**2 + sigma**2).sqrt()
    for i in (20, 40, 60):
        alpha, sigma = scheduler._alpha_sigma(timesteps[i], x)
        expected = alpha * mean + (alpha**2 * SPREAD**2 + sigma**2).sqrt() * quantile
        torch.testing.assert_close(states[i], expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(states[-1], mean + SPREAD * quantile, rtol=0, atol=5e-3)


def test_the_consistency_function_of_the_guided_flow_minimises_the_loss():
    """There the loss is the teacher's own error, and it rises by what a shift makes of the prediction."""
    settings = config(steps=[1, 2], teacher_steps=80)
    scheduler = MezzotintScheduler(consistency_steps=settings.steps)
    target = Distillation(settings, Flow(scheduler, student=False), scheduler, encode, PROCESS)
    losses, gradients = {}, {}
    for shift in (GUIDED - MEANS["a"], GUIDED - MEANS["a"] + 0.1):
        student = Flow(scheduler, student=True, shift=shift)
        loss = target.loss(student, batch())
        loss.mean().backward()
        losses[shift], gradients[shift] = loss.detach(), student.shift.grad.item()
    (best, gradient), (worse, steeper) = zip(losses.values(), gradients.values(), strict=True)
    assert best.shape == (3,) and best.max() < 1e-4 and abs(gradient) < 0.1 < steeper
    # x_0 moves by 0.1 (1 - alpha SPREAD / std of x_t), at each of the two times
    scheduler.set_timesteps(2)
    alpha, sigma = (x.flatten() for x in scheduler._alpha_sigma(scheduler.timesteps, torch.zeros(2, 1)))
    moved = 0.1 * (1 - alpha * SPREAD / (alpha**2 * SPREAD**2 + sigma**2).sqrt())
    expected = ((moved**2 + HUBER**2).sqrt() - HUBER).mean()
    torch.testing.assert_close(worse, expected.expand(3), rtol=0.05, atol=0)


def test_the_teachers_times_hold_the_students_and_fill_the_widest_gaps():
    settings, scheduler = config(steps=[4, 1, 2], teacher_steps=7), MezzotintScheduler(consistency_steps=[2])
    assert settings.steps == [1, 2, 4]
    student, teacher = student_timesteps(settings, scheduler), teacher_timesteps(settings, scheduler)
    scheduler.set_timesteps(4)
    assert student == scheduler.timesteps.tolist() and [t for t in teacher if t in student] == student
    first, second, third, fourth = scheduler.timesteps_to_sigmas(torch.tensor(student)).log().tolist()
    last = scheduler.timesteps_to_sigmas(torch.tensor(0.0)).log().item()
    # 4.2 between the first two, 3.7 below the last: both are halved, and the first half of the former again
    new = [first - (first - second) / 4, (first + second) / 2, (fourth + last) / 2]
    found = scheduler.timesteps_to_sigmas(torch.tensor([t for t in teacher if t not in student])).log()
    torch.testing.assert_close(found, torch.tensor(new), rtol=0, atol=1e-4)
    assert teacher == sorted(teacher, reverse=True)
    assert teacher_timesteps(config(steps=[4], teacher_steps=1), scheduler) == student
    # and they are not moved by where it draws
    shifted = MezzotintScheduler(consistency_steps=[2], consistency_shift=4.0)
    assert student_timesteps(settings, shifted) == student and teacher_timesteps(settings, shifted) == teacher


def test_what_a_picture_costs_is_counted():
    """Two passes of the guided teacher for each of its steps, three of the student for each of its times."""
    settings, scheduler, calls = config(steps=[4, 6], teacher_steps=9), MezzotintScheduler(consistency_steps=[4]), []
    assert evaluations(settings) == 2 * 9 + 3 * 8
    flow = Flow(scheduler, student=False)
    flow.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    student = Flow(scheduler, student=True)
    student.register_forward_pre_hook(lambda _, inputs: calls.append(3 * len(inputs[0])))
    Distillation(settings, flow, scheduler, encode, PROCESS).loss(student, batch())
    assert sum(calls) == 3 * evaluations(settings)


def test_the_peer_is_latent_consistency_distillation():
    """Its target is what the student says after a guided step of diffusers' DDIM, from one of 50 timesteps."""
    settings, scheduler = config(), MezzotintScheduler(consistency_steps=[2])
    flow, student = Flow(scheduler, student=False), Flow(scheduler, student=True, shift=0.3)
    peer = LatentConsistencyDistillation(settings, flow, scheduler, encode, PROCESS)
    some = batch() | {"uniform": torch.tensor([0.03, 0.5, 0.99])}
    found = peer.loss(student, some)
    ddim = DDIMScheduler.from_config(MezzotintScheduler().config, timestep_spacing="trailing")
    ddim.set_timesteps(50)
    for i, t in enumerate((39, 519, 999)):
        x_t = scheduler.add_noise(some["sample"], some["noise"], torch.tensor([t] * 3))[i : i + 1]
        means = {word: torch.tensor(MEANS[word]).reshape(1, 1, 1) for word in MEANS}
        ask = {"encoder_attention_mask": torch.ones(1, 1), "return_dict": False}
        uncond, cond = (flow(x_t, torch.tensor([t]), means[word], **ask)[0] for word in ("", "a"))
        x_s = ddim.step(uncond + SCALE * (cond - uncond), t, x_t).prev_sample
        ends = [
            scheduler.predict_original_sample(student(x, torch.tensor([time]), means["a"], **ask)[0], time, x)
            for x, time in ((x_t, t), (x_s, t - 20))
        ]
        torch.testing.assert_close(found[i : i + 1], pseudo_huber(ends[0] - ends[1]), rtol=1e-4, atol=1e-6)
