# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""How near to the exact solution few steps come: ours, and every deterministic solver of diffusers in each setting.

    python training/benchmarks/few_steps.py gmm empirical runs/digits runs/emoji-32
    python training/benchmarks/few_steps.py gmm runs/digits --guidance_scale 2 --evaluations 4 5 8 10 --output few.json

Every solver starts from the same noises and evaluates the denoiser equally often, and is compared with a high-accuracy
solution of the same equation from the same noise. With guidance an evaluation is two calls of the network, for every
solver alike. The sources:

    gmm         a Gaussian mixture, one component a digit, fitted to scikit-learn's digits (closed form)
    empirical   the digits themselves, `--bandwidth` wide (closed form); `empirical:FOLDER` those of parquet files
    otherwise   a trained pipeline, with prompts round robin from --prompts or its recipe's validation_prompts

Measured, lower being better: the root mean square error of each picture against the exact solution, in units of the
(unit-variance) data, its median and mean over the noises; and the Fréchet distance to the exact solutions of these
noises and to real pictures, between Gaussians fitted to features: the first 32 principal directions, on real pictures,
of a convolution network with fixed random weights, scaled to unit average variance. Nothing is fitted on features.

The best stock setting is looked for anew in each line, on the very noises that are reported: no user could choose so
well. All are tried on --screen of the noises, and the --keep best of each measure on the rest too. Intervals (95 %)
come from leaving out a twentieth of the noises at a time, the same on both sides of a ratio.
"""

import argparse
import inspect
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from mezzotint_training.benchmarks.distances import Measured, SampleErrors
from mezzotint_training.benchmarks.problems import Problem, closed_form, reference, start_noise, trained
from mezzotint_training.config.flags import Help
from mezzotint_training.few_steps.fitting import fit, solve
from mezzotint_training.few_steps.stock_solvers import Setting, common_settings, sample, settings, solvers_at
from mezzotint_training.fit_scheduler import outcome
from mezzotint_training.metrics.distances import frechet_distance, gaussian
from mezzotint_training.metrics.features import RandomFeatures
from mezzotint_training.metrics.intervals import interval, jackknife

METRICS = {
    "rmse_median": "RMSE, median",
    "rmse_mean": "RMSE, mean",
    "frechet": "Fréchet distance to the exact samples",
    "frechet_real": "Fréchet distance to real pictures",
}


def our_schedulers(problem: Problem, args: argparse.Namespace) -> dict[str, SchedulerMixin]:
    """Ours by the name of its row: with no table, as every unfitted count gets it, and with those that there are."""
    found = {"default": with_tables(problem.scheduler, None)}
    if args.fit:
        found["fitted"] = fitted(problem, args)
    elif problem.scheduler.config.get("_fitted_schedules"):
        found["fitted"] = problem.scheduler
    return found


def with_tables(scheduler: SchedulerMixin, tables: list[dict[str, Any]] | None) -> SchedulerMixin:
    """The same scheduler with these tables and no others."""
    if tables is None and not scheduler.config.get("_fitted_schedules"):
        return scheduler
    return type(scheduler).from_config(scheduler.config, fitted_schedules=tables)


def fitted(problem: Problem, args: argparse.Namespace) -> SchedulerMixin:
    """Our scheduler with a table fitted here to each count, on noises that are not those of the test."""
    size, shape = args.fit_noises, problem.noise.shape[1:]
    noise = start_noise(2 * size, shape, args.seed + 1).to(problem.noise.device)
    ends, held_out = (solve(problem.network, problem.scheduler, half, 100) for half in noise.split(size))
    tables = []
    for count in args.evaluations:
        found = fit(problem.network, problem.scheduler, ends, held_out, count, problem.guidance_scale)
        print(f"{problem.name}: {outcome(count, problem.guidance_scale, found)}", file=sys.stderr)
        tables += [found.table] if found.table is not None else []
    return with_tables(problem.scheduler, tables)


def uses_table(scheduler: SchedulerMixin, count: int, kwargs: dict[str, float]) -> bool:
    scheduler.set_timesteps(count, **kwargs)
    return getattr(scheduler, "fitted_schedule", None) is not None


@torch.inference_mode()
def run(problem: Problem, ours: dict[str, SchedulerMixin], args: argparse.Namespace) -> dict[str, Any]:
    """Solve, measure and compare; everything that is printed, and more, as plain data."""
    began = time.perf_counter()
    exact, error = solve_exactly(problem, args)
    print(f"{problem.name}: halving the steps of the exact solution moves it by {error['median']:.2g} in the median, "
          f"{error['mean']:.2g} in the mean ({args.reference_steps} steps)", file=sys.stderr)  # fmt: skip
    features = RandomFeatures(problem.real if problem.real is not None else exact)
    real = None if problem.real is None else gaussian(features(problem.real))
    judge = SampleErrors(exact, features, real)
    floor = {} if real is None else {"frechet_real": float(frechet_distance(gaussian(judge.exact_features), real))}

    among = common_settings() if args.stock == "common" else settings()
    columns = {count: solvers_at(count, problem.scheduler, among) for count in args.evaluations}
    accepted = inspect.signature(problem.scheduler.set_timesteps).parameters
    kwargs = {"guidance_scale": problem.guidance_scale} if "guidance_scale" in accepted else {}
    few = min(args.screen, len(exact))
    screen = SampleErrors(exact[:few], features, real)
    share = few / len(exact)
    todo = sum(
        count * (len(columns[count].steps) * share + (share < 1) * 2 * args.keep + len(ours))
        for count in args.evaluations
    )
    progress = Progress(problem.name, todo)
    screened: dict[int, dict[Setting, dict[str, float]]] = {}
    measured: dict[int, tuple[dict[Setting, Measured], dict[str, Measured]]] = {}
    for count, solvers in columns.items():
        stock, mine = measured[count] = {}, {}
        tried: dict[Setting, Measured] = {}
        for setting, steps in solvers.steps.items():
            samples, calls = sample(setting.scheduler(problem.scheduler), problem.network, problem.noise[:few], steps)
            progress(calls * share)
            if bool(samples.isfinite().all()):
                tried[setting] = screen.measure(samples)
            else:
                solvers.left_out[setting] = "gives values that are not finite here"
        screened[count] = {s: {k: float(v) for k, v in screen.metrics(m).items()} for s, m in tried.items()}
        if few == len(exact):
            stock |= tried
        else:
            for setting in shortlist(screened[count], args.keep):
                scheduler, steps = setting.scheduler(problem.scheduler), solvers.steps[setting]
                samples, calls = sample(scheduler, problem.network, problem.noise, steps)
                progress(calls)
                stock[setting] = judge.measure(samples)
        for name, scheduler in ours.items():
            if name == "fitted" and not uses_table(scheduler, count, kwargs):
                continue
            samples, calls = sample(scheduler, problem.network, problem.noise, count, **kwargs)
            if calls != count:
                raise RuntimeError(f"{name} made {calls} calls in place of {count}")
            progress(calls)
            mine[name] = judge.measure(samples)
    return {
        "source": problem.name,
        "guidance_scale": problem.guidance_scale,
        "noises": len(problem.noise),
        "reference": {"steps": args.reference_steps, "change_on_halving": error},
        "exact_samples": floor,
        "cells": [compare(count, *measured[count], judge) for count in measured],
        "twice": twice(measured, judge),
        "screened": {c: {str(s): v for s, v in values.items()} for c, values in screened.items()},
        "same": {c: {str(s): str(t) for s, t in solvers.same.items()} for c, solvers in columns.items()},
        "left_out": {c: {str(s): why for s, why in solvers.left_out.items()} for c, solvers in columns.items()},
        "seconds": time.perf_counter() - began,
    }


def shortlist(values: dict[Setting, dict[str, float]], keep: int) -> list[Setting]:
    """The `keep` best settings of each metric, each once."""
    metrics = next(iter(values.values()))
    return list(dict.fromkeys(s for m in metrics for s in sorted(values, key=lambda s: values[s][m])[:keep]))


def solve_exactly(problem: Problem, args: argparse.Namespace) -> tuple[torch.Tensor, dict[str, float]]:
    """The reference, and how far it is from one of half the steps."""
    progress = Progress(f"{problem.name}, exactly", args.reference_steps * 3 // 2)
    coarse, fine = (
        reference(problem.network, problem.scheduler, problem.noise, steps, lambda: progress(1))
        for steps in (args.reference_steps // 2, args.reference_steps)
    )
    rmse = (coarse.double() - fine.double()).flatten(1).square().mean(1).sqrt()
    return fine, {"median": float(rmse.quantile(0.5)), "mean": float(rmse.mean()), "max": float(rmse.max())}


def compare(
    count: int, stock: dict[Setting, Measured], mine: dict[str, Measured], judge: SampleErrors
) -> dict[str, Any]:
    """One count: each solver's metrics, and ours against the best of the stock ones in each."""
    values = {s: {k: float(v) for k, v in judge.metrics(m).items()} for s, m in stock.items()}
    own = {name: {k: float(v) for k, v in judge.metrics(m).items()} for name, m in mine.items()}
    draws = jackknife(len(judge.exact))
    drawn = {name: judge.metrics(m, draws) for name, m in mine.items()}
    best: dict[str, Any] = {}
    for metric in own["default"]:
        setting = min(values, key=lambda s: values[s][metric])
        value, left = values[setting][metric], judge.metrics(stock[setting], draws)[metric]
        best[metric] = {"setting": str(setting), "value": value, "interval": interval(value, left), "ratio": {}}
        for name in own:
            quotient = own[name][metric] / value
            quotients = interval(quotient, drawn[name][metric] / left)
            best[metric]["ratio"][name] = {"value": quotient, "interval": quotients}
    return {"evaluations": count, "best": best, "ours": own, "stock": {str(s): v for s, v in values.items()}}


