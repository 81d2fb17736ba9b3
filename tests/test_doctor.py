"""The doctor: what is right with an installation, a folder or a data set, what is wrong, and what mends it; it changes
nothing."""

import importlib.metadata
import shutil

import pytest
from strangers import forked
from tiny_run import pictures, trained, tree

from mezzotint import hub
from mezzotint_training import cli
from mezzotint_training.publishing import load_back


@pytest.fixture
def doctor(capsys, monkeypatch):
    """`doctor(*argv)`: the exit code and the lines."""
    monkeypatch.setattr(hub, "refusals", lambda *asked: [])

    def call(*argv) -> tuple[int, list[str]]:
        with forked():
            code = cli.main(["doctor", *map(str, argv)])
        out, err = capsys.readouterr()
        return code, (out + err).splitlines()

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run."""
    return trained(tmp_path_factory.mktemp("runs") / "run", license="mit", checkpointing_steps=1)


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def kinds(lines: list[str], words: str) -> set[str]:
    """What the lines that hold `words` begin with."""
    return {line.split()[0] for line in lines if words in line}


def test_an_installation_lacks_what_its_metadata_ask_for(doctor, monkeypatch):
    asked = ["torch>=2.5", "nosuch>=1; extra == 'train'", "torch>=999; extra == 'demo'", "pytest; extra == 'test'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    code, lines = doctor()
    assert code == 0 and kinds(lines, "python 3.") == {"ok"} and kinds(lines, "CPU threads") <= {"ok"}
    assert "note   training, evaluating and publishing lacks nosuch>=1: pip install 'mezzotint[train]'" in lines
    assert any(line.startswith("note   mezzotint demo lacks torch>=999 (there is ") for line in lines)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["nosuch>=2"])
    code, lines = doctor()
    assert code == 1 and "wrong  mezzotint itself lacks nosuch>=2: pip install mezzotint" in lines


def test_a_finished_run_is_well_and_nothing_in_it_is_touched(doctor, folder):
    before = tree(folder)
    code, lines = doctor(folder)
    assert code == 0 and not any(line.startswith("wrong") for line in lines)
    assert kinds(lines, "a finished run of 3 updates of 3") == {"ok"}
    assert kinds(lines, "its code is the installed package's, byte for byte") == {"ok"}
    assert kinds(lines, "where mezzotint is not installed it draws the same picture, to the bit") == {"ok"}
    assert kinds(lines, "it was not evaluated") == {"note"}
    assert tree(folder) == before


def test_what_is_wrong_with_a_folder_is_told_all_at_once(doctor, folder, tmp_path, monkeypatch):
    (folder / "LICENSE").write_text(f"by Jane, {tmp_path}, hf_{'a' * 34}\n")
    (code,) = folder.glob("unet/*.py")
    code.write_text(f"{code.read_text()}\nraise SystemExit('it ran')\n")
    ran = []
    monkeypatch.setattr(load_back, "as_a_stranger", lambda *asked: ran.append(asked))
    code, lines = doctor(folder)
    assert code == 1 and not ran
    assert kinds(lines, "LICENSE must hold no secret: what looks like a Hugging Face token") == {"wrong"}
    assert kinds(lines, f"LICENSE must name no place on this machine: got {tmp_path}") == {"wrong"}
    assert kinds(lines, "its code is not the installed package's: unet/unet_mezzotint_v") == {"note"}
    assert kinds(lines, "it loads by the installed package's code") == {"ok"}
    assert kinds(lines, "--trust_remote_code does") == {"note"}


def test_a_run_in_the_middle_is_told_where_it_would_go_on(doctor, folder):
    (folder / "model_index.json").unlink()
    assert doctor(folder)[0] == 1
    [line] = [line for line in doctor(folder)[1] if "no finished pipeline" in line]
    assert "its last whole checkpoint is of update 3 of 3, of 2 checkpoints; the same command goes on" in line
    (folder / "checkpoint-3" / "weights.safetensors").write_bytes(b"")
    lines = doctor(folder)[1]
    assert kinds(lines, "its last whole checkpoint is of update 2 of 3") == {"wrong"}
    assert kinds(lines, "checkpoint-3") == {"wrong"}


def test_a_data_set_is_looked_through(doctor, tmp_path):
    place = pictures(tmp_path / "good", captions=[f"picture {index}" for index in range(9)] + [""])
    code, lines = doctor(place)
    assert code == 0 and kinds(lines, "10 of 10 rows") == {"ok"} and kinds(lines, "an empty caption") == {"note"}
    (place / "3.png").write_bytes(b"no picture")
    code, lines = doctor(place)
    assert code == 1 and kinds(lines, "picture in row 3") == {"wrong"} and kinds(lines, "--on_bad_row skip") == {"note"}
    code, lines = doctor(place, "--caption_column", "nosuch")
    assert code == 1 and kinds(lines, "nosuch") == {"wrong"}


def test_a_folder_that_is_not_there_is_bad_input(doctor, tmp_path):
    code, lines = doctor(tmp_path / "gone")
    assert code == 2 and lines[-1].startswith("mezzotint: doctor needs a folder that is there, or a data set's name")
