# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What a run on a CPU loses beside other busy programs, by its number of threads and how they wait for each other.

    python training/benchmarks/busy_machine.py --busy 0 1 2 4

Each measurement is a process of its own that takes training steps of the recipe `digits` (its U-Net, batch and
optimizer) for some seconds, beside as many programs that do nothing but count; the ways to wait take turns. Printed are
images a second, the median of the repeats with their range, and the share of the cores that the process got.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import yaml

# How threads wait: the variables that OpenMP reads
WAYS = {
    "spinning (OpenMP's default)": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": ""},
    "spinning for a moment (ours)": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": "6000"},
    "sleeping": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": ""},
}


def measure(seconds: float) -> dict[str, float]:
    """Training steps of `digits` in this process: images a second, and processor seconds a second."""
    import torch

    from mezzotint import MezzotintUNetModel
    from mezzotint_training.config.recipe import RECIPES

    recipe = yaml.safe_load((RECIPES / "digits.yaml").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    unet = MezzotintUNetModel(
        in_channels=1, out_channels=1, cross_attention_dim=128, sample_size=8, **recipe["unet"]
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters())
    batch = recipe.get("train_batch_size", 64)
    sample, timestep, text = torch.randn(batch, 1, 8, 8), torch.rand(batch) * 999, torch.randn(batch, 24, 128)

    def step() -> None:
        unet(sample, timestep, text, return_dict=False)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    began, processor, steps = time.perf_counter(), time.process_time(), 0
    while (passed := time.perf_counter() - began) < seconds:
        step()
        steps += 1
    return {"images": batch * steps / passed, "cores": (time.process_time() - processor) / passed}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--busy",
        type=int,
        nargs="+",
        default=[0, 1, 2, 4],
        help="numbers of busy programs beside it (default: 0 1 2 4)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[1, os.cpu_count() or 1],
        help="numbers of threads of the run (default: one, and a core each)",
    )
    parser.add_argument("--seconds", type=float, default=6, help="seconds of each measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each kind (default: %(default)s)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.seconds)))
        return 0

    print(
        "| programs beside it | threads | waiting threads are | images/s | cores |\n|--:|--:|---|--:|--:|", flush=True
    )
    for busy in args.busy:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            cells = [(n, way) for n in dict.fromkeys(args.threads) for way in (WAYS if n > 1 else list(WAYS)[-1:])]
            found: dict[tuple[int, str], list[dict[str, float]]] = {cell: [] for cell in cells}
            for _ in range(args.repeats):
                for threads, way in cells:
                    variables = {k: v for k, v in (os.environ | WAYS[way]).items() if v}
                    done = subprocess.run(
                        [sys.executable, __file__, "--measure", "--seconds", str(args.seconds)],
                        env=variables | {"OMP_NUM_THREADS": str(threads)},
                        stdout=subprocess.PIPE, check=True,
                    )  # fmt: skip
                    found[threads, way].append(json.loads(done.stdout))
        finally:
            for other in others:
                other.kill()
                other.wait()
        for (threads, way), runs in found.items():
            speeds = [run["images"] for run in runs]
            print(
                f"| {busy} | {threads} | {way if threads > 1 else 'none'} | {statistics.median(speeds):.0f} "
                f"({min(speeds):.0f} to {max(speeds):.0f}) | {statistics.median(run['cores'] for run in runs):.2f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
