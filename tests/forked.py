"""Runs in processes of their own, forked by a server that has everything imported: a run costs a second, not ten."""

import functools
import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import torch
from tiny_run import flags

PRELOAD = ["torch.distributed.launcher.api", "warm_run", "warm"]


@functools.cache
def server() -> multiprocessing.context.ForkServerContext:
    """The server, started and warm."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # Python 3.11 tells it of no other folders
        forkserver.ensure_running()
    ready = context.Process(target=int)
    ready.start()
    ready.join()
    return context


def start(folder: Path, world: int, settings: dict, **environment: str) -> list:
    """The processes of a run, which write to `output-0.txt`, ... beside `folder`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    if world > 1:
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        environment |= {"LOCAL_WORLD_SIZE": str(world), "WORLD_SIZE": str(world)}
    processes = []
    for rank in range(world):
        own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})
        processes.append(server().Process(target=_run, args=_task(folder, settings, own, rank)))
        processes[-1].start()
    return processes


def launch(folder: Path, world: int, settings: dict, **environment: str):
    """The process of torch's launcher of a run, which writes with all that it starts to `output-0.txt`."""
    process = server().Process(target=_launch, args=(world, *_task(folder, settings, environment)))
    process.start()
    return process


def kill(processes: list) -> None:
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()


def _task(folder: Path, settings: dict, environment: dict[str, str], rank: int = 0) -> tuple:
    own = {"ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(folder.parent / "datasets")}
    return flags(output_dir=folder, **settings), own | environment, folder.parent / f"output-{rank}.txt"


def _enter(environment: dict[str, str], output: Path) -> None:
    os.environ.update(environment)
    for name in [name for name, value in environment.items() if not value]:
        del os.environ[name]
    with output.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _run(argv: list[str], environment: dict[str, str], output: Path) -> None:
    _enter(environment, output)
    torch.set_num_threads(1)
    from mezzotint_training import train

    code = train.main(argv)
    sys.stdout.flush()
    os._exit(code)


def _launch(world: int, argv: list[str], environment: dict[str, str], output: Path) -> None:
    _enter(environment, output)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=world, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id="tests", max_restarts=0, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, _run)(argv, environment, output)
