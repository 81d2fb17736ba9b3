# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""One GPU, unattended: that no part costs another, whatever comes of it. The parts themselves are stood in for."""

import json
import os
import shutil
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint_training.benchmarks import on_device, one_gpu
from mezzotint_training.benchmarks.one_gpu import Part, Results, run, run_all
from mezzotint_training.config.flags import parse_args

STAND_IN = """
import json, os, pathlib, subprocess, sys, time
what, *words = sys.argv[1:]
print("begun", what)
if what == "fail":
    sys.exit("mezzotint: cannot")
if what == "bad":
    print("mezzotint: one line", file=sys.stderr)
    sys.exit(2)
if what == "trace":
    try:
        raise ValueError("ours")
    except ValueError:
        import traceback; traceback.print_exc()
        sys.exit(2)
if what == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path(words[0]).write_text(str(child.pid))
    time.sleep(60)
if what == "figures":
    pathlib.Path(words[0]).write_text('{"loss": 2.0}\\n{"loss": 1.0}\\n{"lo')
if what == "look":  # which results are there already
    print(json.dumps(list(json.loads(pathlib.Path(words[0]).read_text())["parts"])))
"""


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return os.environ | {"PYTHONPATH": str(tmp_path)}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "one_gpu.json", {"device": "stand-in", "versions": {"torch": "0"}})


@pytest.mark.parametrize(
    "words, exits, expected",
    [
        (["fine"], 0, ("ok", 0, [])),
        (["fail"], 0, ("failed", 1, ["mezzotint: cannot"])),
        (["bad"], 2, ("ok", 2, ["mezzotint: one line"])),
        (["bad"], 3, ("failed", 2, ["mezzotint: one line"])),
        (["fine"], 2, ("failed", 0, [])),
    ],
)
def test_part_is_as_it_should_be_by_its_exit_code(environment, words, exits, expected):
    found = run(Part("part", ["stand_in", *words], exits), 30, environment)
    assert (found["state"], found["code"], found["stderr"]) == expected
    assert found["stdout"] == [f"begun {words[0]}"] and 0 <= found["seconds"] < 30


def test_bad_input_with_a_traceback_is_not_as_it_should_be(environment):
    found = run(Part("part", ["stand_in", "trace"], exits=2), 30, environment)
    assert (found["state"], found["code"], found["stderr"][-1]) == ("failed", 2, "ValueError: ours")


def test_part_that_hangs_is_killed_with_all_that_it_has_started(environment, tmp_path):
    began = time.monotonic()
    found = run(Part("part", ["stand_in", "hang", str(tmp_path / "pid")]), 3, environment)
    assert time.monotonic() - began < 15
    assert (found["state"], found["code"]) == ("stopped", None)
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):  # until whoever adopted it has taken note
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True).stdout.strip()
        if state in ("", "Z"):
            break
        time.sleep(0.05)
    assert state in ("", "Z")


@pytest.mark.parametrize("last, expected", [(False, [{"loss": 2.0}, {"loss": 1.0}]), (True, [{"loss": 1.0}])])
def test_figures_are_the_whole_lines_of_a_file(environment, tmp_path, last, expected):
    path = tmp_path / "figures.jsonl"
    part = Part("part", ["stand_in", "figures", str(path)], figures=path, last=last)
    assert run(part, 30, environment)["figures"] == expected


def test_each_result_is_written_before_the_next_part_begins_and_a_failure_stops_nothing(environment, results):
    look = ["stand_in", "look", str(results.path)]
    parts = [Part("a", ["stand_in", "fail"]), Part("b", look), Part("c", ["no_such_module"]), Part("d", look)]
    run_all(parts, time.monotonic() + 60, 1, results, environment)
    found = json.loads(results.path.read_text())["parts"]
    assert {name: part["state"] for name, part in found.items()} == {"a": "failed", "b": "ok", "c": "failed", "d": "ok"}
    assert [json.loads(found[name]["stdout"][-1]) for name in "bd"] == [["a"], ["a", "b", "c"]]
    assert "No module named no_such_module" in found["c"]["stderr"][-1]


def test_parts_that_come_too_late_are_noted_and_not_run(environment, results, tmp_path):
    hang = ["stand_in", "hang", str(tmp_path / "pid")]
    run_all([Part("a", hang), Part("b", hang)], time.monotonic() + 2, 1, results, environment)
    assert {name: part["state"] for name, part in results.content["parts"].items()} == {"a": "stopped", "b": "no time"}
    assert "1 stopped" in one_gpu.summary(results.content)


@pytest.fixture
def stand_ins(environment, tmp_path, monkeypatch):
    """All parts in little."""
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    part = {name: Part(name, ["stand_in", "fine"]) for name in ("one", "two", "speed", "sampling", "pictures")}
    asked = {}
    monkeypatch.setattr(one_gpu, "checks", lambda *_: [[part["one"]], [Part("bad", ["stand_in", "fail"]), part["two"]]])
    monkeypatch.setattr(one_gpu, "speed", lambda *_: part["speed"])
    monkeypatch.setattr(one_gpu, "sampling", lambda *_: part["sampling"])

    def pictures(data, work, device, seconds):
        asked["seconds"] = seconds
        for step in (500, 1000):
            (work / "pictures/samples").mkdir(parents=True, exist_ok=True)
            (work / f"pictures/samples/step-{step:06d}.png").write_bytes(b"%d" % step)
        return part["pictures"]

    monkeypatch.setattr(one_gpu, "pictures", pictures)
    (tmp_path / "data").mkdir()
    return asked


