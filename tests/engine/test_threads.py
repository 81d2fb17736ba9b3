"""CPU threads: as many as the user said, else all cores; and they do not spin for long while they wait."""

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

ROOT = Path(__file__).parents[2]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
# A program of a run's kind: accelerate's state, then the threads
PROGRAM = """
import mezzotint_training, sys
assert "torch" not in sys.modules
from mezzotint_training.engine import threads
threads.settle({count})
import os, torch
print(torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
"""


def result(tmp_path: Path, *launcher: str, count: int | None = None, **environment: str) -> list[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(count=count))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "ACCELERATE_"))}
    words = [sys.executable, *launcher, str(program)]
    done = subprocess.run(words, env=kept | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


LAUNCH = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")


@pytest.mark.parametrize(
    ("launcher", "count", "environment", "threads"),
    [
        (LAUNCH, None, {}, CORES),  # where the launcher itself would take one
        (LAUNCH, None, {"OMP_NUM_THREADS": "1"}, 1),
        ((*LAUNCH, "--num_cpu_threads_per_process", "1"), None, {}, 1),
        ((), None, {"OMP_NUM_THREADS": "1"}, 1),
        ((), 3, {}, 3),
    ],
)
def test_the_threads_are_those_that_the_user_asked_for(tmp_path, launcher, count, environment, threads):
    assert result(tmp_path, *launcher, count=count, **environment) == [str(threads), "None", "6000"]


def test_what_the_user_said_of_waiting_stands(tmp_path):
    assert result(tmp_path, OMP_WAIT_POLICY="active", OMP_NUM_THREADS="1") == ["1", "active", "None"]


@pytest.mark.parametrize("program", ["train", "train_classifier"])
def test_a_program_that_is_run_as_a_file_decides_before_torch_is_imported(program):
    code = f"""
import os, runpy, sys
class Seen:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            os._exit(0)
sys.meta_path.insert(0, Seen())
runpy.run_path({str(ROOT / "training" / f"{program}.py")!r}, run_name="__main__")
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, timeout=60)
    assert done.stdout == "6000\n", done.stderr


Times = namedtuple("Times", ["user", "system", "idle", "iowait", "guest"])


@pytest.mark.parametrize(
    "threads, others, line",
    [
        (2, 0.0, None),
        (2, 0.4, None),
        (2, 1.0, "other programs keep 1.0 of 2 cores busy, and 2 threads wait for each other: "
         "--num_cpu_threads_per_process 1 may be faster"),
        (1, 3.0, None),  # one thread waits for none
    ],
)  # fmt: skip
def test_a_run_says_when_other_programs_take_its_cores(monkeypatch, threads, others, line):
    """In ten seconds of two cores, of which this process works for seven."""
    import psutil
    import torch

    from mezzotint_training.engine.threads import Neighbours

    before = Times(user=100.0, system=50.0, idle=1000.0, iowait=5.0, guest=20.0)
    # a guest's time is in the user's too
    after = Times(user=107.0 + 6 * others, system=50.0 + 4 * others, idle=1013.0, iowait=7.0, guest=20.0 + others)
    readings = {"monotonic": [30.0, 40.0], "process_time": [3.0, 10.0], "cpu_times": [before, after]}
    clocks = SimpleNamespace(**{name: mock.Mock(side_effect=values) for name, values in readings.items()})
    monkeypatch.setattr("mezzotint_training.engine.threads.time", clocks)
    monkeypatch.setattr(psutil, "cpu_times", clocks.cpu_times)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    neighbours = Neighbours()
    found = neighbours.lines()
    assert [one.split(None, 1)[1] for one in found] == ([line] if line else [])