def twice(
    measured: dict[int, tuple[dict[Setting, Measured], dict[str, Measured]]], judge: SampleErrors
) -> list[dict[str, Any]]:
    """Ours against the best stock setting of twice the evaluations, wherever both were measured."""
    rows, draws = [], jackknife(len(judge.exact))
    for count in measured:
        if 2 * count not in measured:
            continue
        stock = {s: judge.metrics(m) for s, m in measured[2 * count][0].items()}
        for name, m in measured[count][1].items():
            own, drawn = judge.metrics(m), judge.metrics(m, draws)
            for metric in own:
                best = min(stock, key=lambda s: float(stock[s][metric]))
                value = float(own[metric] / stock[best][metric])
                left = drawn[metric] / judge.metrics(measured[2 * count][0][best], draws)[metric]
                rows.append({"evaluations": count, "ours": name, "metric": metric, "stock": str(best)})
                rows[-1] |= {"value": value, "interval": interval(value, left)}
    return rows


class Progress:
    """A line on the terminal a few seconds apart: done, and the time that the rest will take."""

    def __init__(self, name: str, total: float):
        self.name, self.total, self.done, self.began, self.said = name, total, 0.0, time.perf_counter(), 0.0

    def __call__(self, more: float) -> None:
        self.done += more
        now = time.perf_counter()
        if now - self.said > 15:
            self.said = now
            left = (now - self.began) / self.done * (self.total - self.done)
            print(f"{self.name}: {self.done:.0f} of about {self.total:.0f} evaluations, {left / 60:.1f} min left",
                  file=sys.stderr, flush=True)  # fmt: skip


