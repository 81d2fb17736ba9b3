# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of cost growth without its clock: fits, counts beside those by hand, turns, tables."""

import argparse
import math
import multiprocessing
import os
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn

from mezzotint import MezzotintUNetModel
from mezzotint_training.benchmarks import cost_growth
from mezzotint_training.benchmarks.cost_growth import Cell, Counted, count, crossing, exponent, network, parts, shares
from mezzotint_training.benchmarks.train_speed import picture_flops
from mezzotint_training.config.settings import TrainConfig

UNET = {"block_out_channels": [16], "transformer_layers_per_block": [1], "layers_per_block": 1, "norm_num_groups": 4}
UNET |= {"attention_head_dim": 8, "in_channels": 3, "out_channels": 3, "cross_attention_dim": 8}


def test_exponent_is_that_of_a_power_law_and_its_interval_covers_it_as_often_as_it_says():
    x = [1.0, 4, 16, 64]
    assert exponent(x, [3 * value**1.7 for value in x]) == pytest.approx((1.7, 1.7, 1.7))
    noise = np.random.default_rng(0).normal(scale=0.1, size=(1000, 4))
    fits = np.array([exponent(x, [value**0.5 * math.exp(e) for value, e in zip(x, row, strict=True)]) for row in noise])
    # of 1000, 95 % with a standard deviation of 0.7 %
    assert np.mean((fits[:, 1] < 0.5) & (fits[:, 2] > 0.5)) == pytest.approx(0.95, abs=0.02)
    assert np.mean(fits[:, 0]) == pytest.approx(0.5, abs=0.005)


def test_crossing_is_exact_for_a_quadratic_part_beside_a_linear_one():
    positions = [64, 256, 1024, 4096]
    assert crossing(positions, [n**2 / (n**2 + 700 * n) for n in positions]) == pytest.approx(700)
    assert crossing(positions, [n**2 / (n**2 + 5000 * n) for n in positions]) is None
    assert 64 < crossing([64, 256], [0.4, 1.1]) < 256  # parts timed apart


def test_operations_and_parameters_are_those_counted_by_hand():
    width, side, tokens, embedding, text = 16, 4, 5, 64, 8
    n, units = side**2, 3  # one down, one in the middle, one up; products of numbers, of which each is two operations
    counted = count(partial(network, UNET, side, 1, tokens, "cpu"))
    # conv_in; down and middle: two each; up: its first and its shortcut read twice the channels; conv_out
    forward = n * (9 * (3 * width + 4 * width**2 + 2 * width**2 + width**2 + 3 * width) + 2 * width**2)
    assert counted.convolution == 2 * (3 * forward - n * 9 * 3 * width)  # the picture has no gradient
    # time, text, embedding_proj; q, k, v, out of self-attention; q, out and k, v of cross-attention; the feed-forward
    forward = width * embedding + embedding**2 + text * embedding + units * embedding * 2 * width
    forward += units * (n * (4 + 2 + 4) * width**2 + 2 * tokens * text * width)
    assert counted.linear == 2 * (3 * forward - width * embedding)  # nor has the timestep
    assert counted.attention == 2 * 3 * units * 2 * (n * n + n * tokens) * width
    assert counted.parameters == MezzotintUNetModel(**UNET).num_parameters()


def test_operations_are_those_of_attention_as_products_of_matrices():
    # `picture_flops` counts on a device where attention is two products and a softmax, for a text of one token
    counted = count(partial(network, UNET, 4, 1, 1, "cpu"))
    assert counted.flops == picture_flops(TrainConfig(train_data_dir="x", unet=UNET), 4)


