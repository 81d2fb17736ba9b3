"""A campaign of attacks on all programs and on the Python API: damaged files, values that nobody would write, arguments
that make no sense, strangers' checkpoints. Each ends with the result of the program undisturbed, or with a line that
says no.

    pytest -n 0 tests/test_attacks.py --attacks 2000 --attacks-seed 1
    pytest -n 0 tests/test_attacks.py --attacks-seed 1 --attacks-only 17  # that one again, with all that it prints

What an attack comes to is one of six:

- right: exit code 0 and the result of the program undisturbed, bit for bit
- clear: exit code 2, 3 or 75 with one line, and with 2 nothing changed on disk
- value, setting: exit code 0 and another sound result, since something that is read, or was asked for, is now another
  legal one. A bit that flips in a weight is such a value: pipelines carry no checksums.
- ugly: a traceback, warnings, several lines or a very long one, another exit code, a hang
- silent: another result without a reason, or something changed on disk, run, given away or connected to
"""

import ast
import contextlib
import hashlib
import io
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attacks_by_strangers  # noqa: F401 (which enter their kinds)
import attacks_by_words  # noqa: F401
import attacks_on_data  # noqa: F401
import numpy as np
import pytest
import yaml
from attacks import KINDS, Attack, Ground
from hub_server import HubServer
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from victims import SECRET, VICTIMS, build_scene

TIMEOUT = 60  # seconds; a victim takes one or two, of a machine that is not busy
LONGEST = 1020  # characters of a line
MOST = 300  # new files and folders: a pipeline has twenty
CLASSES = ("right", "clear", "value", "setting", "ugly", "silent")
# What counts as a result, and in it what is of the run and not of the program's input
RESULT = re.compile(
    r"made\.\w+|(\w+/)?(model_index\.json|pytorch_lora_weights\.safetensors)|(\w+/)?text_encoder/\w+\.safetensors"
    r"|(\w+/)?(unet|scheduler|classifier)/(config\.json|scheduler_config\.json|\w+\.safetensors)"
)
PASSING = {"seconds", "provenance", "command", "versions", "checkpoint", "data", "settings"}
BAR = re.compile(r"\d%\|")
WARNING = re.compile(r"\.py:\d+: \w*Warning|Traceback \(most recent call last\)|^  File \"", re.MULTILINE)


@dataclass
class Outcome:
    """What became of a victim. Of `changed`, what is new begins with "+"; `faults` are of what it made."""

    code: int | None  # none is a hang
    out: str
    err: str
    calls: list[str]
    mark: bool
    changed: list[str]
    result: dict[str, str]
    faults: list[str]


