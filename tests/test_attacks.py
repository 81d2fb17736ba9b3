"""A campaign of attacks: damaged files, values that nobody would write, bad arguments, strangers' checkpoints. Each ends
with the result of the undisturbed program, or with one line that says no and nothing changed on disk.

    pytest -n 0 tests/test_attacks.py --attacks 2000 --attacks-seed 1
    pytest -n 0 tests/test_attacks.py --attacks-seed 1 --attacks-only 17  # one of them again, with all that it prints

The classes:

- right: exit code 0 and the result of the undisturbed program, bit for bit
- clear: exit code 2, 3 or 75 and one line, and nothing on disk changed where it is 2
- value, setting: exit code 0 and another sound result, of a value or of a setting that is now another one. Pipelines
  carry no checksums: a bit that flips in a weight is such a value.
- ugly: a traceback, several lines, another exit code, a crash, a hang
- silent: another result without a reason, something that was changed on disk, executed, given away or connected to
"""

import ast
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from attacks import KINDS, Attack, Ground
from hub_server import HubServer
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from victims import SECRET, VICTIMS, build_scene

TIMEOUT = 45  # seconds after which a victim hangs, of which each takes one or two
CLASSES = ("right", "clear", "value", "setting", "ugly", "silent")
# A result is what is drawn and measured, and pipelines, without what only goes along with them
RESULT = re.compile(r"^made\.|^(\w+/)?model_index\.json$|^(\w+/)?(unet|text_encoder|tokenizer|scheduler|classifier)/[\w.-]+(\.json|\.safetensors)$"
                    r"|^(\w+/)?pytorch_lora_weights\.safetensors$")
# Of a result, what differs from run to run
PASSING_KEYS = {"seconds", "provenance", "command", "versions", "checkpoint", "data", "settings"}
WARNING = re.compile(r"\.py:\d+: \w*Warning|Traceback \(most recent call last\)|^\s+File \"", re.MULTILINE)


@dataclass
class Outcome:
    """What became of a victim."""

    code: int | None  # `None` for one that hangs
    out: str
    err: str
    called: list[str]
    mark: bool
    changed: list[str]  # on disk, but for what the victim makes: with + what is new, with - what is gone
    result: dict[str, str] = field(default_factory=dict)
    unsound: list[str] = field(default_factory=list)


