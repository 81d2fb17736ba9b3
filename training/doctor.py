# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Say what works here and what does not: of this installation, of a run's folder or any saved pipeline, or of a data
set; and what mends it.

    mezzotint doctor
    mezzotint doctor runs/digits --hub_model_id user/digits
    mezzotint doctor pictures/ --caption_column text

Of an installation: versions, device, and for each extra what is missing and the pip command that brings it. Of a
folder: whether it holds a finished pipeline or a run in the middle, whose code it carries, whether it loads and draws
where mezzotint is not installed, and what the Hub would refuse. Of a data set: what training would find in it. Nothing
is changed, and nothing uploaded.

Each line begins with ok, note or wrong. Exit codes: 0 nothing is wrong, 1 something is, 2 bad input.
"""

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from packaging.requirements import Requirement

from mezzotint import hub
from mezzotint_training.config.arguments import DOCTOR_DATA, parser_of
from mezzotint_training.config.errors import CannotGoOn, UserError, exit_code, one_line
from mezzotint_training.config.recipe import read_recipe
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.engine.machine import hardware

# What the extras are for; those for working on mezzotint itself are left out
EXTRAS = {
    "train": "training, evaluating and publishing",
    "evaluate": "mezzotint evaluate --features inception",
    "optimizers": "--optimizer adamw_8bit, prodigy and schedule_free",
    "trackio": "--report_to trackio",
    "audio": "sounds",
    "video": "video files",
    "voxels": "meshes",
    "molecules": "molecules",
    "demo": "mezzotint demo",
    "benchmarks": "training/benchmarks",
}


class Finding(NamedTuple):
    """One line of the report."""

    kind: Literal["ok", "note", "wrong"]
    text: str


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("doctor")

    def program() -> int:
        args, wrong = parser.parse_args(argv), False
        for found in examine(args):
            print(f"{found.kind:<6} {found.text}", flush=True)
            wrong |= found.kind == "wrong"
        return int(wrong)

    return exit_code(program)


def examine(args: argparse.Namespace) -> Iterator[Finding]:
    """All findings, each as soon as it is made.

    Raises:
        UserError: for a folder that is not there.
    """
    yield from installation()
    if args.what is None:
        yield from token(args.hub_model_id)
        return
    folder = Path(args.what)
    if not folder.exists() and (hub.is_path(args.what) or args.what.count("/") > 1):
        raise UserError(f"doctor needs a folder that is there, or a data set's name: got {args.what}")
    if any((folder / name).is_file() for name in (hub.INDEX, hub.ADAPTERS, hub.RECIPE)):
        yield from a_folder(folder, args)
        yield from token(args.hub_model_id)
    else:
        yield from a_data_set(args)


# ------------------------------------------------------------------------------------------------------------- parts


def installation() -> Iterator[Finding]:
    """What is installed, and what each extra lacks, by the package's own metadata."""
    missing: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("mezzotint") or ():
        needs = Requirement(line)
        extra = next((x for x in EXTRAS if needs.marker is not None and needs.marker.evaluate({"extra": x})), "")
        if needs.name == "mezzotint" or (needs.marker is not None and not extra):
            continue
        try:
            there = importlib.metadata.version(needs.name)
        except importlib.metadata.PackageNotFoundError:
            there = None
        if there is None or not needs.specifier.contains(there, prereleases=True):
            got = "" if there is None else f" (there is {there})"
            missing.setdefault(extra, []).append(f"{needs.name}{needs.specifier}{got}")
    names = ("mezzotint", "torch", "diffusers", "transformers", "huggingface_hub")
    installed = {name: importlib.metadata.version(name) for name in names if name not in str(missing.get(""))}
    yield Finding("ok", f"python {sys.version.split()[0]}, {', '.join(f'{k} {v}' for k, v in installed.items())}")
    if lacks := missing.pop("", None):
        yield Finding("wrong", f"mezzotint itself lacks {', '.join(lacks)}: pip install mezzotint")
    for extra, lacks in missing.items():
        yield Finding("note", f"{EXTRAS[extra]} lacks {', '.join(lacks)}: pip install 'mezzotint[{extra}]'")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            device = torch.device("cuda", number)
            free, total = (x / 1e9 for x in torch.cuda.mem_get_info(device))
            yield Finding("ok", f"GPU {number}: {hardware(device)}, {free:.3g} of {total:.3g} GB free")
    else:
        mps = torch.backends.mps.is_available()
        yield Finding("ok", f"{hardware(torch.device('mps' if mps else 'cpu'))}; there is no CUDA GPU")


def token(name: str | None) -> Iterator[Finding]:
    """Whether the Hub would take an upload, as `name` if one is given."""
    refused = hub.refusals(name or "any")
    for line in refused:
        yield Finding("note" if name is None else "wrong", line)
    if not refused:
        yield Finding("ok", f"the Hub's token may write{f' to {name}' if name else ''}")


