"""The table of what a diffusers user would try on a checkpoint, made with a tiny one."""

from mezzotint_training.benchmarks import diffusers_ways


def test_all_work_or_a_line_says_why_not(save_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    found = diffusers_ways.outcomes(str(save_pipe(tmp_path / "pipe")))
    assert [outcome for outcome in found if not outcome.as_expected] == []
    assert len(found) == len(diffusers_ways.ATTEMPTS) == len({outcome.name for outcome in found})


def test_what_comes_out_otherwise_is_told(save_pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    works, fails = (lambda folder, pipe: "drawn"), (lambda folder, pipe: pipe("a", num_inference_steps=0))
    attempts = [("a", works), ("b", fails), ("c", works, "not yet"), ("d", fails, "never", KeyError)]
    monkeypatch.setattr(diffusers_ways, "ATTEMPTS", [diffusers_ways.Attempt(*each) for each in attempts])
    found = diffusers_ways.outcomes(str(save_pipe(tmp_path / "pipe")))
    assert [outcome.as_expected for outcome in found] == [True, False, False, False]
    assert found[1].said == "no: ValueError: num_inference_steps must be a positive whole number: got 0"
    assert [outcome.said for outcome in (found[0], *found[2:])] == ["works: drawn", "works: drawn", "no: never"]
