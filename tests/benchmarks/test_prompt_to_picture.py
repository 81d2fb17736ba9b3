# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of prompt to picture without its clock: the stock pipeline around a network of ours, which settings are
taken to be as good, what is counted, timed and shown."""

import argparse
import re
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch

from mezzotint_training.benchmarks import prompt_to_picture
from mezzotint_training.benchmarks.prompt_to_picture import (
    MEASURED_OF,
    STOCK,
    Plan,
    Record,
    Row,
    as_good,
    cheapest,
    closest,
    not_told_worse,
    plot,
    quality,
    table,
    timed,
)
from mezzotint_training.benchmarks.stock_pipeline import StockPictures
from mezzotint_training.few_steps.stock_solvers import settings
from mezzotint_training.metrics.intervals import interval
from mezzotint_training.metrics.pictures import draw

NAMED = {str(setting): setting for setting in settings()}
PROMPTS = ["a handwritten seven", "3"]


@pytest.mark.parametrize("name", [STOCK["DPM-Solver++(2M) Karras"], "DDIM leading set_alpha_to_one=True"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_stock_pipelines_pictures_are_ours_with_its_scheduler_set_in(make_pipe, name, scale):
    pipe = make_pipe()
    scheduler = NAMED[name].scheduler(pipe.scheduler)
    offset = scheduler.config.get("steps_offset")
    ours = type(pipe)(**(pipe.components | {"scheduler": scheduler}))
    ours.set_progress_bar_config(disable=True)

    def pictures(of, prompts=PROMPTS):
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        how = {"num_inference_steps": 4, "guidance_scale": scale, "generator": generators, "output_type": "pt"}
        return of(prompts, **how).images

    expected = pictures(ours)
    # the mask of what a text is padded with gets through: its length changes nothing
    for longest in (20, 33):
        torch.testing.assert_close(pictures(StockPictures(pipe, scheduler, longest)), expected, atol=1e-5, rtol=0)
    assert (pictures(ours, PROMPTS[::-1]) - expected).abs().max() > 1e-3  # the text counts
    assert scheduler.config.get("steps_offset") == offset  # which the stock pipeline would change


def row(kid: float, accuracy: float | None = 0.9, seconds: float = 1.0, other: float = 0.1, **names) -> Row:
    """A row whose pictures say of its KID as much as all others do."""
    shared = torch.linspace(-0.01, 0.01, 20)  # what is common to all rows: held-out pictures and noises
    kids = {"random": kid, "classifier": other}
    left = {kind: (value + shared).tolist() for kind, value in kids.items()}
    figures = {kind: [value, *interval(value, torch.tensor(left[kind]), "linear")] for kind, value in kids.items()}
    read = None if accuracy is None else [accuracy, accuracy - 0.02, accuracy + 0.02]
    named = {"series": "stock", "name": "DDIM", "guidance": "2", "steps": 4} | names
    return Row(**named, evaluations=8, kid=figures, left=left, recall=[0.5, 0.4, 0.6], accuracy=read, seconds=seconds)


@pytest.mark.parametrize(
    "stock, good",
    [
        ({"kid": 0.1, "accuracy": 0.9}, True),
        ({"kid": 0.105, "accuracy": 0.88}, True),
        ({"kid": 0.106, "accuracy": 0.9}, False),
        ({"kid": 0.01, "accuracy": 0.879}, False),
        ({"kid": 0.01, "other": 0.11}, False),  # in both kinds of features
        ({"kid": 0.01, "accuracy": None}, True),
    ],
)
def test_stock_setting_is_as_good_up_to_a_twentieth_of_kid_and_two_points(stock, good):
    assert as_good(row(**stock), row(0.1)) == good


def test_below_zero_a_kid_is_compared_likewise():
    assert as_good(row(-0.0095), row(-0.01)) and not as_good(row(-0.0094), row(-0.01))


def test_what_rows_share_does_not_count_in_the_interval_of_their_difference():
    ours, stock = row(0.1), row(0.101)
    low, high = ours.kid["random"][1:]
    assert low < 0.101 < high  # neither is told apart by its own interval
    assert not not_told_worse(stock, ours)  # but in pairs, where they differ by exactly 0.001
    doubtful = replace(
        stock, left=stock.left | {"random": [x + 0.01 * (-1) ** i for i, x in enumerate(ours.left["random"])]}
    )
    assert not_told_worse(doubtful, ours)
    assert not not_told_worse(replace(doubtful, accuracy=[0.8, 0.7, 0.9]), ours)


def test_cheapest_of_what_is_as_good_is_taken_by_its_time_and_the_closest_where_nothing_is():
    ours = row(0.1)
    good = [row(0.09, seconds=3.0), row(0.05, seconds=2.0), row(0.01, seconds=4.0)]
    bad = [row(0.2, seconds=1.0), row(0.12, seconds=9.0), row(0.05, accuracy=0.1, seconds=0.5)]
    assert cheapest(ours, [*bad, *good]) is good[1]
    assert cheapest(ours, bad) is None
    assert closest(ours, bad) is bad[1]
    assert closest(ours, bad[2:]) is bad[2]


def test_evaluations_are_the_networks_rows_for_a_picture(make_pipe):
    pipe = make_pipe()
    captions = [["7"]] * 40
    judge = SimpleNamespace(
        draw=lambda pipe, steps, scale, **more: draw(pipe, captions, steps, scale, 40, 0, progress=False, **more),
        features={"random": lambda pixels: pixels.double().flatten(1)[:, :4]},
        references={"random": torch.randn(40, 4, generator=torch.Generator().manual_seed(0)).double()},
        accuracy=lambda pixels: None,
    )
    within = {"guidance_interval": (0.5, 5.0)}
    stock = StockPictures(pipe, NAMED[STOCK["DDIM"]].scheduler(pipe.scheduler))
    plans = [Plan("default", "ours", pipe, 3, 1.0), Plan("default", "ours", pipe, 3, 2.0),
             Plan("default", "ours", pipe, 3, 2.0, within), Plan("stock", "DDIM", stock, 3, 2.0)]  # fmt: skip
    rows = [quality(plan, judge) for plan in plans]  # pyright: ignore[reportArgumentType]
    assert [row.evaluations for row in rows] == [3.0, 6.0, 4.0, 6.0]
    assert [row.guidance for row in rows] == ["off", "2", "2, 0.5 < sigma <= 5", "2"]
    assert not pipe.unet._forward_pre_hooks


def test_calls_are_timed_by_turns_on_one_prompt_after_the_other():
    said, ticks = [], iter(range(100))

    class Called:
        def __init__(self, name):
            self.name = name

        def __call__(self, prompt, generator, **how):
            said.append((self.name, prompt, generator.initial_seed(), how["num_inference_steps"]))
            return SimpleNamespace(images=[None])

    plans = [Plan("stock", name, Called(name), steps, 1.0) for name, steps in (("a", 3), ("b", 5))]
    found = timed(plans, ["x", "y"], 2, lambda: next(ticks))
    assert found == [[1, 1], [1, 1]]  # a tick between two readings of the clock; the first turn does not count
    assert said == [(n, "xyx"[i], i, k) for i in range(3) for n, k in (("a", 3), ("b", 5))]


def test_record_is_taken_up_for_the_same_measurement_and_for_no_other(tmp_path):
    args = argparse.Namespace(**dict.fromkeys(MEASURED_OF, 1), output=str(tmp_path / "out" / "x.json"))
    first = Record(args)
    first.rows = {one.key: one for one in (row(0.1), row(0.2, steps=8))}
    first.pairs = {"a / b": {"ratio": [0.5, 0.4, 0.6, 0.95]}}
    first.write()
    again = Record(args)
    assert (again.rows, again.pairs) == (first.rows, first.pairs)
    args.count = 2
    assert Record(args).rows == {}


def test_table_and_plot_show_each_of_ours_beside_its_match(tmp_path):
    diffusers.utils.logging.set_verbosity_error()
    ours = [row(0.1, series="distilled", name="distilled", guidance="off", steps=1, seconds=0.01),
            row(0.001, series="default", name="default sampler", guidance="2, 0.5 < sigma <= 5", seconds=0.03),
            row(0.002, series="default", name="default sampler", seconds=0.03)]  # fmt: skip
    stock = [row(0.09, seconds=0.04), row(0.08, steps=6, seconds=0.05), row(0.1, steps=3, guidance="off", seconds=0.02)]
    pairs = {
        f"{ours[0]} / {x}": {"ratio": [r, 0.2, 0.5, 0.96], "seconds": [0.011, 0.044]}
        for x, r in zip(stock, (0.25, 0.22, 0.4), strict=True)
    }
    quality, beside = table([*stock, *ours], pairs).split("\n\n")
    assert [line.split(" | ")[2] for line in quality.splitlines() if line.startswith("| DDIM")] == ["3", "4", "6"]
    distilled, default = (re.split(r" *\| *", line)[1:-1] for line in beside.splitlines()[2:])
    # guided, guided or not, not told to be worse: what is not guided is cheaper, and no pair tells it apart
    assert distilled[:4] == [
        "distilled, 1 steps, guidance off",
        "DDIM, 4 steps, guidance 2",
        "11.0 / 44.0",
        "0.25 (0.20 to 0.50)",
    ]
    assert distilled[4:] == ["DDIM, 3 steps, guidance off", "11.0 / 44.0", "0.40 (0.20 to 0.50)"] * 2
    assert default[1:3] == ["none; closest DDIM, 6 steps, guidance 2 (KID 0.080 and 0.100)", "50.0"]
    assert default[3:5] == ["", "none; closest DDIM, 6 steps, guidance 2 (KID 0.080 and 0.100)"]
    plot([*stock, *ours], tmp_path / "x.png", "made up")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert prompt_to_picture.main([str(tmp_path / "none")]) == 2
