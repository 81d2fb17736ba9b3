"""An evaluation stays with the weights and the steps that it was of, in the folder and in the card."""

import json

import pytest
from tiny_run import run, trained

from mezzotint import MezzotintPipeline
from mezzotint_training import card, fit_scheduler

FIGURE = {"value": 0.25, "interval": [0.125, 0.5]}
BOTH = FIGURE | {"real": {"value": 0.75, "interval": [0.625, 0.875]}}
EVALUATION = {
    "settings": {"num_inference_steps": 4, "guidance_scale": 2.0, "seed": 0},
    "data": {"dataset_name": None, "train_data_dir": "sprites"},
    "pictures": {"drawn": 50, "held_out": 40, "train": 60, "floor": 50, "new_captions": 0},
    "features": {"random": {"kernel_distance": BOTH, "frechet_distance": BOTH, "recall": BOTH}},
    "prompt_accuracy": {"two-tower": BOTH | {"choices": 8}},
    "copy_rate": BOTH | {"features": "clip", "threshold": 0.5, "same": 0.0},
    "held_out_loss": [FIGURE],
    "command": ["mezzotint", "evaluate", "my run", "--card"],
}
TABLE = """\
50 pictures in 4 steps, guidance 2, seed 0, against 40 held-out ones of `sprites`; the floor is of 50 of 60 training \
pictures. 95 % intervals.

| | drawn | real |
|---|---|---|
| kernel distance (KID) x 1000, random features | 250 (125 to 500) | 750 (625 to 875) |
| Fréchet distance, random features | 0.25 (0.125 to 0.5) | 0.75 (0.625 to 0.875) |
| recall, random features | 25.0% (12.5% to 50.0%) | 75.0% (62.5% to 87.5%) |
| prompt accuracy (two-tower, own caption of 8) | 25.0% (12.5% to 50.0%) | 75.0% (62.5% to 87.5%) |
| copy rate (clip, ratio below 0.50) | 25.0% (12.5% to 50.0%) | 75.0% (62.5% to 87.5%) |
| held-out loss, quarter 1 of the noise levels | 0.2500 (0.1250 to 0.5000) |  |
"""


def limits(text: str) -> str:
    return " ".join(text.partition("\n## Limits\n")[2].partition("\n<!-- mezzotint ")[0].split())


def test_a_run_drops_the_evaluation_of_other_weights_and_keeps_that_of_its_own(tmp_path):
    folder = trained(tmp_path / "run", max_train_steps=2)
    plain = (folder / "README.md").read_text()
    assert "Nothing was measured of its behaviour on other prompts, of copies of training pictures" in limits(plain)
    (folder / card.EVALUATION).write_text(json.dumps(EVALUATION))
    assert run(output_dir=folder, max_train_steps=2).code == 0  # again, with nothing left to do
    text = (folder / "README.md").read_text()
    assert f"\n## How good it is\n\n{TABLE}\n" in text and "```bash\nmezzotint evaluate 'my run' --card\n```" in text
    assert limits(text) == (
        "It draws what its training pictures show, at their size, and knows the words of their captions. Of its "
        "pictures, 25.0% (12.5% to 50.0%) are suspiciously nearer to one training picture than to any other, and 75.0% "
        "(62.5% to 87.5%) of held-out ones, which it never saw. Nothing was measured of its behaviour on prompts that "
        "are none of its captions, or of biases in the data."
    )
    assert text.replace(text[text.index("## How good") : text.index("## How it was")], "").startswith(
        plain[: plain.index("## Limits")]
    )

    assert run(output_dir=folder, max_train_steps=3).code == 0
    assert not (folder / card.EVALUATION).exists() and "How good" not in (folder / "README.md").read_text()

    # of a run that was killed after its last step, the figures that are there are of fewer
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"steps": 2}))
    (folder / card.EVALUATION).write_text(json.dumps(EVALUATION))
    assert run(output_dir=folder, max_train_steps=3).code == 0
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 3
    assert not (folder / card.EVALUATION).exists()


@pytest.mark.parametrize("steps", [3, 4])
def test_a_table_of_steps_drops_the_evaluation_of_as_many(make_pipe, tmp_path, steps):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path)
    (tmp_path / card.EVALUATION).write_text(json.dumps(EVALUATION))
    sigmas, taus = [9.0, 5.0, 2.0, 0.5][-steps:], [900.0, 700.0, 500.0, 200.0][-steps:]
    table = {"num_inference_steps": steps, "guidance_scale": 2.0, "sigmas": sigmas, "taus": taus}
    table["coefficients"] = [[0.5] * (i + 2) for i in range(steps)]
    fit_scheduler.keep(pipe, table, tmp_path)
    assert len(MezzotintPipeline.from_pretrained(tmp_path).scheduler.fitted(steps)) == 1
    assert (tmp_path / card.EVALUATION).exists() == (steps != 4)


def test_paths_that_are_there_are_told_by_their_last_part_and_names_stay(tmp_path, monkeypatch):
    (tmp_path / "deep" / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep")
    plain = {str(tmp_path / "deep" / "set"): [str(tmp_path / "deep"), "set", ".", 0.5, None, "user/set", ""]}
    assert card.without_paths(plain) == {"set": ["deep", "set", "deep", 0.5, None, "user/set", ""]}