def best_over_all(result: dict[str, Any], metric: str) -> list[tuple[float, str]]:
    """Settings that every count has, by the geometric mean over counts of their ratio to the best there, on the noises
    of the screening."""
    totals: dict[str, list[float]] = {}
    for count, settings_there in result["screened"].items():
        values = {name: v[metric] for name, v in settings_there.items()}
        least = min(values.values())
        values |= {name: values[other] for name, other in result["same"][count].items() if other in values}
        for name, value in values.items():
            totals.setdefault(name, []).append(np.log(value / least))
    everywhere = {k: float(np.exp(np.mean(v))) for k, v in totals.items() if len(v) == len(result["cells"])}
    return sorted((value, name) for name, value in everywhere.items())


def report(result: dict[str, Any]) -> str:
    """Markdown."""
    cells, calls = result["cells"], 1 if result["guidance_scale"] == 1 else 2
    names = list(dict.fromkeys(name for cell in cells for name in cell["ours"]))
    columns = ["steps (network evaluations)", "best stock", "which", *names, *(f"{n} / best stock" for n in names)]
    lines = [f"### {result['source']}, guidance {result['guidance_scale']:g}, {result['noises']} noises", ""]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for metric in cells[0]["best"]:
        lines.append(f"| **{METRICS[metric]}** " + "| " * (len(columns) - 1) + "|")
        for cell in cells:
            best, count = cell["best"][metric], cell["evaluations"]
            row = [f"{count} ({count * calls})", f"{best['value']:.3g}", best["setting"]]
            row += [f"{cell['ours'][n][metric]:.3g}" if n in cell["ours"] else "" for n in names]
            row += [ratio(best["ratio"][n]) if n in best["ratio"] else "" for n in names]
            lines.append(f"| {' | '.join(row)} |")
    lines.append("")
    for row in result["twice"]:
        what = f"{METRICS[row['metric']]}: {row['ours']} at {row['evaluations']} steps"
        lines.append(f"- {what} is {ratio(row)} of the best stock at {2 * row['evaluations']} ({row['stock']})")
    for metric in cells[0]["best"]:
        ranked = ", ".join(f"{name} ({value:.2f})" for value, name in best_over_all(result, metric)[:3])
        lines.append(
            f"- {METRICS[metric]}: best stock settings for all counts (mean ratio to each line's best): {ranked}"
        )
    for cell in cells:
        count = cell["evaluations"]
        text = (
            f"- {count} steps: {len(result['screened'][count])} different stock settings ({len(cell['stock'])} of them"
        )
        text += f" on all noises), {len(result['same'][count])} more that do the same as one of these"
        for why, number in Counter(result["left_out"][count].values()).items():
            text += f", {number} left out ({why})"
        lines.append(text)
    for metric, value in result["exact_samples"].items():
        lines.append(f"- the exact samples' own: {METRICS[metric]} {value:.3g}")
    change, steps = result["reference"]["change_on_halving"], result["reference"]["steps"]
    lines.append(f"- exact solution of {steps} steps: half of them move it by {change['median']:.2g} in the median")
    lines.append(f"- {result['seconds'] / 60:.1f} minutes")
    return "\n".join(lines) + "\n"


