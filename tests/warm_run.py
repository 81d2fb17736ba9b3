"""Imported by a process that runs are forked from: a run, whose late imports and the digits none of them repeats."""

import tempfile
from pathlib import Path

import torch
from tiny_run import digits, trained

from mezzotint_training.data import rows

torch.set_num_threads(1)  # before anything is computed: threads would not be there in a fork
with tempfile.TemporaryDirectory() as folder:
    trained(Path(folder) / "run", max_train_steps=1)
rows.digits = digits
