"""What attacks are made on: programs with arguments that work, a scene of folders that they read, and the process that
runs them.

    python tests/victims.py  # reads tasks as lines of JSON and answers with what became of them

A victim runs in a child of that process, which has everything imported, so that it takes a fraction of a second. It has
little memory, "y" on its standard input, a `gs` that tells on whoever calls it, and a network that reaches nothing but
the Hub of the test; what it connects to is noted. What an attack smuggles in leaves a mark if it is ever run.
"""

import contextlib
import faulthandler
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import datasets
import numpy as np
import torch
import yaml
from tiny_run import TINY, flags, pictures, trained
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from mezzotint import MezzotintPipeline
from mezzotint_training import fit_scheduler
from mezzotint_training.config.errors import one_line, out_of_memory
from mezzotint_training.few_steps import correction

SECRET = b"what stands in somebody's other folder"
MEMORY, FILE_SIZE = 4 << 30, 256 << 20  # that a victim may take, in bytes
PYTHON_MARK = "import os\nopen(os.environ['ATTACK_MARK'], 'w').close()\n"
SHELL_MARK = 'touch "$ATTACK_MARK"'


PIPELINE = ("run/model_index.json", "run/[stu]*/*.json", "run/[tu]*/*.safetensors")


@dataclass(frozen=True)
class Victim:
    """A program and arguments that work in a copy of the scene.

    `reads` are the parts of the scene that it needs, `makes` is where its result is, and `changes` are those parts that
    it may change in doing so; `heart` are the files that matter most to it, as patterns. The program "api" evaluates
    its argument, with `pipe` the pipeline in `run`; "{}" stands for the name of the attack.
    """

    program: str
    argv: tuple[str, ...]
    reads: tuple[str, ...]
    makes: str
    changes: tuple[str, ...] = ()
    heart: tuple[str, ...] = PIPELINE


RUN = {
    "max_train_steps": 3,
    "checkpointing_steps": 1,
    "posthoc_ema_steps": 1,
    "lr_scheduler": "constant",  # by which a longer run goes on as one that was always to be longer
    "validation_prompts": ["a seven"],
    "num_validation_images": 1,
    "num_inference_steps": 1,
}
SHORT = {"max_train_steps": 1, "num_inference_steps": 1, "output_dir": "made"}
DATA = SHORT | {"recipe": ..., "num_validation_samples": 0, "train_batch_size": 4, "train_data_dir": "data"}
TUNE = DATA | {"unet": ..., "text_encoder": ..., "max_text_length": ..., "pretrained_model_name_or_path": "run"}
DIGITS = {"recipe": ..., "dataset_name": "digits", "validation_split": "test"}
FIT = ("run", "--steps", "2", "--noises=2", "--teacher_steps=4", "--starts=1", "--history=1", "--correction_noises=2")
CLASSIFY = (
    "--pipeline=run", "--dataset_name=digits", "--validation_split=test", "--num_validation_samples=8",
    "--max_train_samples=40", "--train_batch_size=8", "--max_train_steps=1", "--output_dir=made",
)  # fmt: skip
VICTIMS = {
    "sample": Victim(
        "sample", ("run", "a seven", "--num_inference_steps=2", "--output=made.png"), ("run",), "made.png"
    ),
    "evaluate": Victim(
        "evaluate",
        ("run", "--count=40", "--num_inference_steps=1", "--features=random", "--output=made.json"),
        ("run",),
        "made.json",
        heart=(*PIPELINE, "run/recipe.yaml"),
    ),
    "fit-scheduler": Victim(
        "fit-scheduler", FIT, ("run",), "run/scheduler", ("run",), (*PIPELINE, "run/recipe.yaml", "run/metrics.json")
    ),
    "ema": Victim("ema", ("run", "--length=0.1", "--output=made"), ("run",), "made", heart=(*PIPELINE, "run/ema/*")),
    "publish": Victim("publish", ("run", "--hub_model_id=user/{}"), ("run",), "run"),
    "publish adapters": Victim(
        "publish", ("adapter", "--hub_model_id=user/{}"), ("run", "adapter"), "adapter", heart=("adapter/*",)
    ),
    "train-classifier": Victim("train-classifier", CLASSIFY, ("run",), "made"),
    "train": Victim("train", tuple(flags(**SHORT)), (), "made"),
    "train by a file": Victim("train", ("--config=settings.yaml", "--output_dir=made"), ("settings.yaml",), "made"),
    "train on pictures": Victim("train", tuple(flags(**DATA)), ("data",), "made"),
    "train on a table": Victim("train", tuple(flags(**DATA | {"train_data_dir": "table"})), ("table",), "made"),
    "train on a stream": Victim("train", tuple(flags(**DATA, streaming=True)), ("data",), "made"),
    "train, skipping": Victim("train", tuple(flags(**DATA, on_bad_row="skip")), ("data",), "made"),
    "train adapters": Victim("train", tuple(flags(**TUNE, adapter="lora")), ("run", "data"), "made"),
    "fine-tune": Victim("train", tuple(flags(**TUNE)), ("run", "data"), "made"),
    "train with an encoder": Victim(
        "train", tuple(flags(**SHORT, text_encoder=..., text_encoder_name_or_path="encoder")), ("encoder",), "made"
    ),
    "go on": Victim(
        "train",
        tuple(flags(**RUN | {"max_train_steps": 4}, output_dir="run")),
        ("run",),
        "run",
        ("run",),
        ("run/checkpoint-*/*", "run/checkpoint-*/state.json", "run/recipe.yaml", "run/metrics*", "run/ema/*"),
    ),
    "save": Victim("api", ("pipe.save_pretrained('made')",), ("run",), "made"),
    "call": Victim("api", ("pipe('a seven', num_inference_steps=1)",), ("run",), "made.npy"),
}


