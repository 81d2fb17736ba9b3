"""A fault campaign: runs killed by SIGKILL at random moments, in one process, in two and from a stream, go on and end
bit for bit as one that was never killed, and lose no checkpoint.

    pytest -n 0 tests/test_faults.py --kills 100 --faults-seed 1

The seed draws the moments, the machine's speed decides what they hit: reading, the cache of text embeddings, steps,
checkpoints (one after each update), the second epoch, the finished pipeline.
"""

import json
import os
import random
import re
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from forked import kill, server, start
from test_train import assert_same_end
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from mezzotint_training.config.errors import UserError
from mezzotint_training.engine import checkpoint

STEPS = 12  # of eight pictures, out of forty: two epochs and a half
# A frozen text encoder, so that there is a cache to build
FAULTY = {
    "text_encoder": ...,
    "train_batch_size": 8,
    "max_train_steps": STEPS,
    "checkpointing_steps": 1,
    "checkpoints_total_limit": 3,
    "logging_steps": 2,
    "posthoc_ema_steps": 4,
    "validation_steps": 5,
    "num_validation_samples": 8,
}
KINDS = {
    "one process": (1, {}),
    "two processes": (2, {"train_batch_size": 4}),
    "a stream": (1, {"streaming": True, "shuffle_buffer_size": 12}),
}


def ended(processes: list, timeout: float, folder: Path | None = None, step: int = 0) -> bool:
    """Whether they end by themselves within a time, counted from when `folder` has a checkpoint of `step` or later."""
    until = time.monotonic() + (timeout if folder is None else 300)
    while time.monotonic() < until and any(process.is_alive() for process in processes):
        time.sleep(0.001)
        if folder is not None and any(int(p.name.split("-")[1]) >= step for p in folder.glob("checkpoint-*")):
            until, folder = time.monotonic() + timeout, None
        if any(process.exitcode for process in processes):  # a launcher ends the others
            kill(processes)
    return not any(process.is_alive() for process in processes)


def whole(folder: Path) -> int:
    """The step of the newest checkpoint that its checksums say is whole; 0 where there is none."""
    for path in reversed(checkpoint.found(folder)):
        try:
            return checkpoint.load(path)[1]["step"]
        except UserError:
            continue
    return 0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        folder
    )
    ByT5Tokenizer(model_max_length=32).save_pretrained(folder)
    return folder


def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(tmp_path, encoder, pytestconfig, capsys):
    kills, seed = pytestconfig.getoption("--kills"), pytestconfig.getoption("--faults-seed")
    rng, counts = random.Random(seed), Counter()
    references = {}
    server()  # whose start is no part of a run's time
    for kind, (world, differences) in KINDS.items():
        settings = FAULTY | {"text_encoder_name_or_path": encoder} | differences
        folder = tmp_path / kind / "run"
        folder.parent.mkdir()
        began = time.monotonic()
        processes = start(folder, world, settings)
        assert ended(processes, 300), "the run that is not killed hangs"
        assert [process.exitcode for process in processes] == [0] * world, (folder.parent / "output-0.txt").read_text()
        references[kind] = folder, settings, time.monotonic() - began

    killed = victim = 0
    while killed < kills:
        kind = list(KINDS)[victim % len(KINDS)]
        victim += 1
        reference, settings, duration = references[kind]
        folder = tmp_path / f"{victim}" / "run"
        folder.parent.mkdir()
        last = 0
        for attempt in range(6):
            processes = start(folder, KINDS[kind][0], settings)
            if rng.random() < 0.3:  # anywhere
                moment = [rng.uniform(0.05, 0.8) * duration]
            else:  # in the steps and checkpoints, which take some 40 ms each
                moment = [rng.uniform(0, 0.08), folder, rng.randint(min(last, STEPS - 1), STEPS)]
            if attempt < 5 and killed < kills and not ended(processes, *moment):
                survivors = processes[:]
                rng.shuffle(survivors)
                os.kill(survivors[0].pid, signal.SIGKILL)
                if rng.random() < 0.5:
                    time.sleep(rng.uniform(0, 0.2))  # what the other one does alone
                kill(processes)
                killed += 1
                counts[kind] += 1
                now = whole(folder)
                counts["lost"] += now < last
                counts["after the first checkpoint"] += now > 0
                counts["in a checkpoint"] += bool(list(folder.glob(".mezzotint/checkpoint-*")))
                counts["in the second epoch or later"] += now > 5
                last = max(last, now)
                continue
            if not ended(processes, 60 + 10 * duration):
                kill(processes)
                counts["hung"] += 1
            break
        if [process.exitcode for process in processes] != [0] * len(processes):
            counts["failed"] += 1
            print((folder.parent / "output-0.txt").read_text()[-3000:])
            continue
        try:
            assert_same_end(folder, reference, STEPS)
            counts["same"] += 1
        except AssertionError as error:
            counts["divergent"] += 1
            print(f"run {victim} of {kind}: {error}")
    with capsys.disabled():
        print(f"\n{killed} kills (seed {seed}) of {victim} runs: {json.dumps(counts)}")
    assert not any(counts[name] for name in ("lost", "hung", "failed", "divergent"))
    assert counts["same"] == victim and killed == kills


def test_of_two_launches_in_one_folder_one_runs_and_the_other_is_refused(tmp_path):
    """Begun at once, and again while it runs; then the one that runs is killed, and the next one goes on at once."""
    settings = {"checkpointing_steps": 1, "checkpoints_total_limit": 3, "logging_steps": 2, "max_train_steps": 100_000}
    folder, output = tmp_path / "run", tmp_path / "output-0.txt"
    processes = start(folder, 1, settings) + start(folder, 1, settings)
    try:
        until = time.monotonic() + 300
        while time.monotonic() < until and (not checkpoint.found(folder) or all(x.is_alive() for x in processes)):
            time.sleep(0.01)
        processes += start(folder, 1, settings)
        processes[2].join(300)
        refused, running = sorted(processes[:2], key=lambda process: process.is_alive())
        assert (refused.exitcode, processes[2].exitcode) == (2, 2) and running.is_alive()
    finally:
        kill(processes)
    line = f"mezzotint: output_dir {folder} is in use by process {running.pid} on {socket.gethostname()}: "
    assert output.read_text().count(line) == 2
    last = whole(folder)
    processes = start(folder, 1, settings | {"max_train_steps": last + 1})
    assert ended(processes, 300) and processes[0].exitcode == 0, output.read_text()
    # A checkpoint that was complete when its writer was killed, and had not got its name yet, is found as well
    going_on = int(re.search(r"^going on from step (\d+)$", output.read_text(), re.MULTILINE)[1])
    assert going_on in (last, last + 1) and not (folder / ".mezzotint").exists()
