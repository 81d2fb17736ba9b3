"""The program behind the page: what it refuses before it serves, whose code it runs, and the Space that it writes."""

import importlib.util
import json
import multiprocessing
import os
import shutil
import socket
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml

from mezzotint import MezzotintPipeline, hub
from mezzotint_training import cli

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
GRADIO = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed: pip install 'mezzotint[demo]'"
)


@pytest.fixture
def folder(make_pipe, tmp_path, capsys):
    make_pipe().save_pretrained(tmp_path / "tiny")
    capsys.readouterr()
    return tmp_path / "tiny"


def demo(*argv) -> int:
    return cli.main(["demo", *map(str, argv), "--device", "cpu"])


@GRADIO
@pytest.mark.parametrize(
    "argv, words",
    [
        (["{tmp}/none/at/all"], "checkpoint {tmp}/none/at/all cannot be loaded"),
        (["{tmp}"], "model_index.json"),
        (["{tmp}/tiny", "--port", "0"], "port must be at least 1: got 0"),
        (["{tmp}/tiny", "--port", "65536"], "port must be at most 65,535: got 65536"),
        (["{tmp}/tiny", "--concurrency_limit", "0"], "concurrency_limit must be at least 1: got 0"),
        (["{tmp}/tiny", "--space", "{tmp}/tiny"], "space must be a new or an empty folder: got {tmp}/tiny"),
        (["{tmp}/tiny", "--space", "{tmp}/x", "--trust_remote_code"], "trust_remote_code is not for a Space"),
        (["{tmp}/tiny", "--host", "no.such.host.invalid"], "host and port must be free to serve at: got no.such"),
        (["{tmp}/tiny", "--port", "{used}"], "host and port must be free to serve at: got 127.0.0.1, {used}"),
    ],
)
def test_what_cannot_be_served_is_one_line(folder, tmp_path, capsys, argv, words):
    before = sorted(tmp_path.rglob("*"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        names = {"tmp": tmp_path, "used": other.getsockname()[1]}
        assert demo(*(x.format(**names) for x in argv)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("mezzotint: ") and words.format(**names) in err
    assert sorted(tmp_path.rglob("*")) == before


@GRADIO
def test_damaged_weights_are_one_line(folder, capsys):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert demo(folder) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"checkpoint {folder} cannot be loaded" in err


@pytest.mark.parametrize(
    "missing, argv, package", [("gradio", [], "mezzotint[demo]"), ("mcp", ["--mcp"], "gradio[mcp]")]
)
def test_what_is_not_installed_is_named_with_the_command_that_brings_it(monkeypatch, capsys, missing, argv, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == missing else find("json" if name == "gradio" else name),
    )
    assert demo("x", *argv) == 2
    assert capsys.readouterr().err == f"mezzotint: demo needs {missing}; pip install '{package}' brings it\n"


@GRADIO
@pytest.mark.parametrize("trusted", [False, True])
def test_code_in_the_checkpoint_runs_only_where_it_is_trusted(folder, tmp_path, monkeypatch, capsys, trusted):
    (code,) = (folder / "unet").glob("*.py")
    code.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n" + code.read_text())
    served = {}

    def wait(self):  # Ctrl-C, while the page is up
        raise KeyboardInterrupt

    from mezzotint.demo import page

    def launch(blocks, **options):
        served.update(options)
        monkeypatch.setattr(threading.Event, "wait", wait)
        return None, "http://127.0.0.1:7860/", None

    monkeypatch.setattr(page, "launch", launch)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert demo(folder, *(["--trust_remote_code"] if trusted else []), "--port", port) == 0
    assert (tmp_path / "ran").exists() == trusted
    assert served["server_name"] == "127.0.0.1" and served["server_port"] == port
    assert not served["share"] and not served["mcp_server"]
    assert capsys.readouterr().out == "tiny: http://127.0.0.1:7860/ (Ctrl-C ends it)\n"


@GRADIO
def test_a_space_runs_alone_and_holds_what_is_published_and_no_more(folder, tmp_path, capsys):
    recipe = {"license": "apache-2.0", "train_data_dir": str(tmp_path), "validation_prompts": ["a red boot", "7"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "secret.txt").write_text("a token")
    MezzotintPipeline.from_pretrained(folder).text_encoder.half().save_pretrained(folder / "text_encoder")
    space = tmp_path / "space"
    assert demo(folder, "--space", space) == 0
    assert capsys.readouterr().out.startswith(f"{space}: a Space; ")
    assert not any("secret" in path.name for path in space.rglob("*"))
    assert str(tmp_path) not in "".join(path.read_text() for path in space.rglob("*.y*ml"))
    published = hub.content(folder).files
    assert {path.relative_to(space / "checkpoint").as_posix() for path in (space / "checkpoint").rglob("*.*")} == set(
        published
    )
    _, front, text = (space / "README.md").read_text(encoding="utf-8").split("---\n")
    about = yaml.safe_load(front)
    assert (about["title"], about["sdk"], about["app_file"], about["license"]) == (
        "tiny", "gradio", "app.py", "apache-2.0",
    )  # fmt: skip
    needed = (space / "requirements.txt").read_text().split()
    assert about["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"gradio=={about['sdk_version']}" in needed and all("==" in line and "+" not in line for line in needed)

    shutil.rmtree(folder)
    process = multiprocessing.get_context("fork").Process(target=run_app, args=(space, tmp_path / "said.json"))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    place, tasks, dtypes = json.loads((tmp_path / "said.json").read_text())
    assert Path(place).is_relative_to(space)
    assert dtypes == ["torch.float32"] or torch.cuda.is_available()  # a CPU computes little in float16
    assert tasks == ["text_to_image", "image_to_image", "inpaint", "forward_process"]


def run_app(space: Path, said: Path) -> None:
    """Run a Space's program where neither mezzotint nor what only training needs is installed, and write down which
    package it found, what the page can do, and in which types its networks compute."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mezzotint", "mezzotint_training")]:
        del sys.modules[name]
    for name in ("mezzotint_training", "datasets", "sklearn", "tensorboard"):
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    os.chdir(space)
    sys.path.insert(0, str(space))
    import app  # pyright: ignore[reportMissingImports]

    import mezzotint

    tasks = [fn.api_name for fn in app.page.fns.values() if fn.api_visibility == "public"]
    dtypes = {str(model.dtype) for model in (app.pipe.unet, app.pipe.text_encoder)}
    said.write_text(json.dumps([mezzotint.__file__, tasks, sorted(dtypes)]))


def test_a_space_of_a_pipeline_on_the_hub_names_it(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="its version is named")
    from mezzotint_training.publishing.space import write_space

    write_space(tmp_path / "space", 'user/"name', "name")
    assert 'SOURCE, NAME = "user/\\"name", "name"\n' in (tmp_path / "space" / "app.py").read_text()
    front = (tmp_path / "space" / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert yaml.safe_load(front)["models"] == ['user/"name']
    assert not (tmp_path / "space" / "checkpoint").exists()


def test_a_space_brings_what_shows_its_samples_where_it_is_installed(monkeypatch):
    pytest.importorskip("gradio", reason="its version is named")
    from mezzotint_training.publishing.space import requirements

    plain, molecules = requirements(), requirements("molecules")
    there = {name for name in ("rdkit", "selfies") if importlib.util.find_spec(name)}
    assert {line.partition("==")[0] for line in set(molecules) - set(plain)} == there
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rdkit" else find(name))
    assert not any(line.startswith("rdkit") for line in requirements("molecules"))


def test_adapters_have_no_space(tmp_path):
    pytest.importorskip("gradio", reason="its version is named")
    from mezzotint_training.config.errors import UserError
    from mezzotint_training.publishing.space import write_space

    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / hub.ADAPTERS).write_bytes(b"")
    with pytest.raises(UserError, match="^checkpoint must be a whole pipeline: .* holds adapters$"):
        write_space(tmp_path / "space", str(tmp_path / "lora"), "lora")
    assert not (tmp_path / "space").exists()