class Field:
    """The scene, the Hub, and the process that runs victims."""

    def __init__(self, folder: Path, hub: HubServer):
        self.folder, self.hub, self.undisturbed = folder, hub, {}
        for name in ("bin", "tmp", "home"):
            (folder / name).mkdir()
        environment = hub.environment(folder / "home") | {
            "HF_DATASETS_CACHE": str(folder / "home" / "datasets"),
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("victims.py"), folder / "bin"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.tasks, self.answers = self.process.stdin, self.process.stdout
        build_scene(folder / "scene")  # while that one imports everything
        assert json.loads(self.answers.readline()) == "ready"

    def close(self) -> None:
        self.tasks.close()
        self.process.wait()

    def ground(self, name: str) -> Ground:
        (folder := self.folder / name / "folder").mkdir(parents=True)
        return Ground(self.folder / "scene", folder)

    def reference(self, name: str) -> Outcome:
        """What becomes of a victim undisturbed."""
        if name not in self.undisturbed:
            ground = self.ground(f"undisturbed-{len(self.undisturbed)}")
            ground.lay(name)
            self.undisturbed[name] = outcome = self.run(ground, None)
            assert outcome.code == 0 and not outcome.faults, f"{name} fails undisturbed: {outcome}"
        return self.undisturbed[name]

    def run(self, ground: Ground, argv: list[str] | None) -> Outcome:
        victim, folder, beside = VICTIMS[ground.victim], ground.folder, ground.folder.parent
        argv = [word.replace("user/{}", f"user/{beside.name}") for word in argv or victim.argv]
        before = contents(folder)
        cards = [path for path in folder.rglob("README.md") if path.is_file()]
        known_faults = {fault for path in cards for fault in faults_of_card(path.read_bytes())}
        task = {"program": victim.program, "argv": argv, "folder": str(folder), "timeout": TIMEOUT}
        print(json.dumps(task), file=self.tasks, flush=True)
        code = json.loads(self.answers.readline())["code"]
        after = contents(folder)
        # what says no before it has begun may not even change what it is to change
        card = ("run/README.md", "run/evaluation.json") if "--card" in argv else ()
        mine = () if code in (2, None) else (*victim.changes, *card, victim.makes)
        differ = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        changed = [
            path if path in before else f"+{path}"
            for path in differ
            if not any(path == name or path.startswith(f"{name}/") for name in mine)
        ]
        calls = beside / "calls"
        outcome = Outcome(
            code, (beside / "out").read_bytes().decode(errors="replace"), on_screen((beside / "err").read_bytes()),
            sorted(set(calls.read_text().splitlines())) if calls.exists() else [], (beside / "mark").exists(), changed,
            result={}, faults=[],
        )  # fmt: skip
        if code == 0:
            made = [name for name in after if name in differ or (victim.changes and RESULT.fullmatch(name))]
            paths = {name: folder / name for name in made}
            files = {
                name: path.read_bytes() for name, path in paths.items() if path.is_file() and not path.is_symlink()
            }
            if victim.program == "publish":
                files = self.hub.files(name) if self.hub.commits(name := f"user/{beside.name}") else {}
            outcome.result = {name: digest_of(name, data) for name, data in files.items() if RESULT.fullmatch(name)}
            outcome.faults = [fault for name, data in files.items() for fault in faults_of(name, data, known_faults)]
            if len(differ) > MOST:
                outcome.faults.append(f"{len(differ):,} files and folders are new")
        return outcome


# -------------------------------------------------------------------------------------------------- what is left of it


def contents(folder: Path) -> dict[str, str]:
    """Everything below a folder: the hash of a file, where a link leads, what a thing is."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink():
                words = f"link to {os.readlink(path)}"
            else:
                words = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else str(path.is_dir())
            found[path.relative_to(folder).as_posix()] = words
    return found


def on_screen(output: bytes) -> str:
    """The lines that stand on a screen: what a carriage return overwrites is gone, and so are bars."""
    lines = [line.split("\r")[-1].rstrip() for line in output.decode(errors="replace").split("\n")]
    return "\n".join(line for line in lines if line and not BAR.search(line))


def digest_of(name: str, data: bytes) -> str:
    if name.endswith(".json"):
        with contextlib.suppress(ValueError, RecursionError):
            data = json.dumps(_steady(json.loads(data)), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _steady(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _steady(value) for key, value in tree.items() if key not in PASSING}
    return [_steady(value) for value in tree] if isinstance(tree, list) else tree


def faults_of(name: str, data: bytes, known: set[str]) -> list[str]:
    """What cannot be meant in a file that was made: a secret, a picture of one colour, what is no number, a card that
    says what it should not, unless it is among the `known` faults of cards."""
    found = ["gives a secret away"] if SECRET in data else []
    if name in ("made.png", "made.npy"):
        array = np.load(io.BytesIO(data)) if name == "made.npy" else np.asarray(Image.open(io.BytesIO(data)))
        if not np.isfinite(array).all() or array.size == 0 or np.ptp(array) == 0:
            found.append("is of one colour or none")
    elif name == "made.json" and re.search(rb"\b(NaN|Infinity)\b", data):
        found.append("holds what is no number")
    elif name.endswith(".safetensors") and RESULT.fullmatch(name):
        try:
            odd = [key for key, x in load(data).items() if x.is_floating_point() and not x.isfinite().all()]
            found += [f"is not finite in {key}" for key in odd[:1]]
        except SafetensorError as error:
            found.append(f"is damaged: {error}")
    elif name.endswith("README.md"):
        found += [fault for fault in faults_of_card(data) if fault not in known]
    return [f"{name} {fault}" for fault in found]


def faults_of_card(card: bytes) -> list[str]:
    """Where a model card is not what its template means: code that is no code, or that of somebody else."""
    text, found = card.decode(errors="replace"), []
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        if front is None or not isinstance(yaml.safe_load(front[1]), dict):
            found.append("has no front matter")
    except yaml.YAMLError:
        found.append("has a front matter that is no YAML")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        try:
            nodes = list(ast.walk(ast.parse(block)))
        except SyntaxError as error:
            found.append(f"has code that is none: {error.msg}")
            continue
        modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        modules += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        found += [f"imports {x}" for x in modules if x.split(".")[0] not in ("torch", "diffusers", "mezzotint")]
    # but in data, in code, or where it is escaped
    if "<script" in re.sub(r"\A---\n.*?\n---\n|^```.*?^```|`[^`\n]*`|\\<", "", text, flags=re.DOTALL | re.MULTILINE):
        found.append("has a script")
    return found


def judge(attack: Attack, outcome: Outcome, field: Field) -> tuple[str, str]:
    """What an attack comes to, and why."""
    if outcome.mark:
        return "silent", "runs what it should not"
    if secret := [fault for fault in outcome.faults if "secret" in fault]:
        return "silent", secret[0]
    if outcome.calls and attack.local and VICTIMS[attack.victim].program != "publish":
        return "silent", f"connects to {', '.join(outcome.calls)}"
    if outcome.code is None:
        places = re.findall(r'^  File "(.*)", line (\d+) in (\w+)', outcome.err, re.MULTILINE)
        return "ugly", "hangs in " + " < ".join(f"{name} ({Path(path).name}:{line})" for path, line, name in places[:4])
    lines = [line for line in outcome.err.splitlines() if not line.endswith(" examples/s]")]  # how far `datasets` is
    if outcome.code == 0 or len(lines) != 1:  # without those that it prints undisturbed, whatever their numbers
        known = {re.sub(r"\d+", "#", line) for line in field.reference(attack.victim).err.splitlines()}
        lines = [line for line in lines if re.sub(r"\d+", "#", line) not in known]
    said = " | ".join(lines)[:300]
    if outcome.code == 0:
        before = field.reference(attack.victim)
        if lost := [path for path in outcome.changed if not path.startswith("+")]:
            return "silent", f"changes {', '.join(lost[:3])}"
        if WARNING.search(outcome.err):
            return "ugly", f"ends well with warnings: {said}"
        faults = [fault for fault in outcome.faults if not (attack.legal == "value" and "is not finite" in fault)]
        if faults:
            return "silent", f"{faults[0]}; said: {said or 'nothing'}"
        if outcome.result == before.result:
            return "right", ""
        if attack.legal:
            return attack.legal, ""
        dropped = re.compile(r"^dropped .*", re.MULTILINE)
        if dropped.findall(outcome.out) != dropped.findall(before.out):  # as `--on_bad_row skip` says
            return "clear", ""
        names = outcome.result.keys() | before.result.keys()
        differ = sorted(name for name in names if outcome.result.get(name) != before.result.get(name))
        return "silent", f"another result ({', '.join(differ[:3])}); said: {said or 'nothing'}"
    if outcome.code not in (2, 3, 75) or WARNING.search(outcome.err):
        traced = " with a traceback" if WARNING.search(outcome.err) else ""
        return "ugly", f"exit code {outcome.code}{traced}: {lines[-1][:300] if lines else 'nothing is said'}"
    if len(lines) != 1 or not lines[0].startswith("mezzotint: ") or len(lines[0]) > LONGEST:
        return "ugly", f"{len(lines)} lines, exit code {outcome.code}: {said}"
    if outcome.code == 2 and outcome.changed:
        return "silent", f"changes {', '.join(outcome.changed[:3])} before it says: {said}"
    return "clear", said


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    with HubServer() as hub, contextlib.closing(Field(tmp_path_factory.mktemp("attacks"), hub)) as field:
        yield field


def test_no_attack_is_ugly_or_silent(field, pytestconfig, capsys):
    count, seed, only = (pytestconfig.getoption(f"--attacks{end}") for end in ("", "-seed", "-only"))
    table, kinds, began = Counter(), list(KINDS), time.monotonic()
    with capsys.disabled():
        for number in range(count) if only is None else [only]:
            kind = kinds[number % len(kinds)]
            ground = field.ground(f"attack-{seed}-{number}")
            attack = KINDS[kind](random.Random(f"{seed}:{number}"), ground)
            outcome = field.run(ground, attack.argv)
            verdict, why = judge(attack, outcome, field)
            table[kind, verdict] += 1
            if only is not None or verdict in ("ugly", "silent"):
                print(f"\n{verdict} {number}, {kind}, {attack.victim}: {attack.what}: {why}", end="", flush=True)
            if only is None:
                shutil.rmtree(ground.folder.parent)
            else:
                program, argv = VICTIMS[attack.victim].program, attack.argv or VICTIMS[attack.victim].argv
                print(f"\nin {ground.folder}: {program} {shlex.join(argv)}\n{outcome.out}\n{outcome.err}")
        print(f"\n{table.total()} attacks of seed {seed} in {time.monotonic() - began:.0f} s")
        for name, numbers in [
            ("", CLASSES),
            *((kind, [table[kind, verdict] for verdict in CLASSES]) for kind in kinds),
            ("in all", [sum(table[kind, verdict] for kind in kinds) for verdict in CLASSES]),
        ]:
            print(f"{name:24}" + "".join(f"{number:>9}" for number in numbers))
        if any(verdict in ("ugly", "silent") for _, verdict in table):
            print(f"--attacks-seed {seed} --attacks-only NUMBER makes one again")
    assert not [verdict for _, verdict in table if verdict in ("ugly", "silent")]