def build_scene(folder: Path) -> None:
    """Everything that victims read: a finished run with checkpoints and snapshots, adapters of it, a text encoder,
    pictures, a table of them and a file of settings. And a secret, which is none of their business."""
    folder.mkdir()
    trained(folder / "run", **RUN)
    pictures(folder / "data", 12)
    lines = [{"image": str(folder / "data" / f"{i}.png"), "text": f"picture {i}"} for i in range(12)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (folder / "table").mkdir()
    datasets.Dataset.from_list(lines, features=features).to_parquet(folder / "table" / "train.parquet")
    torch.manual_seed(0)
    t5 = T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(t5).save_pretrained(folder / "encoder")
    ByT5Tokenizer(model_max_length=32).save_pretrained(folder / "encoder")
    (folder / "settings.yaml").write_text(
        yaml.safe_dump({k: v for k, v in (TINY | SHORT | DIGITS).items() if v is not ...}, sort_keys=False)
    )
    with working_in(folder):  # paths are as victims see them
        trained(Path("adapter"), **{k: v for k, v in TUNE.items() if k != "output_dir"}, adapter="lora")
    (folder / "secrets").mkdir()
    (folder / "secrets" / "token").write_bytes(SECRET)


# ---------------------------------------------------------------------------------------------------------- the process


def serve(bin_folder: str) -> None:
    """Answer tasks: a line {"program", "argv", "folder", "timeout"} by a line {"code", "seconds"}; what the program
    printed, connected to and left as a mark is beside its folder, in `out`, `err`, `calls` and `mark`."""
    (gs := Path(bin_folder) / "gs").write_text(f"#!/bin/sh\n{SHELL_MARK}\n")
    gs.chmod(0o755)
    os.environ["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
    for name in ("sample", "evaluate", "fit_scheduler", "ema", "publish", "train_classifier", "train"):
        import_module(f"mezzotint_training.{name}")
    import_module("warm_run")
    import_module("warm")
    few = fit_scheduler.common_settings()[:2]  # solvers to start from: a fit takes a second
    fit_scheduler.common_settings = lambda: few
    correction.UPDATES = 2
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        task, began = json.loads(line), time.monotonic()
        child = os.fork()
        if child == 0:
            attempt(**task)
        code = None
        while code is None and time.monotonic() < began + task["timeout"]:
            ended, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else time.sleep(0.003)
        with contextlib.suppress(ProcessLookupError):  # it, if it hangs, and its children
            os.killpg(child, signal.SIGKILL)
        if code is None:
            os.waitpid(child, 0)
        print(json.dumps({"code": code, "seconds": time.monotonic() - began}), flush=True)


def attempt(program: str, argv: list[str], folder: str, timeout: float) -> None:
    """Run one victim in this process and end it."""
    os.setpgid(0, 0)
    beside = Path(folder).parent
    (beside / "yes").write_text("y\n" * 1000)
    for number, name in enumerate(("yes", "out", "err")):
        os.dup2(os.open(beside / name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
    faulthandler.dump_traceback_later(0.9 * timeout)  # where it hangs
    os.chdir(folder)
    os.environ["ATTACK_MARK"] = str(beside / "mark")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hub, connect = os.environ["HF_ENDPOINT"].rpartition(":")[2], socket.socket.connect

    def noted(self, address):
        with open(beside / "calls", "a") as file:
            print(address, file=file)
        if self.family != socket.AF_UNIX and str(address[1]) != hub:
            raise ConnectionRefusedError("no network here")
        return connect(self, address)

    socket.socket.connect = noted
    code: object = 1
    try:
        if program == "api":
            code = evaluate(*argv)
        else:
            code = import_module(f"mezzotint_training.{program.replace('-', '_')}").main(argv)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def evaluate(expression: str) -> int:
    """An expression of the Python API, what it draws in `made.npy`. A `ValueError`, an `OSError` or an
    `ImportError` is how it says no, as a program says it."""
    logging.disable(logging.CRITICAL)  # libraries' warnings are theirs; a program's are its own
    try:
        pipe = MezzotintPipeline.from_pretrained("run")
        pipe.set_progress_bar_config(disable=True)
        result = eval(expression, {"pipe": pipe, "torch": torch, "np": np, "MezzotintPipeline": MezzotintPipeline})
    except (ValueError, OSError, ImportError, NotImplementedError) as error:  # the last one is diffusers'
        print(f"mezzotint: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        print(f"mezzotint: {one_line(error)}", file=sys.stderr)
        return 3
    if hasattr(result, "images"):
        np.save("made.npy", np.stack([np.asarray(x) for x in result.images]))
    return 0


@contextlib.contextmanager
def working_in(folder: Path):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    serve(sys.argv[1])
