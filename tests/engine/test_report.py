"""What a run says of itself: losses by noise level against their definition, the log against what was written."""

import json
import math
import os

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mezzotint_training.config.errors import UserError
from mezzotint_training.engine import files as writing
from mezzotint_training.engine.progress import peak_memory, progress_bar
from mezzotint_training.engine.report import Losses, Report


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def some(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator), torch.rand(count, generator=generator)


def test_losses_are_means_and_means_by_quarter(accelerator):
    losses, pairs = Losses(accelerator), [some(8, seed) for seed in range(3)]
    for loss, uniform in pairs:
        losses.add(loss, uniform)
    values, levels = (np.concatenate([pair[i].numpy() for pair in pairs]) for i in range(2))
    mean, quarters = losses.means()
    assert mean == pytest.approx(values.mean(), rel=1e-6)
    expected = [values[(levels >= q / 4) & (levels < (q + 1) / 4)].mean() for q in range(4)]
    assert quarters == pytest.approx(expected, rel=1e-6)
    assert losses.means() == (None, [None] * 4)  # they start anew


def test_a_quarter_without_samples_has_no_mean(accelerator):
    losses = Losses(accelerator)
    losses.add(torch.tensor([1.0, 3.0]), torch.tensor([0.1, 1.0]))  # the upper end counts as the last quarter
    assert losses.means() == (2.0, [1.0, None, None, 3.0])


def test_what_is_taken_back_does_not_count(accelerator):
    losses, expected = Losses(accelerator), Losses(accelerator)
    for seed in range(4):
        losses.add(*some(8, seed))
        if seed < 2:
            expected.add(*some(8, seed))
    losses.take_back(2)
    assert losses.means() == expected.means()


def test_they_go_on_from_their_state_exactly(accelerator):
    first = Losses(accelerator)
    assert first.state() == []
    for seed in range(3):
        first.add(*some(5, seed))
    second = Losses(accelerator, json.loads(json.dumps(first.state())))
    for losses in (first, second):
        losses.add(*some(5, 9))
    assert first.means() == second.means()


def test_each_process_takes_its_own_and_another_number_the_mean():
    class Process:
        device, num_processes = torch.device("cpu"), 2

        def __init__(self, rank):
            self.process_index = rank

    entries = [[[1.0] * 9, [2.0] * 9], [[3.0] * 9, [4.0] * 9]]
    for rank, expected in ((0, [1, 2]), (1, [3, 4])):
        assert [entry[0] for entry in Losses(Process(rank), entries).entries] == expected
    alone = Process(0)
    alone.num_processes = 1
    assert [entry[0] for entry in Losses(alone, entries).entries] == [2, 3]


def test_lines_are_written_as_they_are_and_shown_in_short(accelerator, tmp_path, capsys):
    report = Report(tmp_path, accelerator, total=10, step=0)
    report.advance()
    report.write(5, loss=0.5, images_per_second=123.4, data_wait=0.25, skipped_steps=0, loss_by_noise_level=[1.0, None])
    report.write(6, loss=None, verdict="flat")
    report.say("[by the way]")
    report.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss_by_noise_level"] == [1.0, None] and lines[1] == {"step": 6, "loss": None, "verdict": "flat"}
    out = capsys.readouterr().out.splitlines()
    assert out == ["step 5 of 10: loss 0.5000, 123 images/s, data wait 25%", "step 6 of 10: flat", "[by the way]"]


def test_what_comes_after_the_step_to_go_on_from_is_taken_out(accelerator, tmp_path):
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 1')  # torn
    Report(tmp_path, accelerator, total=5, step=2)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:2])


def test_what_is_not_finite_is_valid_json(accelerator, tmp_path):
    Report(tmp_path, accelerator, total=5, step=0).write(1, loss=math.nan, by=[math.inf, 1.0])
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 1, "loss": None, "by": [None, 1.0],
    }  # fmt: skip


def test_progress_hands_on_what_it_is_given():
    assert list(progress_bar(range(5), "counting", 5)) == list(range(5))
    assert list(progress_bar(iter("ab"), "", 2, show=False)) == ["a", "b"]


def test_peak_memory_is_in_bytes():
    before = peak_memory(torch.device("cpu"))
    block = np.ones(2**28, dtype=np.uint8)
    assert 0 <= peak_memory(torch.device("cpu")) - before <= 1.2 * block.nbytes
    assert 2**26 < before < 2**36


def test_a_damaged_log_is_gone_on_with_and_written_whole_or_not_at_all(accelerator, tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    good = ['{"step": 1, "loss": 1.0}\n', '{"step": 2, "loss": 0.5}\n']
    damaged = ["[1]\n", "null\n", '{"step": "two"}\n', '{"loss": 1}\n', "{\n", '{"step": 3}\n', '{"step": 1']
    text = "".join([good[0], *damaged[:4], good[1], *damaged[4:]]).encode() + b"\xff"
    path.write_bytes(text)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "sync", killed)
        with pytest.raises(KeyboardInterrupt):
            Report(tmp_path, accelerator, 4, 2)
        assert path.read_bytes() == text
    Report(tmp_path, accelerator, 4, 2)
    assert path.read_text() == "".join(good)


def test_a_log_that_is_no_file_is_refused(accelerator, tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")  # which would be waited for
    with pytest.raises(UserError, match="^output_dir must hold a file where its log is written: "):
        Report(tmp_path, accelerator, 4, 2)