def a_folder(folder: Path, args: argparse.Namespace) -> Iterator[Finding]:
    """What a run's folder, or a saved pipeline, is good for."""
    from mezzotint_training.publishing import card, publication

    finished = any((folder / name).is_file() for name in (hub.INDEX, hub.ADAPTERS))
    stages = sorted(folder.glob("stage-[1-3]"))  # of a cascade
    for stage in stages:
        for kind, line in the_run(stage, (stage / hub.INDEX).is_file()):
            yield Finding(kind, f"{stage.name}: {line}")
    if not stages:
        yield from the_run(folder, finished)
    elif not finished:
        yield Finding("wrong", "no finished cascade; the same command goes on with its stages")
    if not finished:
        return
    try:
        ready, refused = publication.prepare(folder, license=None)
    except UserError as error:
        yield Finding("wrong", str(error))
        return
    yield Finding("ok", f"{ready.content.title}: {len(ready.content.files)} files, {ready.bytes:,} bytes to publish")
    if ready.content.left_out:
        yield Finding("note", f"left out of a publication: {', '.join(ready.content.left_out[:10])}")
    for line in refused:
        yield Finding("wrong", f"to be published: {line}")
    if ready.foreign:
        yield Finding("note", f"its code is not the installed package's: {', '.join(ready.foreign)}")
    else:
        yield Finding("ok", "its code is the installed package's, byte for byte")
    try:
        proof = publication.proof(ready)
        yield Finding("ok", "it loads by the installed package's code, and draws")
        if ready.foreign and not args.trust_remote_code:
            yield Finding("note", "not loaded as a stranger would, which runs that code: --trust_remote_code does")
        else:
            verdict = publication.as_a_stranger(ready, proof)
            where = f"where mezzotint is not installed it draws {verdict} ({verdict.seconds:.1f} s)"
            yield Finding("ok" if verdict.same else "wrong", where)
    except (UserError, CannotGoOn) as error:
        yield Finding("wrong", one_line(error))
    if card.of_a_run(folder) and not (folder / card.EVALUATION).is_file():
        yield Finding("note", f"it was not evaluated: `mezzotint evaluate {folder} --card`, or publish does it")


def the_run(folder: Path, finished: bool) -> Iterator[Finding]:
    """How far the run of a folder is, by its recipe, its figures and its checkpoints."""
    from mezzotint_training.engine import checkpoint

    try:
        most = read_recipe(folder).get("max_train_steps")
    except UserError as error:
        yield Finding("wrong", str(error))
        return
    whole, places = None, checkpoint.found(folder)
    for place in places:
        try:
            _, state = checkpoint.load(place)
            whole = state["step"]
        except UserError as error:
            yield Finding("wrong", f"{error}: the one before is taken")
    of = f" of {most:,}" if isinstance(most, int) else ""
    if finished:
        try:
            steps = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["steps"]
            yield Finding("ok", f"a finished run of {steps:,} updates{of}")
        except (OSError, ValueError, KeyError, TypeError):
            yield Finding("ok", "a finished pipeline, with no figures of a run beside it")
        return
    if whole is None:
        yield Finding("wrong", "no finished pipeline, and no whole checkpoint: the same command begins anew")
        return
    last = f"a run in the middle: its last whole checkpoint is of update {whole:,}{of}, of {len(places)} checkpoints"
    yield Finding("wrong", f"no finished pipeline; {last}; the same command goes on from there")


def a_data_set(args: argparse.Namespace) -> Iterator[Finding]:
    """What training would find in a set."""
    from accelerate import Accelerator

    from mezzotint_training.data.source import Source, look_at, open_rows, sized
    from mezzotint_training.engine import plan

    place = "train_data_dir" if Path(args.what).exists() else "dataset_name"
    given = {name: value for name in DOCTOR_DATA if (value := getattr(args, name)) is not None}
    config = TrainConfig(**{place: args.what}, **given, on_bad_row="skip", report_to="none")
    try:
        rows = open_rows(config)
        facts = look_at(rows, config, None)
        config, _ = sized(config, facts)
        found = Source(rows, config, facts, Accelerator(cpu=True)).facts(None)
    except UserError as error:
        yield Finding("wrong", str(error))
        return
    kinds = {"found": "note"} | ({"dropped": "wrong", "": "wrong"} if found["dropped"] else {})
    for line in plan.lines({"data": found}):
        yield Finding(kinds.get(line[:12].strip(), "ok"), line)
    if found["dropped"]:
        yield Finding("note", "training stops at the first of these rows; --on_bad_row skip goes on without them")


if __name__ == "__main__":
    sys.exit(main())
