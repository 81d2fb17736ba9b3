# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Fits the scheduler's multistep steps to a network: which times it is asked at, and what its answers count.

Every deterministic solver that asks the network n times is one linear form. With D[i] the prediction of x_0 at the i-th
time asked,

    x[i+1] = a[i] x[i] + c[i,0] D[i] + c[i,1] D[i-1] + ... + c[i,i] D[0]        and x[n] is the picture.

So the fit starts from the best stock solvers there are, read off as such numbers, and goes downhill from there: by
Levenberg-Marquardt (Marquardt, 1963) on where the trajectories end, with all times and coefficients free, against a
solution of the same network's probability-flow ODE in many steps. A table is kept only if it ends nearer than the
scheduler's own default and than every stock solver tried, on noises that it was not fitted on. What no linear form
reaches is left to a correction of the end (`correction.py`), which is kept if the table is better with it there.

Nothing but the network's own trajectories is ever looked at: no pictures, and no features that a metric uses.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mezzotint import MezzotintScheduler
from mezzotint_training.few_steps.correction import fit_correction
from mezzotint_training.few_steps.stock_solvers import Network, Setting, common_settings, sample, solvers_at

GAP = 0.05  # least distance of neighbouring times in log sigma


@dataclass
class Ends:
    """Noises, and where the network's ODE takes them.

    Args:
        noise, end (`torch.Tensor` of shape `(N, C, *spatial)`): x_T and x_0, normalised.
    """

    noise: torch.Tensor
    end: torch.Tensor

    def errors(self, samples: torch.Tensor) -> torch.Tensor:
        """Root mean square error of each picture, (N,) in float64."""
        return (samples.double() - self.end.double()).flatten(1).square().mean(1).sqrt()

    def loss(self, samples: torch.Tensor, scale: float) -> float:
        """Mean of scale^2 log(1 + (error / scale)^2): squares, but for the few trajectories that end far away
        (Cauchy's loss), which would be all that a fit sees."""
        return float((scale**2 * torch.log1p((self.errors(samples) / scale) ** 2)).mean())


@dataclass
class Form:
    """The linear form of n steps.

    Args:
        log_sigmas (`np.ndarray` of shape `(n,)`): log(sigma_t / alpha_t) of the times, descending.
        rows (list of n `np.ndarray`): `[a, c_0, ..., c_i]` of step i.
    """

    log_sigmas: np.ndarray
    rows: list[np.ndarray]

    @property
    def vector(self) -> np.ndarray:
        return np.concatenate([self.log_sigmas, *self.rows])

    def with_vector(self, vector: np.ndarray) -> "Form":
        n = len(self.rows)
        cuts = n + np.cumsum([0, *(len(row) for row in self.rows)])
        return Form(vector[:n], [vector[a:b] for a, b in pairwise(cuts)])

    def table(self, scheduler: MezzotintScheduler) -> dict[str, Any]:
        """The table as it goes into `fitted_schedules`, without guidance scale and provenance."""
        taus = scheduler.sigmas_to_timesteps(torch.from_numpy(self.log_sigmas).exp()).tolist()
        return {
            "num_inference_steps": len(self.rows),
            "taus": taus,
            "sigmas": self._sigmas(scheduler).tolist(),
            "coefficients": [[float(np.float32(c)) for c in row] for row in self.rows],
        }

    def _sigmas(self, scheduler: MezzotintScheduler) -> np.ndarray:
        """Noise levels of the states: what the steps make of alpha_T x_0 + sigma_T eps if every D is x_0. Where these
        do not descend, those of the times."""
        ratio = float(scheduler.timesteps_to_sigmas(torch.tensor(len(scheduler) - 1.0)))
        signal, noise = 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)
        levels = []
        for row in self.rows:
            levels.append(noise / signal if signal > 0 else np.inf)
            signal, noise = row[0] * signal + row[1:].sum(), row[0] * noise
        if all(a > b > 0 for a, b in pairwise(levels)) and np.isfinite(levels).all():
            return np.array(levels)
        return np.exp(self.log_sigmas)


