"""Who may import whom, read from the source and seen in fresh interpreters. The files of the layers 0 and 1 travel
inside checkpoints, each joined with the shared files that it imports."""

import ast
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from mezzotint.pipelines.checkpoint_mezzotint import _joined

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TRAVELLING = [
    path for path in SOURCES if path.parent.name in ("models", "schedulers", "pipelines") and path.stem != "__init__"
]
ALLOWED = {"torch", "numpy", "PIL", "diffusers", "transformers", "huggingface_hub"} | sys.stdlib_module_names
ALLOWED |= {"selfies"}  # asked for in a function alone, where strings are to be translated
# How diffusers finds the files that a checkpoint's file needs; docstrings and comments are not spared
RELATIVE = re.compile(r"^\s*import\s+\.(\S+)\s*$|^\s*from\s+\.(\S+)\s+import", re.MULTILINE)


def imported(source: Path | str | bytes) -> set[str]:
    """The full names of all modules that a file or a text imports, anywhere in it; a relative one starts with a dot."""
    source = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def loaded_by(code: str, after: str = "") -> set[str]:
    """The top-level modules that `code` adds in a fresh interpreter that has run `after`."""
    modules = "{name.partition('.')[0] for name in sys.modules}"
    code = f"import sys\n{after}\nbefore = {modules}\n{code}\nprint('\\n' + ' '.join({modules} - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.anchor)
    return set(result.stdout.splitlines()[-1].split())


def test_there_is_something_to_check():
    assert {path.stem for path in TRAVELLING} >= {"unet_mezzotint", "scheduling_mezzotint", "pipeline_mezzotint"}


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] == "mezzotint"}


def module_of(path: Path) -> str:
    return f"mezzotint.{path.parent.name}.{path.stem}"


# What others import; each other travelling file defines classes that a checkpoint names
SHARED = {name for path in TRAVELLING for name in ours(imported(path))}
EACH = pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.stem)


@EACH
def test_travelling_file_imports_shared_ones_of_its_folder_and_under_their_own_names(path):
    """Then all can be joined, and each name means in the joined text what it meant."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_the_top = [node for node in tree.body if isinstance(node, ast.ImportFrom) and ours({str(node.module)})]
    assert {node.module for node in at_the_top} == ours(imported(path))
    assert {str(node.module).rpartition(".")[0] for node in at_the_top} <= {f"mezzotint.{path.parent.name}"}
    assert [alias.name for node in at_the_top for alias in node.names if alias.asname or alias.name == "*"] == []
    assert "SOURCE = Path(__file__).read_bytes()" in path.read_text(encoding="utf-8").splitlines()


@EACH
def test_what_travels_stands_alone(path):
    module = import_module(module_of(path))
    joined = _joined(module, path)
    first, *lines = joined.decode().splitlines()
    files = first.removeprefix("# Joined from ").split(", ") if first.startswith("# Joined") else [path.name]
    assert (
        len(files) == len(set(files)) == lines.count("SOURCE = Path(__file__).read_bytes()")
    )  # none stands there twice
    assert {name.partition(".")[0] for name in imported(joined)} <= ALLOWED
    assert RELATIVE.search(joined.decode()) is None
    assert _joined(SimpleNamespace(__name__=module.__name__, SOURCE=joined), path) == joined
    assert joined.startswith(b"# Joined from " if ours(imported(path)) else b"# Copyright")


@EACH
def test_a_name_has_one_meaning_in_what_travels(path):
    defined, brought = Counter(), {}
    for node in ast.parse(_joined(import_module(module_of(path)), path)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined[node.name] += 1
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined.update(name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name, origin = alias.asname or alias.name.partition(".")[0], (getattr(node, "module", ""), alias.name)
                assert brought.setdefault(name, origin) == origin
    assert {name for name, times in defined.items() if times > 1} <= {"SOURCE", "logger"}
    assert not defined.keys() & brought.keys()


@pytest.mark.parametrize("path", [path for path in TRAVELLING if not path.stem.startswith("modular_")])
def test_what_travels_has_one_pipeline_at_most(path):
    """diffusers refuses a file with two, and takes the only one of a pipeline's file."""
    tree = ast.parse(_joined(import_module(module_of(path)), path))
    bases = [ast.unparse(base) for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases]
    tasks = {module_of(path) for path in TRAVELLING if path.stem.startswith("pipeline_")}
    assert bases.count("DiffusionPipeline") == (module_of(path) in tasks)
    assert not ours(imported(path)) & tasks  # no task's class is the base of another's


def test_the_blocks_of_the_modular_pipeline_stand_on_three_pipelines():
    """Which is for diffusers to load by its name, and no pipeline's file."""
    (path,) = [path for path in TRAVELLING if path.stem.startswith("modular_")]
    assert len([module for module in ours(imported(path)) if "pipeline_" in module]) == 3


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT / "src").as_posix())
def test_package_never_imports_training(path):
    assert not {name for name in imported(path) if name.partition(".")[0] in ("mezzotint_training", "training")}


@pytest.mark.parametrize(
    "line", ['"""Text\n    from .unet import Model\n"""', "from .unet import A", "from . import unet"]
)
def test_relative_import_is_seen(tmp_path, line):
    (tmp_path / "file.py").write_text(line)
    assert RELATIVE.search(line) or any(name.startswith(".") for name in imported(tmp_path / "file.py"))


def test_importing_the_package_loads_nothing_that_its_base_classes_do_not():
    base = "from diffusers import DiffusionPipeline, ModelMixin\nfrom transformers import PreTrainedModel"
    every = "import mezzotint, mezzotint.hub, mezzotint.drawing, mezzotint.demo.pictures"
    every += "".join(f", mezzotint.samples.{name}" for name in ("image", "audio", "video", "voxels", "molecules"))
    assert loaded_by(every, after=base) == {"mezzotint"}


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["no-such-command"]])
def test_command_line_is_light_until_it_hands_on(arguments):
    loaded = loaded_by(f"from mezzotint_training.cli import main\nmain({arguments!r})")
    assert "mezzotint_training" in loaded
    assert not loaded & {"torch", "numpy", "diffusers", "transformers", "accelerate", "datasets", "mezzotint"}