def test_memory_for_the_backward_pass_is_linear_in_the_positions_and_leaves_out_the_weights():
    positions, width, heads = 64, 64, 4  # tiny has 16 channels a head
    counted = count(parts("tiny", width, 8, 5, "cpu")["quadratic"])
    # query, key, value and output, and each query's normaliser, in 32 bits
    assert counted.saved == 4 * (4 * positions * width + positions * heads)
    assert counted.parameters == 0
    counted = count(lambda: (nn.Linear(3, 5), (torch.zeros(7, 3, requires_grad=True),)))
    assert (counted.parameters, counted.saved) == (20, 4 * 7 * 3)
    assert Cell("tiny", 8, UNET, counted).memory_counted(2) == 16 * 20 + 2 * 4 * 7 * 3


def test_quadratic_part_is_more_than_half_from_where_the_closed_form_says():
    width, tokens, sides = 64, 5, [16, 32]
    costs = []
    for side in sides:
        costs.append(
            {name: float(count(part).flops) for name, part in parts("tiny", width, side, tokens, "cpu").items()}
        )
        assert costs[-1]["quadratic"] == 3 * 4 * side**4 * width
    for layers in (1, 2):
        whole, quadratic = zip(*(shares(one, layers) for one in costs), strict=True)
        assert whole[0] == layers * costs[0]["transformer"] / (costs[0]["residual"] + layers * costs[0]["transformer"])
        # a position costs 36 C^2 in the residual block; 20 C^2 + 4 L C in a layer, and 4 N C in its quadratic part
        closed = (36 / layers + 20) * width / 4 + tokens
        assert crossing([side**2 for side in sides], list(quadratic)) == pytest.approx(closed, rel=0.01)


def test_parts_are_timed_by_turns_after_one_that_warms_up(monkeypatch):
    # the clock goes on by 1, 2, 3, ... seconds while something is timed
    ticks = iter(float(x) for n in range(1, 100) for x in (100 * n, 100 * n + n))
    monkeypatch.setattr(cost_growth, "clock", lambda *_: next(ticks))
    args = argparse.Namespace(device="cpu", mixed_precision="no", cpu_time=False)
    built = {name: lambda: (nn.Linear(2, 2), (torch.ones(2),)) for name in "ab"}
    assert cost_growth.timed(built, args, 3) == {"a": 5.0, "b": 6.0}  # of 3, 5, 7 and 4, 6, 8
    assert cost_growth.timed(built, args, 1) == {"a": 9.0, "b": 10.0}


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # a norm's weights stay in 32 bits
def test_process_of_a_cell_trains_and_answers(monkeypatch):
    args = argparse.Namespace(threads=torch.get_num_threads(), device="cpu", mixed_precision="bf16", batch=2, tokens=5)
    args.cpu_time = True
    built = []
    monkeypatch.setattr(cost_growth, "network", lambda *given: built.append(network(*given)) or built[-1])
    answers, orders = [], iter(["step", "memory", "profile", "end"])
    cost_growth.serve(SimpleNamespace(recv=lambda: next(orders), send=answers.append), UNET, 4, args)
    seconds, memory, attention = answers
    assert 0 < seconds < 60 and 0 <= memory < 1e10 and 0 < attention < 1
    model, inputs = built[0]
    assert inputs[0].shape == (2, 3, 4, 4) and inputs[2].shape == (2, 5, 8)
    # AdamW's first step moves whatever has a gradient by the rate, 1e-3; what is profiled is no step
    assert model.conv_out.bias.abs().tolist() == pytest.approx([1e-3] * 3, rel=1e-4)


def stand_in(connection, unet, resolution, args):
    """A cell's process that takes as many seconds as its resolution."""
    while (order := connection.recv()) != "end":
        with open(unet["log"], "a") as log:
            print(resolution, order, file=log)
        if unet["fails"]:
            os._exit(3)
        connection.send({"step": float(resolution), "memory": 1e6, "profile": 0.25}[order])