def read_off(stock: SchedulerMixin, steps: int, scheduler: MezzotintScheduler) -> Form | None:
    """The linear form of a deterministic solver: what it does to a basis of the space of its start and the network's
    answers. `None` for one that is not of this form, as one whose times do not descend."""
    inputs, times = [], []

    def basis(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        inputs.append(x.double().flatten().numpy())
        times.append(float(timestep))
        answer = torch.zeros_like(x)
        answer.view(-1)[len(inputs)] = 1  # the answers are the axes after the first, which is the start
        return answer

    start = torch.zeros(1, 1, 1, 1 + len(_timesteps(stock, steps)), dtype=torch.float64)
    start.view(-1)[0] = 1
    end = sample(stock, basis, start, steps)[0].double().flatten().numpy()
    n = len(times)
    log_sigmas = scheduler.timesteps_to_sigmas(torch.tensor(times)).double().log().numpy()
    if n + 1 != len(end) or not np.isfinite([*inputs, end]).all() or np.any(np.diff(log_sigmas) > -GAP):
        return None

    # from (start, outputs) to (start, D): D[i] is linear in the input and the output at the i-th time
    change = np.eye(n + 1)
    for i, x in enumerate(inputs):
        one, x = torch.zeros(n + 1, dtype=torch.float64), torch.from_numpy(x)
        one[i + 1] = 1
        change[i + 1] = scheduler.predict_original_sample(one, times[i], x).double().numpy()
    states = np.linalg.solve(change.T, np.stack([*inputs, end]).T).T  # (n + 1, n + 1), in terms of (start, D)
    rows = []
    for i in range(n):
        if abs(states[i, 0]) < 1e-8:
            return None
        a = states[i + 1, 0] / states[i, 0]
        rows.append(np.array([a, *(states[i + 1] - a * states[i])[i + 1 : 0 : -1]]))
    return Form(log_sigmas, rows)


def with_history(form: Form, history: int) -> Form | None:
    """The same steps with room for as many predictions each, or `None` where they need more."""
    rows = []
    for row in form.rows:
        if np.abs(row[1 + history :]).max(initial=0) > 1e-6:
            return None
        rows.append(row[: 1 + history])
    return Form(form.log_sigmas, rows)


def run(network: Network, scheduler: MezzotintScheduler, form: Form, noise: torch.Tensor) -> torch.Tensor:
    """The samples of a linear form, as the scheduler makes them of its table."""
    return whole_run(network, scheduler, form, noise)[0]


def whole_run(network: Network, scheduler: MezzotintScheduler, form: Form, noise: torch.Tensor) -> list[torch.Tensor]:
    """States and predictions of a linear form, as the scheduler makes them of its table: x[n], x[n-1] and D[n-1],
    D[n-2], ..., as many as its longest row reads, each (N, C, *spatial)."""
    taus = scheduler.sigmas_to_timesteps(torch.from_numpy(form.log_sigmas).exp()).to(noise.device)
    x, before, predictions, reads = noise, noise, [], max(map(len, form.rows)) - 1
    for tau, row in zip(taus, form.rows, strict=True):
        predictions = [scheduler.predict_original_sample(network(x, tau), tau, x), *predictions[: reads - 1]]
        before, x = x, row[0] * x
        for weight, prediction in zip(row[1:], predictions, strict=False):
            x += weight * prediction
    return [x, before, *predictions]


def ends_and_slopes(
    network: Network, scheduler: MezzotintScheduler, form: Form, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the trajectories end, (N, C, *spatial), and the derivative of that by each number of `form.vector`,
    (P, N, C, *spatial), by forward differences.

    A changed number changes nothing before its step. So the changed copies of the trajectories join the batch one step
    after the other, and half of the evaluations that P whole samples would take are spared.
    """
    h = 2e-3  # the network's rounding, some 1e-6, is small beside what this changes
    n = len(form.rows)
    size = len(noise)
    taus = scheduler.sigmas_to_timesteps(torch.from_numpy(np.stack([form.log_sigmas, form.log_sigmas + h])).exp())
    copies: list[int] = []  # which number of the vector each copy has changed; row 0 of `x` is the unchanged one
    x, predictions = noise[None], []  # (1 + copies, N, C, ...), and D[i-1], D[i-2], ... likewise

    def predict(states: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        flat = states.flatten(0, 1)
        return scheduler.predict_original_sample(network(flat, tau.to(flat.device)), tau, flat).view_as(states)

    first = n  # of the vector's numbers of this step's row
    for i, row in enumerate(form.rows):
        # this step's time changed, and its coefficients, of which each copy starts as the unchanged one
        new, own = predict(x, taus[0, i]), [i, *range(first, first + len(row))]
        new = torch.cat([new, predict(x[:1], taus[1, i]), new[:1].expand(len(row), *new.shape[1:])])
        x, *predictions = (torch.cat([old, old[:1].expand(len(own), *old.shape[1:])]) for old in (x, *predictions))
        copies += own
        predictions = [new, *predictions]
        after = row[0] * x
        for weight, prediction in zip(row[1:], predictions, strict=False):
            after += weight * prediction
        for k, source in enumerate([x, *predictions][: len(row)]):
            after[1 + copies.index(first + k)] += h * source[0]
        first += len(row)
        x = after
    slopes = ((x[1:] - x[0]) / h)[torch.from_numpy(np.argsort(copies))]
    return x[0].reshape(size, *noise.shape[1:]), slopes


def descend(
    network: Network, scheduler: MezzotintScheduler, form: Form, ends: Ends, scale: float, iterations: int
) -> tuple[Form, float, int]:
    """Levenberg-Marquardt from `form`, with the damping scaled by the diagonal and Cauchy's loss by reweighting; the
    form it ends at, its loss and the iterations taken. It ends early where an iteration gains less than 0.2 %."""
    highest = float(scheduler.log_sigmas[-1])
    damping = 1e-2
    samples, slopes = ends_and_slopes(network, scheduler, form, ends.noise)
    loss = ends.loss(samples, scale)
    for iteration in range(1, iterations + 1):
        weights = 1 / (1 + (ends.errors(samples) / scale) ** 2).sqrt()  # of each picture
        rest = ((ends.end - samples).flatten(1).double() * weights[:, None]).flatten()
        jacobian = (slopes.flatten(2).double() * weights[:, None]).flatten(1)  # (P, N * C * ...)
        hessian, gradient = jacobian @ jacobian.T, jacobian @ rest
        diagonal = hessian.diagonal() + 1e-9 * hessian.diagonal().max()
        before = loss
        for _ in range(6):
            change = torch.linalg.solve(hessian + damping * torch.diag(diagonal), gradient).cpu().numpy()
            vector = form.vector + change.clip(-0.5, 0.5)
            times = vector[: len(form.rows)]
            times[0] = min(times[0], highest)
            for i in range(1, len(times)):
                times[i] = min(times[i], times[i - 1] - GAP)
            tried = form.with_vector(vector)
            loss = ends.loss(run(network, scheduler, tried, ends.noise), scale)
            if loss < before:
                form, damping = tried, max(damping / 5, 1e-7)
                break
            damping *= 5
        else:
            return form, before, iteration
        if loss > 0.998 * before or iteration == iterations:
            return form, loss, iteration
        samples, slopes = ends_and_slopes(network, scheduler, form, ends.noise)
    return form, loss, 0


@dataclass
class Fitted:
    """The result of a fit.

    Args:
        table: for `fitted_schedules`, or `None` where nothing better than what there was came out.
        errors: on held-out noises, (median, root mean square) of the pictures' errors by "fitted", "uncorrected" (the
            linear form alone, where a correction is kept), "default" and the names of the stock solvers.
        started_from: the names of the solvers that the descents started from, best first.
        evaluations: of the network, pictures times calls.
        seconds: that the fit took.
    """

    table: dict[str, Any] | None
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    started_from: list[str] = field(default_factory=list)
    evaluations: int = 0
    seconds: float = 0.0

    @property
    def best_stock(self) -> str:
        ours = ("fitted", "uncorrected", "default")
        return min((name for name in self.errors if name not in ours), key=lambda k: self.errors[k])


def solve(network: Network, scheduler: MezzotintScheduler, noise: torch.Tensor, steps: int) -> Ends:
    """The network's ODE in that many steps of the third order."""
    many = MezzotintScheduler.from_config(scheduler.config, solver_order=3, fitted_schedules=None)
    return Ends(noise, sample(many, network, noise, steps)[0])


def fit(
    network: Network,
    scheduler: MezzotintScheduler,
    ends: Ends,
    held_out: Ends,
    num_inference_steps: int,
    guidance_scale: float = 1.0,
    among: tuple[Setting, ...] | None = None,
    starts: int | None = None,
    iterations: int = 24,
    history: int | None = None,
    many: Ends | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """Fit a table for one number of steps.

    Args:
        network (callable): `(x_t, timestep)` to the network's output, guidance included; of batches of k N rows, of
            which row r belongs to noise r modulo N.
        scheduler (`MezzotintScheduler`): whose noise schedule and `prediction_type` the network speaks.
        ends (`Ends`): to fit on.
        held_out (`Ends`): to judge on.
        num_inference_steps (`int`): n, of one evaluation each.
        guidance_scale (`float`): said in the table.
        among (tuple of `Setting`, *optional*): the stock solvers that it must beat; by default the common ones.
        starts (`int`, *optional*): how many of them are descended from for a few iterations, before the best is gone on
            with; by default more for fewer steps, where they end further apart and cost less.
        iterations (`int`): of the descent from the best of them, at most.
        history (`int`, *optional*): how many predictions a step may read; by default all up to 10 steps, else 4.
        many (`Ends`, *optional*): to fit the correction of the end on, a multiple of the noises of `ends`; without,
            there is none.
        say (callable): gets lines of progress.
    """
    began, rows = time.monotonic(), 0
    starts = starts or max(4, 36 // num_inference_steps)
    history = history or (num_inference_steps if num_inference_steps <= 10 else 4)

    def counted(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        nonlocal rows
        rows += len(x)
        return network(x, timestep)

    # 1. What there is, on the held-out noises and on those to fit on
    default = MezzotintScheduler.from_config(scheduler.config, fitted_schedules=None)
    solvers: dict[str, tuple[Any, int]] = {"default": (default, num_inference_steps)}
    level = logging.getLogger("diffusers").level
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # some settings warn that they are no good
    try:
        among = common_settings() if among is None else among
        for setting, steps in solvers_at(num_inference_steps, scheduler, among).steps.items():
            solvers[str(setting)] = (setting.scheduler(scheduler), steps)
        fitted = Fitted(None)
        losses = {}
        for name, (solver, steps) in solvers.items():
            fitted.errors[name] = _median_and_rms(held_out.errors(sample(solver, counted, held_out.noise, steps)[0]))
            losses[name] = float(ends.errors(sample(solver, counted, ends.noise, steps)[0]).median())
        scale = 2 * min(losses.values())
        say(f"{len(solvers)} solvers tried, best {fitted.best_stock}")

        # 2. Downhill from the best of them
        candidates = []
        for name in sorted(losses, key=lambda k: losses[k]):
            form = read_off(*solvers[name], scheduler) if len(candidates) < starts else None
            form = with_history(form, history) if form is not None else None
            if form is not None:
                form, loss, _ = descend(counted, scheduler, form, ends, scale, iterations=4)
                candidates.append((loss, name, form))
                say(f"from {name}: error {losses[name]:.4f}, now {float(loss**0.5):.4f}")
    finally:
        logging.getLogger("diffusers").setLevel(level)
    if not candidates:
        return fitted
    candidates.sort(key=lambda candidate: candidate[0])
    fitted.started_from = [name for _, name, _ in candidates]
    loss, _, form = candidates[0]
    while iterations > 0:  # each time with fresh damping, which gets it out of narrow valleys
        before = loss
        form, loss, used = descend(counted, scheduler, form, ends, scale, min(iterations, 8))
        say(f"going on: error now {float(loss**0.5):.4f}")
        iterations -= used
        if loss > 0.99 * before:
            break

    # 3. What the linear form does not reach, kept if it is better with it where neither was fitted
    def judged(table: dict[str, Any]) -> tuple[float, float]:  # by the scheduler's own steps
        ours = MezzotintScheduler.from_config(scheduler.config, fitted_schedules=[table])
        n, w = num_inference_steps, guidance_scale
        return _median_and_rms(held_out.errors(sample(ours, counted, held_out.noise, n, guidance_scale=w)[0]))

    table = form.table(scheduler) | {"guidance_scale": float(guidance_scale)}
    fitted.errors["fitted"] = judged(table)
    if many is not None:
        seen = torch.cat(whole_run(counted, scheduler, form, many.noise), 1)
        corrected = table | {"correction": fit_correction(seen, many.end, scale)}
        errors = judged(corrected)
        say(f"corrected: median error on held-out noises {errors[0]:.4f}, before {fitted.errors['fitted'][0]:.4f}")
        if all(new < old for new, old in zip(errors, fitted.errors["fitted"], strict=True)):
            table, fitted.errors["uncorrected"], fitted.errors["fitted"] = corrected, fitted.errors["fitted"], errors

    # 4. Kept if it is better than all of them
    fitted.evaluations, fitted.seconds = rows, time.monotonic() - began
    others = [errors for name, errors in fitted.errors.items() if name != "fitted"]
    if all(fitted.errors["fitted"][i] < min(errors[i] for errors in others) for i in (0, 1)):
        fitted.table = table
    return fitted


def _median_and_rms(errors: torch.Tensor) -> tuple[float, float]:
    return float(errors.median()), float(errors.square().mean().sqrt())


def _timesteps(stock: SchedulerMixin, steps: int) -> torch.Tensor:
    stock.set_timesteps(steps)
    return stock.timesteps
