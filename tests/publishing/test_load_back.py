"""What is loaded back must draw what was saved, and what was saved what was trained: found out by a stranger's process,
by the run itself, and by the words of the verdict."""

import json
import resource

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from strangers import forked, in_a_fork
from tiny_run import run

from mezzotint import MezzotintImg2ImgPipeline, MezzotintPipeline
from mezzotint_training.config.errors import CannotGoOn
from mezzotint_training.publishing import load_back, stranger
from mezzotint_training.publishing.load_back import NotTried, Source, compare


@pytest.fixture
def saved(make_pipe, tmp_path):
    """A saved pipeline, a drawing of it and its picture."""
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "saved")
    drawing = load_back.drawing(pipe, "a red boot", seed=3, guidance_scale=3.0)
    return tmp_path / "saved", drawing, drawing.by(pipe)


def spoil(folder) -> None:
    """Double one weight of the U-Net."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.weight"] = 2 * tensors["conv_out.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_fresh_interpreter_without_mezzotint_draws_the_same_bits(saved):
    """The one test of the process itself; all others fork it."""
    folder, drawing, picture = saved
    assert picture.shape == (1, 8, 8, 3) and picture.std() > 0.05
    verdict = load_back.as_a_stranger(Source(str(folder)), drawing, picture)
    assert verdict.largest == 0 and str(verdict) == "the same picture, to the bit" and verdict.seconds > 0


def test_other_weights_and_other_drawings_are_told(saved):
    folder, drawing, picture = saved
    with forked():
        assert load_back.as_a_stranger(Source(str(folder)), drawing, picture).largest == 0
        other = drawing._replace(arguments=drawing.arguments | {"prompt": "a blue hat"})
        assert not load_back.as_a_stranger(Source(str(folder)), other, picture).same
        spoil(folder)
        verdict = load_back.as_a_stranger(Source(str(folder)), drawing, picture)
    assert not verdict.same and str(verdict).startswith("another picture: ")


def test_code_that_needs_the_package_is_found_out(saved):
    folder, drawing, picture = saved
    (code,) = folder.glob("unet/*.py")
    code.write_text(f"import mezzotint\n{code.read_text()}")
    with forked(), pytest.raises(CannotGoOn) as raised:
        load_back.as_a_stranger(Source(str(folder)), drawing, picture)
    assert str(raised.value).endswith("import of mezzotint halted; None in sys.modules") and "\n" not in str(
        raised.value
    )


def test_a_full_disk_is_told_in_one_line(saved, monkeypatch):
    folder, drawing, picture = saved

    def limited(asked) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # as of a quota, and less than its code
        stranger_main(asked)

    stranger_main = stranger.main
    monkeypatch.setattr(stranger, "main", limited)
    monkeypatch.setattr(load_back, "in_a_process", in_a_fork)
    with pytest.raises(NotTried, match="^it cannot be loaded back where mezzotint is not installed: .*too large"):
        load_back.as_a_stranger(Source(str(folder)), drawing, picture)


def test_a_process_that_is_killed_is_told_by_its_signal_and_a_run_is_finished_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(load_back, "in_a_process", lambda folder: (-9, ""))
    result = run(output_dir=tmp_path / "run", load_back=True, max_train_steps=1)
    assert result.code == 0 and "its process was ended by signal 9; `mezzotint doctor " in result.out
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["load_back"]
    assert found["largest"] == 0 and found["where"] == "here"


@pytest.mark.parametrize(
    "apart, same, words",
    [
        (np.zeros(1000), True, "the same picture, to the bit"),
        (np.full(1000, 1e-6), True, "the same picture but for rounding, at most 1e-06 of 1"),
        (np.r_[np.ones(10), np.zeros(990)], True, "the same picture but for rounding, at most 1 of 1"),
        (np.r_[np.full(20, 0.5), np.zeros(980)], False, "another picture: 2% of its values differ, up to 0.5 of 1"),
        (np.full(1000, 0.003), False, "another picture: 100% of its values differ, up to 0.003 of 1"),
        (np.full(1000, np.nan), False, "another picture: 100% of its values differ, not of its size, or not finite"),
        (np.zeros(999), False, "another picture: 100% of its values differ, not of its size, or not finite"),
    ],
)
def test_pictures_are_compared_by_their_values(apart, same, words):
    verdict = compare(apart, np.zeros(1000))
    assert (verdict.same, str(verdict)) == (same, words)


def test_a_drawing_is_of_the_pipelines_own_task(make_pipe):
    text = make_pipe()
    image = MezzotintImg2ImgPipeline.from_pipe(text)
    drawing = load_back.drawing(image, "a red boot")
    assert set(drawing.inputs) == {"image"} and drawing.inputs["image"].shape == (1, 3, 8, 8)
    assert not np.array_equal(drawing.by(image), load_back.drawing(text, "a red boot").by(text))


# ------------------------------------------------------------------------------------------------------------ of a run


def test_a_run_is_loaded_back_before_it_is_finished(tmp_path):
    with forked():
        result = run(output_dir=tmp_path / "run", load_back=True)
    assert result.code == 0
    said = [line for line in result.out.splitlines() if line.startswith("loaded back where mezzotint is not installed")]
    assert len(said) == 1 and "the same picture, to the bit" in said[0]
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["load_back"]
    assert found["largest"] == 0 and found["where"] == "where mezzotint is not installed"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "loaded back where mezzotint is not installed and drew the same picture, to the bit, as the network" in card


def test_a_run_whose_saved_weights_are_others_is_not_finished(tmp_path, monkeypatch):
    save = MezzotintPipeline.save_pretrained
    monkeypatch.setattr(MezzotintPipeline, "save_pretrained", lambda self, folder: (save(self, folder), spoil(folder)))
    result = run(output_dir=tmp_path / "run", checkpointing_steps=1)
    assert result.code == 3 and not (tmp_path / "run" / "model_index.json").exists()
    last = result.err.splitlines()[-1]
    assert "what was saved is not what was trained, and not put in place: loaded back, it draws another picture" in last
    monkeypatch.undo()  # with the fault mended the same command goes on
    assert run(output_dir=tmp_path / "run", checkpointing_steps=1).code == 0
    pipe = MezzotintPipeline.from_pretrained(tmp_path / "run")
    assert all(torch.isfinite(p).all() for p in pipe.unet.parameters())
