# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The plan: what a run will do and cost, before step 1. `--plan` prints it and stops; every run begins with it.

`make_plan` gathers facts as plain data, which `metrics.json` keeps beside what the run then measured; `lines` and
`time_lines` put them into words. Nothing here writes to the disk, and nothing is looked up in a table of machines:
memory and seconds are measured on batches of the run.
"""

import copy
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.engine import sharding
from mezzotint_training.engine.process import agreed, end_together
from mezzotint_training.engine.progress import peak_memory

STEPS = 20  # that `--plan` takes, and after which a run says how long it will take
WARM_UP = 3  # of them, not counted: allocations, compilation, caches
SHARE = 0.9  # of the memory there is that the largest batch may fill
SHOWN = 20  # rows to be dropped that a run shows; `--plan` shows all
MEASURES = ("heights", "widths", "seconds", "tokens")  # of samples, of what modality they are
PATIENCE = 10.0  # seconds after which `memory` tries no batch beyond the run's own


# ---------------------------------------------------------------------------------------------------------- the facts


def make_plan(
    config: TrainConfig,
    data: dict[str, Any],
    derived: Sequence[str],
    components: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    try_batch: Callable[[int], Any],
    problems: Sequence[str],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The plan, but for its seconds: what the run will do, and the memory that it will take, measured on its data. All
    processes call this.

    Args:
        config: the run's settings.
        data: what `Lint.facts` returned.
        derived: a line for each setting that was derived from the data.
        components: of the pipeline.
        parameters, optimizer: what is trained, by name, and by what.
        try_batch: forward and backward pass on so many pictures, the gradients then thrown away.
        problems: what would prevent a publication.
        accelerator: of the run.
    """
    device, world = accelerator.device, accelerator.num_processes
    shards = world if sharding.sharded(accelerator) else 1
    still_to_come = 0 if optimizer.state else state_bytes(config, optimizer) // shards
    return {
        "data": data,
        "networks": networks(components),
        "batches": batches(config, None if config.streaming else data["pictures"], world),
        "derived": list(derived),
        "memory": memory(
            try_batch,
            lambda: peak_memory(device),
            config.train_batch_size,
            still_to_come,
            available_memory(device, int(os.environ.get("LOCAL_WORLD_SIZE", 1))),
            beyond=config.plan,
            agreed=lambda vote: agreed(accelerator, vote)[0],
        ),
        "disk": disk(config, parameters, components, optimizer),
        "problems": list(problems),
    }


