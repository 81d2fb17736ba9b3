# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks of sampling without their clock: that all draw from the same noise, what is counted and chosen."""

import re

import numpy as np
import pytest
import torch

from mezzotint_training.benchmarks import digits_accuracy, guidance_interval, sampling_overhead
from mezzotint_training.benchmarks.guidance_interval import EVERYWHERE, Result, as_good_for_less
from mezzotint_training.benchmarks.sampling_overhead import Nothing, Timed, overheads, samplers


def test_all_call_the_same_network_as_often_and_end_nearly_alike(make_unet):
    unet = make_unet(in_channels=1, out_channels=1)
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.02)  # a gentle velocity, which any solver follows
    batches = []
    unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    text = (torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    calls = samplers(Timed(unet), 12, 2.0, *text)
    assert list(calls) == ["ours", "DPM-Solver++(2M)", "UniPC"]
    ours, *peers = (call() for call in calls.values())
    assert batches == [4] * 36
    for peer in peers:
        assert torch.corrcoef(torch.stack([ours.flatten(), peer.flatten()]))[0, 1] > 0.99  # other grids, same noise


def test_overhead_is_the_calls_time_less_the_networks_a_step(make_unet, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(sampling_overhead, "clock", lambda: float(next(ticks)))
    network = Timed(Nothing(make_unet()))
    looked = {"ours": 2, "DPM-Solver++(2M)": 2, "UniPC": 3}
    calls = {name: lambda n=n: [network(torch.zeros(1, 3, 8, 8), 0) for _ in range(n)] for name, n in looked.items()}
    found = overheads(calls, network, steps=2, repeats=3)
    # each reading of the clock is a second: one within a look and one between any two
    assert found["network"] == [1e6] * 3
    assert {name: found[name] for name in calls} == {name: [1e6 * (n + 1) / 2] * 3 for name, n in looked.items()}
    assert re.fullmatch(
        r"\| a \| 1,000,000 \| .* \| 1\.00 \(1\.00 to 1\.00, 75 %\) \|", sampling_overhead.row(found, "a")
    )


@pytest.mark.parametrize(
    "hits, distance, evaluations, expected", [(90, 0.2, 15.0, 1), (89, 0.2, 15.0, None), (90, 0.21, 15.0, None)]
)
def test_chosen_interval_is_no_worse_in_either_figure_and_costs_less(hits, distance, evaluations, expected):
    def result(evaluations, hits, distance):
        return Result(2.0, EVERYWHERE, evaluations, hits, 100, distance, (distance, distance))

    constant = result(20.0, 90, 0.2)
    others = [result(20.0, 100, 0.1), result(evaluations, hits, distance), result(18.0, 91, 0.1)]
    found = as_good_for_less(others, constant)
    assert found is (others[1] if expected else others[2])
    assert as_good_for_less(others[:1], constant) is None


def test_evaluations_are_the_networks_rows_for_a_picture(make_pipe, tmp_path, capsys, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 8, 8), dtype=np.uint8)  # reading is not tested here
    few = {name: {"image": noise[i], "label": list(range(10)) * 4} for i, name in enumerate(("train", "test"))}
    for module in (guidance_interval, digits_accuracy):
        monkeypatch.setattr(module, "digits", lambda: few)
    make_pipe(in_channels=1, out_channels=1).save_pretrained(tmp_path)
    guidance_interval.main(
        [str(tmp_path), "--scales", "2", "--intervals", "0.5,5", "--count", "20", "--fresh", "20"]
        + ["--num_inference_steps", "4"]
    )
    rows = [re.split(r" *\| *", line)[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    found = {row[0]: row[1] for row in rows if len(row) == 4}
    assert (found["off"], found["2, everywhere"]) == ("4.0", "8.0")
    assert 4.0 < float(found["2, 0.5 < sigma <= 5"]) < 8.0
