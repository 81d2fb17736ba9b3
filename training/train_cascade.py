# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Train a cascade, a base and one or two upscalers, to one pipeline (arXiv 2106.15282; Imagen, arXiv 2205.11487).

    mezzotint train-cascade --recipe digits
    mezzotint train-cascade --recipe emoji-64 --train_data_dir path/to/emoji-64 --text_encoder_name_or_path path/to/t5
    mezzotint train-cascade --train_data_dir pictures/ --resolution 64 --stages '{}' '{scale: 4}' --plan

Each stage is a run of `train.py` in a process of its own, whose memory is free when it ends: the first in
output_dir/stage-1, the next reads the text by the first one's encoder, frozen. Settings are in `config/cascade.py`;
--launch says what to launch a stage by, on several GPUs. The finished stages are joined in output_dir.

Exit codes, and what happens to a run that is stopped, are those of `train.py`: the same command goes on in the middle
of the stage where it stopped. A stage is not trained on once the next one has begun.
"""

import mezzotint_training  # noqa: F401 (before torch: it decides how threads wait)

# isort: split
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from mezzotint import MezzotintCascadePipeline, hub
from mezzotint_training.config.cascade import Stages
from mezzotint_training.config.errors import CannotGoOn, UserError, exit_code
from mezzotint_training.config.recipe import read_recipe
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.source import Rows, fingerprint, look_at, open_rows, sized
from mezzotint_training.engine import checkpoint
from mezzotint_training.engine.files import hold
from mezzotint_training.engine.process import make_accelerator
from mezzotint_training.engine.resume import CACHE, check_state, same_data, same_run, write_recipe
from mezzotint_training.networks.components import new_components
from mezzotint_training.networks.saved import load_pipeline
from mezzotint_training.publishing.checks import problems
from mezzotint_training.publishing.examples import Examples
from mezzotint_training.publishing.finish import METRICS, finish, without_place


def main(argv: list[str] | None = None) -> int:
    return exit_code(
        lambda: train(Stages.parsed(argv, __doc__ or "")),
        disk_full_hint="; free some space and run the same command again",
    )


def train(stages: Stages) -> int:
    """Train what is not trained yet of a cascade, stage by stage, and join it. Returns the exit code: 0, or that of a
    stage that ended with another, which it has said the reason of.

    Raises:
        UserError: for bad input of any stage, before anything is trained.
        CannotGoOn: for a stage whose process was ended from outside.
    """
    config, output_dir = stages.config, Path(stages.config.output_dir)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a cascade must be trained from one process, which launches those of each stage: got WORLD_SIZE "
            f"{os.environ['WORLD_SIZE']}; --launch 'accelerate launch --config_file ...' says how"
        )

    # 1. What each stage is, as far as it can be told before it is trained
    rows = open_rows(config)
    facts = look_at(rows, config, None)
    sizes = stages.sizes(*facts.size)
    encoder = None if config.plan else str(stages.folder(0))
    runs = [stages.settings(number, size, encoder) for number, size in enumerate(sizes)]
    check(runs, rows)
    if fatal := [text for text, is_fatal in problems(asdict(config), hub_name(stages)) if is_fatal]:
        raise UserError(fatal[0])
    if config.plan:
        return next(filter(None, (launched(stages, number, run, "--plan") for number, run in enumerate(runs))), 0)

    with hold(output_dir):
        # 2. How far each stage is
        check_place(stages)
        finished = [is_finished(run, rows) for run in runs]
        for number, (before, after) in enumerate(zip(runs[:-1], runs[1:], strict=True), 1):
            if not finished[number - 1] and checkpoint.found(Path(after.output_dir)):
                raise UserError(
                    f"stage {number} must not go on once stage {number + 1} has begun: got {before.max_train_steps:,} "
                    f"updates, which it has not taken; remove {after.output_dir}, or choose another output_dir"
                )
        write_recipe(replace(config, launch=None), output_dir)  # which is of this machine

        # 3. Train, each in a process of its own
        for number, run in enumerate(runs):
            if not finished[number] and (code := launched(stages, number, run)):
                return code

        # 4. Join
        if all(finished) and is_joined(stages):
            print(f"finished before: {output_dir}")
            return 0
        join(stages)
    return 0


def check(runs: list[TrainConfig], rows: Rows) -> None:
    """See that the stages' settings go together with the data and with each other: that each network can be made.

    Raises:
        UserError: where one cannot, with the number of the stage.
    """
    text = None
    for number, run in enumerate(runs, 1):
        try:
            facts = look_at(rows, run, None)
            run, _ = sized(run, facts)
            data: Any = SimpleNamespace(channels=facts.channels, statistics=lambda: ([0.0], [1.0]), about=facts.about)
            made = new_components(run, data, text=text)
        except UserError as error:
            raise UserError(f"stage {number}: {error}") from None
        text = made["text_encoder"], made["tokenizer"]


def check_place(stages: Stages) -> None:
    """See that `output_dir` is empty, or holds this cascade.

    Raises:
        UserError: where it holds something else.
    """
    folder = Path(stages.config.output_dir)
    if (folder / hub.RECIPE).is_file():
        # what a stage has of its own its run compares, and how it is launched makes no difference
        before = read_recipe(folder) | {name: getattr(stages.config, name) for name in ("stages", "launch")}
        same_run(stages.config, before, folder, "choose another output_dir, or remove that one")
    elif other := [path.name for path in folder.iterdir() if path.name not in (".mezzotint", CACHE)]:
        raise UserError(f"output_dir must be empty, new, or hold this cascade: {folder} holds {sorted(other)[0]}")


def is_finished(run: TrainConfig, rows: Rows) -> bool:
    """Whether a stage has taken all its updates, and its pipeline is there.

    Raises:
        UserError: where its folder holds another run, or a run on other data.
    """
    folder = Path(run.output_dir)
    found = checkpoint.latest(folder, check_state) if folder.is_dir() else None
    if found is None:
        return False
    state = found[1]
    run, _ = sized(run, look_at(rows, run, None))
    same_run(run, state["config"], folder, "a run goes on with the settings that it began with")
    same_data(state, fingerprint(rows, run), folder, print)
    late = run.max_train_minutes is not None and state["seconds"] >= 60 * run.max_train_minutes
    return (state["step"] >= run.max_train_steps or late) and (folder / hub.INDEX).is_file()


def launched(stages: Stages, number: int, run: TrainConfig, *flags: str) -> int:
    """Run `train.py` for a stage, and return its exit code. Signals are passed on to it.

    Raises:
        CannotGoOn: where a signal ended it.
    """
    height, width = run.resolution[0], run.resolution[-1]
    print(f"stage {number + 1} of {len(stages.config.stages)}: {height}x{width} pixels, {run.output_dir}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"stage-{number + 1}.yaml"
        path.write_text(yaml.safe_dump(run.given, sort_keys=False, allow_unicode=True), encoding="utf-8")
        words = shlex.split(stages.config.launch) if stages.config.launch else [sys.executable]
        code = called([*words, "-m", "mezzotint_training.train", "--config", str(path), *flags])
    if code < 0:
        raise CannotGoOn(
            f"stage {number + 1} was ended by signal {-code}; the same command goes on in the middle of it"
        )
    return code


def called(command: list[str]) -> int:
    """Run a command to its end, with the signals that this process gets, and return its exit code, negative for a
    signal.

    Raises:
        UserError: for a command that there is not.
    """
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise UserError(f"launch must name a command that can be run: {error}") from None
    with passed_on(process):
        return process.wait()


@contextlib.contextmanager
def passed_on(process: subprocess.Popen) -> Iterator[None]:
    """A context in which SIGTERM and SIGINT (Ctrl-C) are the process's."""
    if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
        yield
        return
    both = (signal.SIGTERM, signal.SIGINT)
    before = {one: signal.signal(one, lambda number, _: process.send_signal(number)) for one in both}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_joined(stages: Stages) -> bool:
    """Whether the pipeline in `output_dir` is of the stages as they are: of finished ones only the scheduler can have
    changed since, which may have been fitted."""
    folder = Path(stages.config.output_dir)
    if not (folder / hub.INDEX).is_file():
        return False
    for number in range(len(stages.config.stages)):
        joined = folder / f"scheduler{f'_{number + 1}' if number else ''}" / "scheduler_config.json"
        own = stages.folder(number) / "scheduler" / "scheduler_config.json"
        if not joined.is_file() or joined.read_bytes() != own.read_bytes():
            return False
    return True