def test_whole_run_ends_with_its_results_and_the_last_pictures(stand_ins, tmp_path, capsys):
    argv = ["--data", str(tmp_path / "data"), "--minutes", "1", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert one_gpu.main(argv) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one_gpu.json", "pictures.png"]
    assert (tmp_path / "out/pictures.png").read_bytes() == b"1000"
    found = json.loads((tmp_path / "out/one_gpu.json").read_text())
    assert found["parts"].keys() == {"one", "bad", "two", "speed", "sampling", "pictures"}
    assert [name for name, part in found["parts"].items() if part["state"] != "ok"] == ["bad"]
    assert list(found["parts"])[-3:] == ["speed", "sampling", "pictures"]
    assert found["versions"]["torch"] == torch.__version__ and found["data"] == "data"
    assert 20 < stand_ins["seconds"] < 60  # what the others leave goes to the pictures
    out = capsys.readouterr().out
    assert "6 parts: 5 ok, 1 failed" in out and "bad: failed, code 1: mezzotint: cannot" in out
    assert one_gpu.main(argv) == 2  # another run's results are not written over
    assert json.loads((tmp_path / "out/one_gpu.json").read_text()) == found


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"--minutes": "0"}, "minutes must be above 0: got 0"),
        ({"--minutes": "nan"}, "minutes must be above 0: got nan"),
        ({"--minutes": "inf"}, "minutes must be above 0: got inf"),
        ({"--data": "nowhere"}, "data must be a folder: got nowhere"),
        ({"--device": "cuda"}, "device must be one of this machine's (cpu): got 'cuda'"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_done(stand_ins, tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    flags = {"--data": str(tmp_path / "data"), "--minutes": "1", "--out": str(tmp_path / "out"), "--device": "cpu"}
    assert one_gpu.main([word for flag in (flags | changes).items() for word in flag]) == 2
    assert capsys.readouterr().err == f"mezzotint: {message}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_runs_are_asked_for_with_settings_that_there_are(tmp_path, device):
    rounds = one_gpu.checks(tmp_path, tmp_path, device)
    parts = [part for parts in rounds for part in parts] + [one_gpu.pictures(tmp_path, tmp_path, device, 100)]
    assert len({part.name for part in parts}) == len(parts)
    trained = [part for part in parts if part.command[0] == "mezzotint_training.train"]
    assert len(trained) > 10
    for part in trained:
        parse_args(list(part.command[1:]), "")
    assert ("train: fp16" in {part.name for part in parts}) == (device == "cuda")
    assert parse_args(list(parts[-1].command[1:]), "").max_train_minutes == pytest.approx(65 / 60, abs=1e-3)
    if device == "cuda":
        assert ["sample: too large"] in [[part.name for part in parts] for parts in rounds]  # nothing runs beside it


# ----------------------------------------------------------------------------------------------------- on_device.py


@pytest.mark.parametrize("how", ["bfloat16", "broken"])
def test_pipeline_set_up_in_another_way_must_draw_the_same(make_pipe, tmp_path, capsys, monkeypatch, how):
    make_pipe().save_pretrained(tmp_path / "pipe")
    monkeypatch.setitem(on_device.HOW, "broken", lambda pipe, _: pipe.unet.conv_out.bias.data.fill_(9.0))
    argv = ["draw", str(tmp_path / "pipe"), "--how", how, "--device", "cpu", "--output", str(tmp_path / "figures")]
    assert on_device.main(argv) == (3 if how == "broken" else 0)
    (line,) = (tmp_path / "figures").read_text().splitlines()
    if how == "broken":
        assert "must be within 0.05 of the plain pipeline's: got " in capsys.readouterr().err
    else:
        assert 0 < json.loads(line)["difference"] < 0.05


@pytest.mark.parametrize("change", [0.0, 0.25])
def test_runs_are_compared_weight_by_weight(tmp_path, capsys, monkeypatch, change):
    for name in ("unet", "text_encoder", "checkpoint-3"):
        (tmp_path / "like" / name).mkdir(parents=True)
        save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "like" / name / "model.safetensors")

    def train(command):
        assert command[-3:] == ["--seed", "--output_dir", str(tmp_path / "work")]
        shutil.copytree(tmp_path / "like", tmp_path / "work")
        path = tmp_path / "work/text_encoder/model.safetensors"
        save_file({k: v + change * (k == "b") for k, v in load_file(path).items()}, path)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(on_device.subprocess, "run", train)
    argv = ["again", str(tmp_path / "like"), "--work", str(tmp_path / "work"), "--", "--seed"]
    assert on_device.main(argv) == 0
    assert json.loads(capsys.readouterr().out) == {"identical": change == 0, "largest_difference": change}


def test_sampling_times_each_pipeline_at_each_batch(tmp_path, capsys):
    shape = ["--size", "tiny", "--resolution", "8", "--batches", "1", "2", "--steps", "2", "--turns", "1"]
    argv = ["sampling", *shape, "--dtype", "float32", "--modes", "eager", "--device", "cpu"]
    assert on_device.main([*argv, "--output", str(tmp_path / "figures")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "figures").read_text().splitlines()]
    assert [(x["batch"], x["pipeline"]) for x in lines] == [
        (batch, name) for batch in (1, 2) for name in ("ours", "DPM-Solver++(2M)", "UniPC")
    ]
    for x in lines:
        assert x["mode"] == "eager" and x["images_per_second"] == pytest.approx(x["batch"] / x["seconds"])
