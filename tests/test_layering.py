"""Who may import whom, read from the source and seen in fresh interpreters. The files of the layers 0 and 1 travel
inside checkpoints, alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TRAVELLING = [
    path for path in SOURCES if path.parent.name in ("models", "schedulers", "pipelines") and path.stem != "__init__"
]
ALLOWED = {"torch", "numpy", "PIL", "diffusers", "transformers", "huggingface_hub"} | sys.stdlib_module_names
# How diffusers finds the files that a checkpoint's file needs; docstrings and comments are not spared
RELATIVE = re.compile(r"^\s*import\s+\.(\S+)\s*$|^\s*from\s+\.(\S+)\s+import", re.MULTILINE)


def imported(path: Path) -> set[str]:
    """The full names of all modules that a file imports, anywhere in it; a relative one starts with a dot."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.stem)
def test_travelling_file_stands_alone(path):
    assert {name.partition(".")[0] for name in imported(path)} <= ALLOWED
    assert RELATIVE.search(path.read_text(encoding="utf-8")) is None


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
    assert loaded_by("import mezzotint, mezzotint.hub", after=base) == {"mezzotint"}


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["no-such-command"]])
def test_command_line_is_light_until_it_hands_on(arguments):
    loaded = loaded_by(f"from mezzotint_training.cli import main\nmain({arguments!r})")
    assert "mezzotint_training" in loaded
    assert not loaded & {"torch", "numpy", "diffusers", "transformers", "accelerate", "datasets", "mezzotint"}