class Field:
    """The scene, the Hub, and the process that runs victims."""

    def __init__(self, folder: Path, hub: HubServer):
        self.folder, self.hub, self.scene = folder, hub, folder / "scene"
        build_scene(self.scene)
        environment = hub.environment(folder / "home") | {
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        }
        for name in ("bin", "tmp", "home"):
            (folder / name).mkdir()
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("victims.py"), folder / "bin"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open("/tmp/e_scratch/worker.err","w"), text=True,
        )  # fmt: skip
        assert json.loads(self.process.stdout.readline()) == "ready"
        self.undisturbed: dict[str, Outcome] = {}

    def run(self, victim: str, argv: list[str] | None, ground: Ground) -> Outcome:
        beside, folder = ground.folder.parent, ground.folder
        name = beside.name
        argv = [word.replace("user/{}", f"user/{name}") for word in (argv or VICTIMS[victim].argv)]
        before, started = contents(folder), len(self.hub.requests)
        task = {"program": VICTIMS[victim].program, "argv": argv, "folder": str(folder), "timeout": TIMEOUT}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        code = json.loads(self.process.stdout.readline())["code"]
        after = contents(folder)
        makes = VICTIMS[victim].makes
        mine = (*VICTIMS[victim].changes, *((makes,) if code == 0 else ()))
        changed = [f"{'+' if path not in before else '-' if path not in after else ''}{path}"
                   for path in sorted(before.keys() | after.keys())
                   if before.get(path) != after.get(path) and not any(path == x or path.startswith(f"{x}/") for x in mine)]  # fmt: skip
        calls = beside / "calls"
        outcome = Outcome(
            code, (beside / "out").read_bytes().decode(errors="replace"), on_screen((beside / "err").read_bytes()),
            sorted(set(calls.read_text().splitlines())) if calls.exists() else [], (beside / "mark").exists(), changed,
        )  # fmt: skip
        if code in (2, None) and VICTIMS[victim].changes:  # which may then not even change those
            outcome.changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        if code == 0:
            self._read(outcome, victim, folder, f"user/{name}", before)
        return outcome

    def _read(self, outcome: Outcome, victim: str, folder: Path, repository: str, before: dict[str, str]) -> None:
        """The result and what is unsound in it."""
        found: dict[str, bytes] = {}
        makes = folder / VICTIMS[victim].makes
        new = {path for path, digest in contents(folder).items() if before.get(path) != digest}
        for path in [makes] if makes.is_file() else sorted(makes.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and not path.is_symlink() and (name in new or victim == "go on"):
                found[name] = path.read_bytes()
        if VICTIMS[victim].program == "publish":
            try:
                found = self.hub.files(repository)
            except KeyError:
                outcome.unsound.append("nothing on the Hub")
        for name, data in found.items():
            if SECRET in data:
                outcome.unsound.append(f"{name} gives a secret away")
            if name.endswith("README.md"):
                outcome.unsound += [f"{name}: {fault}" for fault in faults_of_card(data.decode())]
                continue
            if not RESULT.search(name):
                continue
            if name.endswith(".json"):
                with contextlib.suppress(ValueError):
                    data = json.dumps(steady(json.loads(data))).encode()
            outcome.unsound += [f"{name} {fault}" for fault in faults_of(name, folder, data)]
            outcome.result[name] = hashlib.sha256(data).hexdigest()

    def reference(self, victim: str) -> Outcome:
        """What becomes of it undisturbed."""
        if victim not in self.undisturbed:
            ground = self.ground(f"undisturbed-{len(self.undisturbed)}")
            self.undisturbed[victim] = outcome = self.run(ground.lay(victim), None, ground)
            assert outcome.code == 0 and not outcome.unsound, (victim, outcome)
        return self.undisturbed[victim]

    def ground(self, name: str) -> Ground:
        folder = self.folder / name / "folder"
        folder.mkdir(parents=True)
        return Ground(self.scene, folder)


def contents(folder: Path) -> dict[str, str]:
    """Everything below a folder: the hash of a file, where a link leads, what a thing is."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            words = "folder" if path.is_dir() else "special"
            if path.is_symlink():
                words = f"link to {os.readlink(path)}"
            elif path.is_file():
                words = hashlib.sha256(path.read_bytes()).hexdigest()
            found[path.relative_to(folder).as_posix()] = words
    return found


def on_screen(output: bytes) -> str:
    """What stands on a screen: what a carriage return overwrites is gone."""
    lines = [line.split("\r")[-1].rstrip() for line in output.decode(errors="replace").split("\n")]
    return "\n".join(line for line in lines if line)


def steady(tree):
    if isinstance(tree, dict):
        return {key: steady(value) for key, value in sorted(tree.items()) if key not in PASSING_KEYS}
    return [steady(value) for value in tree] if isinstance(tree, list) else tree


def faults_of(name: str, folder: Path, data: bytes) -> list[str]:
    """Why a picture or weights cannot be what was meant."""
    path = folder / name
    if name.endswith(".png") and path.is_file():
        return ["is of one colour"] if len(np.unique(np.asarray(Image.open(path)))) == 1 else []
    if name.endswith(".npy"):
        array = np.load(path)
        return ["is of one colour"] if not np.isfinite(array).all() or np.ptp(array) == 0 else []
    if name.endswith(".safetensors") and path.is_file():
        try:
            broken = [key for key, x in load_file(path).items() if x.is_floating_point() and not x.isfinite().all()]
        except SafetensorError as error:
            return [f"is damaged: {error}"]
        return [f"is not finite: {broken[0]}"] if broken else []
    if name.endswith(".json") and re.search(rb"\b(NaN|Infinity)\b", data):
        return ["holds numbers that are none"]
    return []


def faults_of_card(text: str) -> list[str]:
    """Where a model card is not what its template means: code that is no code, or that of somebody else."""
    found = []
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        if front is None or not isinstance(yaml.safe_load(front[1]), dict):
            found.append("no front matter")
    except yaml.YAMLError:
        found.append("a front matter that is no YAML")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        try:
            tree = ast.parse(block)
        except SyntaxError as error:
            found.append(f"code that is none: {error.msg}")
            continue
        for node in ast.walk(tree):
            modules = [x.name for x in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"code that imports {x}" for x in modules if x.split(".")[0] not in ("torch", "diffusers", "mezzotint")]
    if "<script" in re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE):
        found.append("a script")
    return found


def judge(attack: Attack, outcome: Outcome, field: Field) -> tuple[str, str]:
    """The class and why."""
    unsound = [x for x in outcome.unsound if "secret" in x]
    if outcome.mark:
        return "silent", "runs what it should not"
    if unsound:
        return "silent", unsound[0]
    publishes = VICTIMS[attack.victim].program == "publish"
    if outcome.called and attack.local and not publishes:
        return "silent", f"connects to {', '.join(outcome.called)}"
    if outcome.code is None:
        return "ugly", "hangs"
    stray = lines_besides(outcome.err, field.reference(attack.victim).err)
    if outcome.code == 0:
        gone = [path for path in outcome.changed if not path.startswith("+")]
        if gone:
            return "silent", f"changes {', '.join(gone[:3])}"
        if WARNING.search("\n".join(stray)):
            return "ugly", f"ends well with warnings: {stray[0]}"
        result, before = outcome.result, field.reference(attack.victim).result
        if result == before and not outcome.unsound:
            return "right", ""
        if outcome.unsound:
            return "silent", outcome.unsound[0]
        if attack.legal:
            return attack.legal, ""
        differ = sorted(name for name in result.keys() | before.keys() if result.get(name) != before.get(name))
        return "silent", f"another result ({', '.join(differ[:3])}){', said: ' + stray[0] if stray else ''}"
    if outcome.code not in (2, 3, 75):
        return "ugly", f"exit code {outcome.code}: {stray[-1][:200] if stray else 'nothing said'}"
    if WARNING.search(outcome.err):
        return "ugly", f"traceback and exit code {outcome.code}: {stray[-1][:200]}"
    if len(stray) != 1 or not stray[0].startswith("mezzotint: "):
        return "ugly", f"{len(stray)} lines and exit code {outcome.code}: {' | '.join(stray)[:300]}"
    if len(stray[0]) > 1000:
        return "ugly", f"a line of {len(stray[0]):,} characters"
    if outcome.code == 2 and outcome.changed:
        return "silent", f"changes {', '.join(outcome.changed[:3])} before it says: {stray[0][:200]}"
    return "clear", stray[0]


def lines_besides(text: str, usual: str) -> list[str]:
    """The lines that an undisturbed run does not print, whatever their numbers."""
    known = {re.sub(r"\d+", "#", line) for line in usual.splitlines()}
    return [line for line in text.splitlines() if re.sub(r"\d+", "#", line) not in known]


@pytest.fixture(scope="module")
def field_of_battle(tmp_path_factory):
    with HubServer() as hub:
        field = Field(tmp_path_factory.mktemp("attacks"), hub)
        yield field
        field.process.stdin.close()
        field.process.wait()


def test_no_attack_is_ugly_or_silent(field_of_battle, pytestconfig, capsys):
    field = field_of_battle
    count, seed, only = (pytestconfig.getoption(f"--attacks{x}") for x in ("", "-seed", "-only"))
    names, table, bad, began = list(KINDS), Counter(), [], time.monotonic()
    for number in range(count) if only is None else [only]:
        name = names[number % len(names)]
        ground = field.ground(f"attack-{number}")
        attack = KINDS[name](random.Random(f"{seed}:{number}"), ground)
        outcome = field.run(attack.victim, attack.argv, ground)
        verdict, why = judge(attack, outcome, field)
        table[name, verdict] += 1
        if verdict in ("ugly", "silent") or only is not None:
            bad.append(f"{verdict} {number}, {name}, {attack.victim}: {attack.what}: {why}")
        if only is not None:
            words = attack.argv or VICTIMS[attack.victim].argv
            bad += [f"in {ground.folder}: {VICTIMS[attack.victim].program} {words}", outcome.out, outcome.err]
        else:
            shutil.rmtree(ground.folder.parent)
    seconds = time.monotonic() - began
    with capsys.disabled():
        print(f"\n{table.total()} attacks (seed {seed}) in {seconds:.0f} s")
        print(f"{'':24}" + "".join(f"{verdict:>9}" for verdict in CLASSES))
        for name in names:
            print(f"{name:24}" + "".join(f"{table[name, verdict]:9}" for verdict in CLASSES))
        print(f"{'in all':24}" + "".join(f"{sum(table[n, v] for n in names):9}" for v in CLASSES))
        print("\n".join(bad))
        if bad and only is None:
            print("One of them again, with what it prints: --attacks-seed", seed, "--attacks-only NUMBER")
    assert not any(table[name, verdict] for name in names for verdict in ("ugly", "silent"))