def ratio(row: dict[str, Any]) -> str:
    return f"{row['value']:.2f} ({row['interval'][0]:.2f} to {row['interval'][1]:.2f})"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("sources", nargs="+", help="what is denoised: gmm, empirical, empirical:FOLDER, or pipelines")
    parser.add_argument("--evaluations", nargs="+", type=int, default=[3, 4, 5, 6, 8, 10, 15, 20],
                        help="numbers of evaluations to compare at")  # fmt: skip
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="weight of the guidance; 1 turns it off")
    parser.add_argument("--noises", type=int, default=256, help="starting noises, 40 or more")
    parser.add_argument(
        "--stock", choices=("all", "common"), default="all", help="solvers of diffusers to compare with"
    )
    parser.add_argument("--screen", type=int, default=48, help="noises on which every setting is tried first")
    parser.add_argument("--keep", type=int, default=20, help="settings, best by each figure, that go on to all noises")
    parser.add_argument(
        "--fit", action="store_true", help="fit a table for each number of evaluations first, of each source"
    )
    parser.add_argument("--fit_noises", type=int, default=40, help="noises to fit on, with --fit")
    parser.add_argument(
        "--prompts", help="a text file with a prompt in each line; by default the recipe's validation_prompts"
    )
    parser.add_argument("--real", help="real pictures: 'digits' or a folder of parquet files; by default the recipe's")
    parser.add_argument("--bandwidth", type=float, default=0.1, help="blur of empirical, in units of the data")
    parser.add_argument(
        "--reference_steps", type=int, default=512, help="steps of the solution that errors are measured to"
    )
    parser.add_argument("--seed", type=int, default=1000, help="seed of the noises")
    parser.add_argument("--output", help="a JSON file to write all figures to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to use")
    args = parser.parse_args(argv)
    args.evaluations = sorted(set(args.evaluations))
    if min(args.noises, args.screen) < 40:
        parser.error(
            f"--noises and --screen must be 40 or more: got {args.noises} and {args.screen}"
        )  # for 32 features

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    results = []
    for name in args.sources:
        closed = name.partition(":")[0] in ("gmm", "empirical")
        problem = closed_form(name, args) if closed else trained(name, args)
        results.append(run(problem, our_schedulers(problem, args), args))
        print(report(results[-1]), flush=True)
        if args.output:
            Path(args.output).write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