def test_cells_step_by_turns_and_one_that_fails_is_not_run(tmp_path, monkeypatch, capsys):
    context = multiprocessing.get_context("fork")
    fork = SimpleNamespace(Pipe=context.Pipe, Process=context.Process, set_forkserver_preload=lambda names: None)
    monkeypatch.setattr(multiprocessing, "get_context", lambda name: fork)
    monkeypatch.setattr(cost_growth, "serve", stand_in)
    log = tmp_path / "log"
    cells = [
        Cell("tiny", px, {"log": str(log), "fails": px == 3}, Counted(1, 1, 1, 1, 1), turns)
        for px, turns in ((1, 2), (2, 1), (3, 2))
    ]
    cost_growth.measure(cells, argparse.Namespace())
    assert log.read_text().split("\n")[:-1] == (
        ["1 step", "2 step", "3 step"] + ["1 step", "2 step", "2 memory"] + ["1 step", "1 memory", "1 profile"]
    )
    assert [cell.seconds for cell in cells] == [[1.0, 1.0], [2.0], []]
    assert [cell.memory for cell in cells] == [1e6, 1e6, None]
    assert [cell.attention_time for cell in cells] == [0.25, None, None]
    assert "tiny at 3 px: its process ended with code 3" in capsys.readouterr().err


def test_tables(monkeypatch, capsys):
    def measure(cells, args):
        for cell in cells:  # a second a pixel and picture, in cells that were given steps
            cell.seconds, cell.memory = [4.0 * cell.resolution**2] * cell.turns, 1e6 * cell.resolution

    def counted(build):
        pixels = build.args[1] ** 2 if isinstance(build, partial) else 1
        return Counted(600 * pixels**2, 300 * pixels**2, 100 * pixels**2, 10**6, 10**6)

    # at 30 % of 1e9 operations a second, four pictures of 64 px take 224 s, of 128 px more than 1000
    monkeypatch.setattr(cost_growth, "peak_flops", lambda *_: 1e9)
    monkeypatch.setattr(cost_growth, "measure", measure)
    monkeypatch.setattr(cost_growth, "count", counted)
    monkeypatch.setattr(cost_growth, "timed", lambda built, args, steps: dict.fromkeys(built, float(steps)))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    argv = ["--sizes", "tiny", "--resolutions", "16", "32", "64", "128", "--limit", "1000", "--sides", "8"]
    argv += ["--device", "cpu"]
    assert cost_growth.main(argv) == 0
    said = capsys.readouterr().out
    cells, exponents, levels = (
        [re.split(r" *\| *", line)[1:-1] for line in table.splitlines() if line.startswith("|")]
        for table in said.split("\n\n")[1:4]
    )
    for table in (cells, exponents, levels):
        assert len({len(line) for line in table}) == 1 and set(table[1]) == {"---"}
    resolutions = ["16", "32", "64", "128"]
    assert [line[1:3] for line in cells[2:]] == [[shape, px] for shape in ("derived", "of 32 px") for px in resolutions]
    shares_of_kinds = ["60 %", "30 %", "10.0 %", ""]
    assert cells[2] == ["tiny", "derived", "16", "1.0 M", "256", "16", "20", "0.0655", *shares_of_kinds]
    assert cells[5] == ["tiny", "derived", "128", "1.0 M", "not run", "not run", "20", "268", *shares_of_kinds]
    name, *fitted = exponents[2]  # operations grow with the square of the pixels, memory with its root
    assert name == "with pixels: tiny, derived"
    assert fitted[:5] == ["3", "1.00 (1.00 to 1.00)", "0.50 (0.50 to 0.50)", "4", "2.00 (2.00 to 2.00)"]
    assert exponents[4][:3] == ["with parameters: 16 px", "1", "too few points"]
    # a unit of which each part takes as long: the layer is half, and its quadratic part is all of it
    unit = ["tiny", "64", "8²", "50 %", "50 %", "50 %", "50 %"]
    assert levels[2] == unit
    assert cost_growth.main([*argv[:2], "--resolutions", "--sides", "8", "--device", "cpu"]) == 0  # levels alone
    assert capsys.readouterr().out.count("| tiny |") == 1