def join(stages: Stages) -> None:
    """Write the finished stages as one pipeline, with its card and its figures, as `train.py` does one.

    Raises:
        UserError: for stages that do not fit together.
        CannotGoOn: as `finish` does.
    """
    config, output_dir = stages.config, Path(stages.config.output_dir)
    folders = [stages.folder(number) for number in range(len(config.stages))]
    measured = [json.loads((folder / METRICS).read_text(encoding="utf-8")) for folder in folders]
    try:
        pipe = MezzotintCascadePipeline.from_stages(*(load_pipeline(folder) for folder in folders))
    except ValueError as error:
        raise UserError(str(error)) from None
    accelerator = make_accelerator(config, output_dir)
    parameters = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in pipe.components.items()
        if name.startswith(("unet", "text_encoder")) and network is not None
    }
    metrics = measured[-1] | {
        "updates": 1,
        "steps": sum(one["steps"] for one in measured),
        "seconds": sum(one["seconds"] for one in measured),
        "peak_memory": max(one["peak_memory"] or 0 for one in measured),
        "energy": sum(one["energy"] for one in measured) if all(one.get("energy") for one in measured) else None,
        "parameters": parameters,
        "command": shlex.join(["mezzotint", "train-cascade", *map(without_place, without_launch(config.argv))]),
        "load_back": None,
        "stages": [
            {name: value for name, value in one.items() if name not in ("plan", "load_back")}
            | {"size": one["plan"]["data"]["size"], "batch": one["plan"]["batches"]["update"]}
            for one in measured
        ],
    }
    finish(pipe.to(accelerator.device), config, output_dir, metrics, accelerator, Examples(config.validation_prompts))
    accelerator.end_training()


def without_launch(words: list[str]) -> list[str]:
    """The words of a command line but for `--launch`, which is of this machine."""
    pairs = zip(["", *words], words, strict=False)
    return [word for before, word in pairs if "--launch" not in (before, word) and not word.startswith("--launch=")]


def hub_name(stages: Stages) -> str:
    """The repository that the cascade would be uploaded to."""
    return stages.config.hub_model_id or Path(stages.config.output_dir).name


if __name__ == "__main__":
    sys.exit(main())