def networks(components: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Parameters of each component, and how many of them are trained."""
    return {
        name: {
            "parameters": sum(p.numel() for p in module.parameters()),
            "trained": sum(p.numel() for p in module.parameters() if p.requires_grad),
        }
        for name, module in components.items()
        if isinstance(module, torch.nn.Module)
    }


def batches(config: TrainConfig, pictures: int | None, processes: int) -> dict[str, Any]:
    """What an update consists of, and how often the run goes over its `pictures` (`None` for a stream)."""
    update = config.train_batch_size * config.gradient_accumulation_steps * processes
    return {
        "train_batch_size": config.train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "processes": processes,
        "update": update,
        "updates": config.max_train_steps,
        "updates_per_epoch": pictures / update if pictures else None,
        "epochs": config.max_train_steps * update / pictures if pictures else None,
    }


def state_bytes(config: TrainConfig, optimizer: torch.optim.Optimizer) -> int:
    """The optimizer's state: what is there once it has taken a step, before that what its algorithm will keep."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # within accelerate's
    there = sum(_bytes(x for x in entry.values() if torch.is_tensor(x)) for entry in optimizer.state.values())
    if there:
        return there
    # Two moments in float32; of Muon's matrices one; of Prodigy also its starting point and a sum of gradients
    total = 0.0
    for group in optimizer.param_groups:
        for n in (p.numel() for p in group["params"]):
            if config.optimizer == "adamw_8bit" and n >= 4096:
                total += n * (2 + 8 / 256)  # with a scale for each block of 256, of either moment
            else:
                total += n * (4 if "ns_steps" in group else 16 if config.optimizer == "prodigy" else 8)
    return int(total)


def disk(
    config: TrainConfig, named: Mapping[str, torch.Tensor], components: Mapping[str, Any], optimizer: Any
) -> dict[str, Any]:
    """The most bytes that the run will keep on disk, by what is saved, and the bytes that are free there.

    Args:
        named: the trained parameters by name.
        components: of the pipeline that is saved in the end.
        optimizer: of those parameters.
    """
    weights = _bytes(named.values())
    checkpoint = {"weights": weights, "optimizer": state_bytes(config, optimizer)}
    checkpoint |= {"ema": weights} if config.use_ema else {}
    checkpoint |= {"posthoc_ema": 2 * weights} if config.posthoc_ema_steps else {}  # two averages
    kept = math.ceil(config.max_train_steps / config.checkpointing_steps)
    if config.checkpoints_total_limit is not None:
        kept = min(kept, config.checkpoints_total_limit + 1)  # the new one is whole before the oldest goes
    snapshots = config.max_train_steps // config.posthoc_ema_steps if config.posthoc_ema_steps else 0
    pipeline = sum(_bytes(x.state_dict().values()) for x in components.values() if isinstance(x, torch.nn.Module))
    place = Path(config.output_dir).absolute()
    while not place.exists():
        place = place.parent
    return {
        "checkpoint": checkpoint,
        "checkpoints": kept,
        "snapshot": weights,  # both in half precision
        "snapshots": snapshots,
        "pipeline": pipeline,
        "total": kept * sum(checkpoint.values()) + snapshots * weights + pipeline,
        "free": shutil.disk_usage(place).free,
    }


def memory(
    step: Callable[[int], Any],
    peak: Callable[[], int],
    batch_size: int,
    still_to_come: int,
    available: int,
    beyond: bool = False,
    agreed: Callable[[bool], bool] = bool,
) -> dict[str, Any]:
    """Peak memory of the run and the largest batch that fits, from the peaks of real batches that double in size.

    The peaks of a process only rise: one that does not is that of something before, and says nothing of the line. A
    batch that by the line so far would not fit is not tried; the line is drawn on to it.

    Args:
        step: forward and backward pass on so many pictures, the gradients then thrown away.
        peak: the most bytes that were held so far.
        batch_size: `train_batch_size`.
        still_to_come: bytes that the run allocates in its first update: the optimizer's state.
        available: bytes that this process can have.
        beyond: if no slope is seen up to `batch_size`, go on up to 16 times that; for `--plan`, as the peak that is
            measured afterwards would be this one's.
        agreed: whether any process says so; they stop together.
    """
    sizes = sorted({max(1, batch_size // share) for share in (8, 4, 2, 1)})
    sizes = [size for size in (64, 256, 1024, 4096, 16384) if 4 * size <= sizes[0]] + sizes  # of a batch beyond sense
    sizes += [batch_size * factor for factor in (2, 4, 8, 16)] if beyond else []
    measured, risen = {0: peak()}, []
    fixed, slope, started = 0.0, 0.0, time.perf_counter()
    room = SHARE * available - still_to_come
    for size in sizes:
        enough = size > batch_size and (slope > 0 or time.perf_counter() - started > PATIENCE)
        if agreed(enough or slope > 0 and fixed + slope * size > room):
            break
        step(size)
        highest, measured[size] = max(measured.values()), peak()
        if measured[size] > highest:
            risen.append((size, measured[size]))
        if len(risen) > 1:
            (n0, p0), (n1, p1) = risen[-2:]
            slope = (p1 - p0) / (n1 - n0)
            fixed = p1 - slope * n1
    here = measured.get(batch_size, fixed + slope * batch_size)
    return {
        "peak": int(here + still_to_come),
        "available": available,
        "per_picture": int(slope),
        "fits": max(int((room - fixed) // slope), 0) if slope > 0 else None,
        "measured_at": list(measured)[1:],
    }


def available_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that this process can hold at its peak: of its GPU, or its share of the machine's or container's memory.

    Args:
        processes: on this machine, which share it.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    import psutil  # accelerate's

    free = [psutil.virtual_memory().available]
    groups = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),  # version 2, and 1
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if os.access(groups / limit, os.R_OK) and (most := (groups / limit).read_text().strip()).isdecimal():
            free.append(int(most) - int((groups / used).read_text()))
    return max(min(free), 0) // processes + psutil.Process().memory_info().rss


def seconds(
    config: TrainConfig,
    steps: Sequence[float],
    waits: Sequence[float],
    step: int,
    processes: int = 1,
    passes: int = 0,
    evaluations: int = 3,
) -> dict[str, Any]:
    """Seconds of a step and to the run's end, from some of its steps.

    A picture's forward pass, for drawings and held-out losses, is reckoned as its part of a step over the `evaluations`
    in that, by default three, as the backward pass costs two. Checkpoints take the disk's time, which is not in it.

    Args:
        steps, waits: of each step the seconds in all, and those of them that it waited for data; the first `WARM_UP`
            are left out where there are more.
        step: updates done.
        processes: of the run.
        passes: pictures that a process passes through the network, forward only, for the held-out losses of one time.
        evaluations: passes of the network that a picture of a step costs.
    """
    counted = slice(WARM_UP if len(steps) > WARM_UP else 0, None)
    each = statistics.median(steps[counted])
    pictures = config.train_batch_size * config.gradient_accumulation_steps
    forward = each / (evaluations * pictures)
    left = max(config.max_train_steps - step, 0)
    times = math.ceil(config.max_train_steps / config.validation_steps) - step // config.validation_steps
    drawn = len(config.validation_prompts) * config.num_validation_images
    drawn *= config.num_inference_steps * (2 if config.guidance_scale != 1 else 1)
    parts = {"training": left * each, "drawings": times * drawn * forward, "held-out losses": times * passes * forward}
    total, cut = sum(parts.values()), None
    if config.max_train_minutes is not None and 60 * config.max_train_minutes < total:
        limit = 60 * config.max_train_minutes
        cut = {"minutes": config.max_train_minutes, "left": int(left * limit / total)}
        cut["rate_falls"] = not config.lr_scheduler.startswith("constant")
        total = limit
    return {
        "seconds_per_step": each,
        "images_per_second": pictures * processes / each,
        "data_wait": sum(waits[counted]) / sum(steps[counted]),
        "measured_over": len(steps[counted]),
        "step": step,
        "left": left,
        "parts": {name: value for name, value in parts.items() if value > 0},
        "total": total,
        "cut": cut,
    }


# ------------------------------------------------------------------------------------------------------ in plain words


def lines(plan: Mapping[str, Any], every_row: bool = False) -> list[str]:
    """The lines of the plan; what was not measured is left out.

    Args:
        plan: what `make_plan` returned, or a part of it.
        every_row: show all rows that will be dropped, not the first `SHOWN`.
    """
    said: list[tuple[str, str]] = []
    if of := plan.get("data"):
        columns = (
            f"{use} from {(' and ' if use == 'attributes' else ' or ').join(map(repr, names))}"
            for use, names in of["columns"].items()
        )
        said.append(("columns", ", ".join(columns)))
        sides = (f"{name} {_range(of[name])}" for name in MEASURES if name in of)
        size = "x".join(map(str, of["size"]))
        word = of.get("word", "picture")
        text = f"{of['pictures']:,} of {of['rows']:,} rows; {', '.join(sides)}; trained at {size}"
        said.append((f"{word}s", text))
        if len(of["buckets"]) > 1:
            said.append(("buckets", ", ".join(f"{size}: {count:,}" for size, count in of["buckets"].items())))
        text = f"{of['different_captions']:,} different"
        text += f"; {_range(of['captions_each'])} a {word}" if "captions_each" in of else ""
        text += f"; tokens {_range(of['caption_lengths'])}" if "caption_lengths" in of else ""
        if "caption" in of["columns"]:
            said.append(("captions", text))
        if "balance" in of:
            text = (
                "{values:,} values of {column!r}; a row of the most frequent one ({most_frequent}, {rows:,} rows) is "
                "drawn {weight:.2g} times as often as a row whose value no other has"
            )
            said.append(("balance", text.format(**of["balance"])))
        for what, count, where in of["findings"]:
            rows = ", ".join(map(str, where)) + (", ..." if count > len(where) else "")
            said.append(("found", f"{what}: {count:,} of {of['looked_at']:,} looked at (rows {rows})"))
        shown = of["dropped"] if every_row else of["dropped"][:SHOWN]
        said.append(("dropped", f"{len(of['dropped']):,} rows" if of["dropped"] else "no row"))
        said += [("", row) for row in shown]
        if len(shown) < len(of["dropped"]):
            said.append(("", f"and {len(of['dropped']) - len(shown):,} more; --plan shows them all"))
    for name, of in plan.get("networks", {}).items():
        trained = {0: "frozen", of["parameters"]: "trained"}.get(of["trained"], f"{of['trained']:,} trained")
        said.append((name, f"{of['parameters']:,} parameters, {trained}"))
    if of := plan.get("batches"):
        text = f"{of['update']:,} pictures an update (train_batch_size {of['train_batch_size']} x "
        text += f"{of['gradient_accumulation_steps']} micro-steps x {of['processes']} processes), "
        text += f"{of['updates']:,} updates"
        if of["epochs"] is not None:
            text += f", {of['updates_per_epoch']:,.1f} an epoch: {of['epochs']:,.1f} epochs"
        said.append(("batch", text))
    said += [("derived", line) for line in plan.get("derived", [])]
    if of := plan.get("memory"):
        fits = f"up to {of['fits']:,}" if of["fits"] is not None else f"of {max(of['measured_at']):,} and more"
        said.append(
            (
                "memory",
                f"{_size(of['peak'])} at the peak of {_size(of['available'])}; fitting is a train_batch_size {fits}",
            )
        )
        if of["peak"] > of["available"]:
            said.append(("warning", "the batch does not fit: less train_batch_size, more gradient_accumulation_steps"))
    if of := plan.get("disk"):
        parts = ", ".join(f"{name} {_size(n)}" for name, n in of["checkpoint"].items())
        text = f"{_size(of['total'])} of {_size(of['free'])} free: {of['checkpoints']} checkpoints of "
        text += f"{_size(sum(of['checkpoint'].values()))} ({parts}), "
        text += f"{of['snapshots']} snapshots of {_size(of['snapshot'])}, " if of["snapshots"] else ""
        said.append(("disk", f"{text}pipeline {_size(of['pipeline'])}"))
        if of["total"] > of["free"]:
            said.append(("warning", "the disk is too small for it: less checkpoints_total_limit, another output_dir"))
    said += [("hub", problem) for problem in plan.get("problems", [])]
    return [f"{what:<12} {text}" for what, text in said]


def time_lines(of: Mapping[str, Any], now: datetime | None = None) -> list[str]:
    """The result of `seconds` in words, with the time of day at which the run will end."""
    days = of["total"] / 86400
    end = f", until {(now or datetime.now()) + timedelta(days):%Y-%m-%d %H:%M}" if days < 365_000 else ""
    parts = ", ".join(f"{name} {_span(value)}" for name, value in of["parts"].items())
    steps, cut = f"{of['left']:,} steps", ""
    if of["cut"]:
        fit = of["cut"]["left"]
        steps = f"about {fit:,} of {steps}"
        cut = f"; max_train_minutes {of['cut']['minutes']:g} ends it there"
        if of["cut"]["rate_falls"]:
            cut += f", before the learning rate has fallen: max_train_steps {of['step'] + fit:,} lets it fall"
    return [
        f"{'speed':<12} {of['seconds_per_step']:.3g} s a step (median of {of['measured_over']}), "
        f"{of['images_per_second']:.3g} images/s, {of['data_wait']:.0%} of the time waiting for data",
        f"{'time':<12} {_span(of['total'])} for {steps}{end} ({parts}){cut}",
    ]


def listing_all(config: TrainConfig) -> tuple[TrainConfig, bool]:
    """The settings by which a plan lists every bad row instead of stopping at the first, and whether the run itself
    stops there."""
    stops = config.on_bad_row == "stop"
    if config.plan:
        config = copy.copy(config)
        config.on_bad_row = "skip"
    return config, stops


def rehearse(
    update: Callable[[], Any],
    tell_time: Callable[[int], None],
    step: int,
    planned: Mapping[str, Any],
    stops: bool,
    accelerator: Accelerator,
) -> None:
    """End a plan: take the updates that its time is told by, and tell that and the whole. All processes call this.

    Args:
        update: takes one update.
        tell_time: tells the time, given the step that they began at, which it adds to `planned`.
        step: that they begin at.
        planned: the plan.
        stops: whether the run will stop at a bad row that there is.
    """
    if stops:
        accelerator.print(
            f"{'warning':<12} the run will stop at the first of these rows; --on_bad_row skip goes on without them"
        )
    for _ in range(STEPS):
        update()
    tell_time(step)
    accelerator.print(json.dumps(planned))
    end_together(accelerator)


def _range(values: Sequence[float]) -> str:
    least, median, most = values
    return f"{least:,}" if least == most else f"{least:,} to {most:,} (median {median:,g})"


def _size(number: float) -> str:
    """Bytes for people: 12 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _span(number: float) -> str:
    """Seconds for people: 4.2 min."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72)):
        if number < most * length:
            return f"{number / length:.3g} {unit}"
    return f"{number / 86400:.3g} days"


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
