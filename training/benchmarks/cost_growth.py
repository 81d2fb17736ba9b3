# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What a training step of the U-Net costs as pictures and networks grow, and where attention begins to dominate.

    python training/benchmarks/cost_growth.py
    python training/benchmarks/cost_growth.py --threads 1 --cpu_time --limit 40
    python training/benchmarks/cost_growth.py --batch 64 --mixed_precision bf16

A step is forward, backward and AdamW of the U-Net alone. Each cell, a size at a resolution, is a process of its own, so
that its peak memory is its own too; the cells of a size step by turns, and the median of their steps is kept. The
shapes are those that `--size` derives, which change with the resolution, and then the one of `--shape_of` pixels at
every resolution. Operations (a multiplication and an addition are two) and memory (of weights, gradients, AdamW's two
moments and what is saved for the backward pass) are counted also for cells that would take too long or not fit; these
are not run. Attention is the scaled dot products, and convolutions and linear layers the rest of the operations.

An exponent is the slope of a straight line through logarithms, with the interval that least squares gives it (95 %,
Student's t). It speaks of how far the points are from a power law, more than of noise.

The last table is of one unit of the U-Net at one level: a residual block, and that size's transformer layers, whose
self-attention has a part that grows with the square of the positions.
"""

import argparse
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.stats import linregress, t
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mezzotint import MezzotintUNetModel
from mezzotint.models.blocks_mezzotint import MezzotintResidualBlock, MezzotintTransformerLayer
from mezzotint_training.benchmarks.train_speed import DTYPES, UTILISATION, peak_flops, settings
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import Help
from mezzotint_training.config.sizes import SIZES
from mezzotint_training.engine.progress import peak_memory

aten: Any = torch.ops.aten
# torch counts no operations of a CPU's attention; backward is twice forward, without the product that is done again
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, q, k, v, *__, **___: (
        2 * sdpa_flop_count(q, k, v)
    ),
}
Built = Callable[[], tuple[nn.Module, tuple]]  # a module with what it is called with


@dataclass(frozen=True)
class Counted:
    """Forward and backward, in floating-point operations by kind, and bytes."""

    convolution: int
    linear: int
    attention: int
    parameters: int
    saved: int  # bytes for the backward pass, but the weights

    @property
    def flops(self) -> int:
        return self.convolution + self.linear + self.attention


def count(build: Built) -> Counted:
    """What a module does, without doing it: its tensors have shapes only."""
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        module, inputs = build()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = module(*inputs)
        weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        (output if isinstance(output, torch.Tensor) else output[0]).sum().backward()
    kinds = {"convolution": 0, "linear": 0, "attention": 0}
    for operation, flops in counter.get_flop_counts()["Global"].items():
        name = str(operation)
        attention = "attention" in name or "bmm" in name  # a linear layer has no product of batches
        kind = "convolution" if "convolution" in name else "attention" if attention else "linear"
        kinds[kind] += flops
    return Counted(
        **kinds,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        saved=sum(size for storage, size in saved.items() if storage not in weights),
    )


def network(unet: dict, resolution: int, batch: int, tokens: int, device: str) -> tuple[nn.Module, tuple]:
    """A U-Net with a batch to train on."""
    with torch.device(device):
        model = MezzotintUNetModel(**unet).train()
        shape = (batch, model.config.in_channels, resolution, resolution)
        text = torch.zeros(batch, tokens, model.config.cross_attention_dim)
        return model, (torch.zeros(shape), torch.zeros(batch), text, None, None, False)


@dataclass
class Cell:
    """A U-Net at a resolution: counted for one picture, and measured where it was run."""

    size: str
    resolution: int
    unet: dict
    counted: Counted
    turns: int = 0  # timed steps; 0 is not run
    seconds: list[float] = field(default_factory=list)  # of a step
    memory: float | None = None  # bytes, at the peak
    attention_time: float | None = None  # share of forward and backward

    def memory_counted(self, batch: int) -> int:
        """Weights, gradients and two moments in 32 bits, and what is saved."""
        return 16 * self.counted.parameters + batch * self.counted.saved


# --------------------------------------------------------------------------------------------------------------- steps


def clock(device: str, cpu_time: bool) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if cpu_time else time.perf_counter()


def serve(connection: Connection, unet: dict, resolution: int, args: argparse.Namespace) -> None:
    """A cell's process: at each "step" it answers with the seconds that one took; at "profile" with the share of
    attention in the time of forward and backward; at "memory" with the peak, less what the process held before."""
    torch.set_num_threads(args.threads)
    device, dtype = args.device, DTYPES[args.mixed_precision]
    if device == "cuda":
        torch.cuda.init()
    before = peak_memory(torch.device(device))
    model, inputs = network(unet, resolution, args.batch, args.tokens, device)
    noise, optimizer = torch.randn_like(inputs[0]), torch.optim.AdamW(model.parameters(), fused=True)

    def backward() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = F.mse_loss(model(*inputs)[0].float(), noise)
        loss.backward()

    while (order := connection.recv()) != "end":
        if order == "step":
            started = clock(device, args.cpu_time)
            backward()
            optimizer.step()
            optimizer.zero_grad()
            connection.send(clock(device, args.cpu_time) - started)
        elif order == "memory":
            connection.send(peak_memory(torch.device(device)) - before)
        else:
            with torch.profiler.profile() as profile:
                backward()
                clock(device, args.cpu_time)
            time_of = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
            spent = {x.key: getattr(x, time_of) for x in profile.key_averages()}
            attention = sum(seconds for key, seconds in spent.items() if "dot_product" in key or "fmha" in key)
            connection.send(attention / sum(spent.values()))


def measure(cells: list[Cell], args: argparse.Namespace) -> None:
    """Step all cells by turns, the first of which warms up; one whose process fails, of memory say, is not run."""
    context = multiprocessing.get_context("forkserver")  # imports once, and begins no threads
    context.set_forkserver_preload(["mezzotint_training.benchmarks.cost_growth"])
    running = []
    for cell in cells:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, cell.unet, cell.resolution, args), daemon=True)
        process.start()
        theirs.close()
        running.append((cell, process, ours))

    def ask(connection: Connection, order: str) -> float:
        connection.send(order)
        return connection.recv()

    for turn in range(1 + max(cell.turns for cell in cells)):
        for cell, process, connection in running:
            if turn > cell.turns or process.exitcode is not None:
                continue
            try:
                seconds = ask(connection, "step")
                if turn > 0:
                    cell.seconds.append(seconds)
                if turn == cell.turns:
                    cell.memory = ask(connection, "memory")
                    cell.attention_time = ask(connection, "profile") if cell.turns > 1 else None
                    connection.send("end")
                    process.join()
            except (EOFError, OSError):
                process.join()
                cell.seconds.clear()
                said = f"{cell.size} at {cell.resolution} px: its process ended with code {process.exitcode}"
                print(f"cost_growth: {said}", file=sys.stderr)


# -------------------------------------------------------------------------------------------------------------- levels


class Quadratic(nn.Module):
    """The part of self-attention that grows with the square of the positions."""

    def forward(self, *qkv: torch.Tensor) -> torch.Tensor:  # (B, N, h, d) each
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv))


def parts(size: str, width: int, side: int, tokens: int, device: str) -> dict[str, Built]:
    """The parts of a unit with attention on one picture; the quadratic one is part of the transformer layer."""
    unet, text_dim = SIZES[size].unet, SIZES[size].text["d_model"]
    head_dim, groups = unet["attention_head_dim"], unet["norm_num_groups"]

    def grown(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, requires_grad=True)

    def residual() -> tuple[nn.Module, tuple]:
        with torch.device(device):
            block = MezzotintResidualBlock(nn.Conv2d, width, width, 4 * width, groups, 1e-5, 0.0)
        return block, (grown(1, width, side, side), grown(1, 4 * width))

    def transformer() -> tuple[nn.Module, tuple]:
        with torch.device(device):
            layer = MezzotintTransformerLayer(width, head_dim, text_dim, 0.0)
        return layer, (grown(1, side**2, width), grown(1, tokens, text_dim), None)

    def quadratic() -> tuple[nn.Module, tuple]:
        return Quadratic(), tuple(grown(1, side**2, width // head_dim, head_dim) for _ in range(3))

    return {"residual": residual, "transformer": transformer, "quadratic": quadratic}


def timed(built: dict[str, Built], args: argparse.Namespace, turns: int) -> dict[str, float]:
    """Median seconds of forward and backward of each, by turns, the first of which warms up if there are several."""
    modules, dtype = {name: build() for name, build in built.items()}, DTYPES[args.mixed_precision]
    spent: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(turns if turns == 1 else turns + 1):
        for name, (module, inputs) in modules.items():
            started = clock(args.device, args.cpu_time)
            with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
                output = module(*inputs)
            output.backward(torch.ones_like(output))
            spent[name].append(clock(args.device, args.cpu_time) - started)
    return {name: statistics.median(seconds[-turns:]) for name, seconds in spent.items()}


def shares(costs: dict[str, float], layers: int) -> tuple[float, float]:
    """Of a unit's cost: that of its transformer layers, and that of their quadratic part alone.

    With C channels, N positions and L tokens, multiplications and additions forward are 36 N C^2 in the residual block
    and 20 N C^2 + 4 N L C + 4 N^2 C in a layer: with one, the last are more than half from N = 14 C + L on.
    """
    whole = costs["residual"] + layers * costs["transformer"]
    return layers * costs["transformer"] / whole, layers * costs["quadratic"] / whole


def crossing(positions: list[int], share: list[float]) -> float | None:
    """From how many positions on the share is more than half, or `None` where it never is.

    Between two of `positions` it is taken to have odds that are a power of theirs: what is quadratic beside what is
    linear has.
    """
    # parts that are timed apart may come to more than the whole
    odds = [math.log(x / (1 - x)) for x in (min(y, 1 - 1e-9) for y in share)]
    for (n, low), (m, high) in zip(*([*zip(positions, odds, strict=True)][i:] for i in (0, 1)), strict=False):
        if low <= 0 < high:
            return n * (m / n) ** (-low / (high - low))
    return None


# -------------------------------------------------------------------------------------------------------------- tables


def exponent(x: list[float], y: list[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The power of x that y grows with, and its interval; three points or more."""
    fit: Any = linregress([math.log(value) for value in x], [math.log(value) for value in y])
    half = t.ppf((1 + confidence) / 2, len(x) - 2) * fit.stderr
    return fit.slope, fit.slope - half, fit.slope + half


def table(*columns: str) -> str:
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


CELLS = table(
    "size", "shape", "px", "parameters", "s a picture", "memory, MB", "counted", "GFLOP a picture", "convolutions",
    "linear", "attention", "of the time",
)  # fmt: skip
EXPONENTS = table("growth", "points run", "s a picture", "memory", "points", "FLOPs", "memory counted")
LEVELS = table(
    "size", "width", "positions", "FLOPs: transformer", "its quadratic part", "time: transformer", "its quadratic part"
)


def row(cell: Cell, shape: str, batch: int) -> str:
    """A line of the table of cells."""
    counted = cell.counted
    cells = [cell.size, shape, str(cell.resolution), f"{counted.parameters / 1e6:.1f} M"]
    cells.append(f"{statistics.median(cell.seconds) / batch:.3g}" if cell.seconds else "not run")
    cells.append(f"{cell.memory / 1e6:,.0f}" if cell.memory is not None else "not run")
    cells += [f"{cell.memory_counted(batch) / 1e6:,.0f}", f"{counted.flops / 1e9:.3g}"]
    cells += [f"{100 * x / counted.flops:.0f} %" for x in (counted.convolution, counted.linear)]
    cells.append(f"{100 * counted.attention / counted.flops:.1f} %")
    cells.append(f"{100 * cell.attention_time:.1f} %" if cell.attention_time is not None else "")
    return "| " + " | ".join(cells) + " |"


def exponents(name: str, cells: list[Cell], over: Callable[[Cell], float], batch: int) -> str:
    """A line of the table of exponents."""

    def fitted(cells: list[Cell], cost: Callable[[Cell], float]) -> str:
        if len(cells) < 3:
            return "too few points"
        slope, low, high = exponent([over(cell) for cell in cells], [cost(cell) for cell in cells])
        return f"{slope:.2f} ({low:.2f} to {high:.2f})"

    run = [cell for cell in cells if cell.seconds]
    measured = fitted(run, lambda cell: statistics.median(cell.seconds)), fitted(run, lambda cell: cell.memory or 0)
    counted = fitted(cells, lambda cell: cell.counted.flops), fitted(cells, lambda cell: cell.memory_counted(batch))
    return "| " + " | ".join([name, str(len(run)), *measured, str(len(cells)), *counted]) + " |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), metavar="SIZE",
                        help="sizes of --size")  # fmt: skip
    parser.add_argument(
        "--resolutions", nargs="*", type=int, default=[16, 32, 64, 128], help="pixels a side; none: levels alone"
    )
    parser.add_argument("--shape_of", type=int, default=32, help="resolution whose derived shape is used at all others")
    parser.add_argument(
        "--level_of", type=int, default=48, help="resolution whose derived widths the table of levels has"
    )
    parser.add_argument(
        "--sides",
        nargs="*",
        type=int,
        default=[8, 16, 32, 64, 96, 128],
        help="sides of a level in positions; none: no table of levels",
    )
    parser.add_argument("--batch", type=int, default=4, help="pictures in a batch")
    parser.add_argument("--tokens", type=int, default=77, help="tokens of each text")
    parser.add_argument(
        "--steps", type=int, default=7, help="timed steps of a cell; fewer where they take longer than --limit"
    )
    parser.add_argument(
        "--limit", type=float, default=60, help="most seconds a cell; where one step takes longer, it is computed only"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--mixed_precision", choices=list(DTYPES), default="no", help="precision of the arithmetic")
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="take the processor's time, not the clock's: where other programs run too",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to use")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    peak = peak_flops(DTYPES[args.mixed_precision], args.device)
    if args.device == "cuda":
        name, room = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    else:
        name = platform.processor() or platform.machine()
        room = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    print(
        f"{name}, {args.threads} threads, {platform.platform()}, torch {torch.__version__}, precision "
        f"{args.mixed_precision}, {peak / 1e9:,.0f} GFLOP/s in matrix products; batches of {args.batch}, {args.tokens} "
        f"tokens, {args.steps} steps{', processor time' if args.cpu_time else ''}\n\n{CELLS}",
        flush=True,
    )

    def turns(flops: float, steps: int) -> int:
        """As many steps as the limit has time for, with the operations of one."""
        return min(steps, int(args.limit * UTILISATION * peak / flops))

    args.workers, args.train_text_encoder = 0, False  # of no meaning here
    series: dict[str, list[Cell]] = {}
    for size in args.sizes if args.resolutions else []:
        shapes = {px: settings(args, size, px, Path()).unet for px in {*args.resolutions, args.shape_of}}
        cells = []
        for shape in ("derived", f"of {args.shape_of} px"):
            for px in args.resolutions:
                unet = shapes[px if shape == "derived" else args.shape_of]
                same = [cell for cell in cells if (cell.resolution, cell.unet) == (px, unet)]
                if not same:
                    cells.append(Cell(size, px, unet, count(partial(network, unet, px, 1, args.tokens, "cpu"))))
                series.setdefault(f"{size}, {shape}", []).append(same[0] if same else cells[-1])
        left = 0.8 * room
        for cell in cells:  # all of a size are held at once, those that fit
            needed = cell.memory_counted(args.batch)
            if needed < left and (cell_turns := turns(args.batch * cell.counted.flops, args.steps)):
                cell.turns, left = cell_turns, left - needed
        if any(cell.turns for cell in cells):
            measure([cell for cell in cells if cell.turns], args)
        for shape in ("derived", f"of {args.shape_of} px"):
            for cell in series[f"{size}, {shape}"]:
                print(row(cell, shape, args.batch), flush=True)

    print("\n" + EXPONENTS)
    for name, cells in series.items():
        print(exponents(f"with pixels: {name}", cells, lambda cell: cell.resolution**2, args.batch))
    for index, px in enumerate(args.resolutions):
        cells = [series[f"{size}, derived"][index] for size in args.sizes]
        print(exponents(f"with parameters: {px} px", cells, lambda cell: cell.counted.parameters, args.batch))

    print("\n" + LEVELS)
    said = []
    for size in args.sizes:
        unet, layers = settings(args, size, args.level_of, Path()).unet, SIZES[size].transformer_layers
        width = unet["block_out_channels"][-1]
        quadratic: dict[str, dict[int, float]] = {"FLOPs": {}, "time": {}}
        for side in args.sides:
            flops = {
                name: float(count(part).flops) for name, part in parts(size, width, side, args.tokens, "cpu").items()
            }
            found = {"FLOPs": flops}
            if steps := turns(sum(flops.values()), args.steps):
                found["time"] = timed(parts(size, width, side, args.tokens, args.device), args, steps)
            percent = ["not run"] * 4
            for i, (kind, costs) in enumerate(found.items()):
                both = shares(costs, layers)
                percent[2 * i : 2 * i + 2] = [f"{100 * share:.0f} %" for share in both]
                quadratic[kind][side**2] = both[1]
            print("| " + " | ".join([size, str(width), f"{side}²", *percent]) + " |", flush=True)
        for kind, by_positions in quadratic.items():
            if not by_positions:
                continue
            at = crossing(list(by_positions), list(by_positions.values()))
            where = f"nowhere up to {math.isqrt(max(by_positions))}²"
            where = f"from {math.sqrt(at):.0f}² positions on" if at else where
            said.append(f"- {size}, {width} channels: the quadratic part is more than half of a unit's {kind} {where}")
    print("\n" + "\n".join(said))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"cost_growth: {error}")
