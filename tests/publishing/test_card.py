"""An evaluation stays with the weights and the steps that it was of, in the folder and in the card. What a card says is
text: nothing that it quotes is markup or code."""

import ast
import json

import pytest
import yaml
from evaluations import EVALUATION
from huggingface_hub import ModelCard, parse_eval_result_entries
from markdown_it import MarkdownIt
from PIL import Image
from tiny_run import run, trained

from mezzotint import MezzotintPipeline, hub, markdown
from mezzotint_training import fit_scheduler
from mezzotint_training.config.errors import UserError
from mezzotint_training.engine.files import hold
from mezzotint_training.publishing import card, facts, plots

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


def test_the_losses_are_told_at_a_few_updates_the_last_among_them(tmp_path):
    assert facts.losses(tmp_path) == []
    log = [{"step": 10 * i, "loss": 1 / i, "held_out_loss": float(i)} for i in range(1, 101)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*log, {"step": 1001, "lr": 0}])))
    found = facts.losses(tmp_path)
    assert [row[0] for row in found] == ["120", "250", "380", "500", "620", "750", "880", "1,000"]
    assert found[-1] == ("1,000", "0.0100", "100.0000")
    for entry in log[4:]:
        del entry["held_out_loss"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    assert [row[0] for row in facts.losses(tmp_path)] == ["10", "20", "30", "40"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps({"step": i, "loss": 2.0}) for i in (1, 2)))
    assert facts.losses(tmp_path) == [("1", "2.0000", ""), ("2", "2.0000", "")]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}')
    assert facts.losses(tmp_path) == []


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
    figures = {(x.metric_type, x.metric_value, *x.metric_args["interval"]) for x in ModelCard(text).data.eval_results}
    assert ("copy_rate", 0.25, 0.125, 0.5) in figures and ("kernel_distance-random", 0.25, 0.125, 0.5) in figures
    text, plain = ModelCard(text).text, ModelCard(plain).text
    assert text.replace(text[text.index("## How good") : text.index("## How it was")], "").startswith(
        plain[: plain.index("## Limits")]
    )
    log = [{"step": i, "loss": 0.5, "held_out_loss": 0.25} for i in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    card.rewrite(folder)
    rows = "|--:|--:|--:|\n| 1 | 0.5000 | 0.2500 |\n| 2 | 0.5000 | 0.2500 |\n\nThe command:\n"
    assert rows in (folder / "README.md").read_text()

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


def test_fitted_steps_stand_beside_the_default_and_the_best_stock_solver_only(tmp_path):
    errors = {"default": [0.3, 0.4], "DDIM": [0.25, 0.3], "fitted": [0.125, 0.2], "uncorrected": [0.1875, 0.2]}
    table = {"num_inference_steps": 3, "guidance_scale": 2.0, "provenance": {"teacher_steps": 50}}
    (tmp_path / "scheduler").mkdir()
    path = tmp_path / "scheduler" / "scheduler_config.json"
    for kept in (errors, {name: errors[name] for name in errors if name != "uncorrected"}):
        table["provenance"]["held_out_rmse"] = kept
        path.write_text(json.dumps({"_fitted_schedules": [table]}))
        assert "| 3 | 2.0 | 0.125 | 0.300 | 0.250 (DDIM) |\n" in card.card_text(tmp_path, SETTINGS, METRICS, None)


def test_paths_that_are_there_are_told_by_their_last_part_and_names_stay(tmp_path, monkeypatch):
    (tmp_path / "deep" / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep")
    plain = {str(tmp_path / "deep" / "set"): [str(tmp_path / "deep"), "set", ".", 0.5, None, "user/set", ""]}
    assert card.without_paths(plain) == {"set": ["deep", "set", "deep", 0.5, None, "user/set", ""]}


# ------------------------------------------------------------------------------------------------------ text as itself

METRICS = {
    "pictures": 40, "steps": 4, "seconds": 1.0, "images_per_second": 2.0, "loss": 0.5, "device": "cpu",
    "processor": "x86", "processes": 1, "threads": 1, "mixed_precision": "no", "parameters": {"unet": 5},
}  # fmt: skip
SETTINGS = {
    "train_data_dir": "sprites", "train_batch_size": 2, "gradient_accumulation_steps": 1, "num_inference_steps": 4,
    "guidance_scale": 2.0, "rank": 4,
}  # fmt: skip
HOSTILE = [
    'a "red" boot', "it's", "back\\slash\\", "\\", '"', "\\\"", "' + 1 #", 'x"); import os; os.system("id") #',
    "two\nlines", "a\r\n---\r\nlicense: other\r\n---\r\n", "`code`", "```", "\n```\n# out", "~~~",
    "<script>alert(1)</script>", "<!-- ", "-->", "&lt;", "[a](javascript:b)", "![a](http://b)", "| a | b |",
    "# no heading", "*a* _b_ __c__ ~d~ e_f _", "a_b__c", "{{ settings }}", "{% raw %}", "$x^2$", "", " ", "\t",
    "\x00\x1b[31m", "\u202eevil\u202c", "\u2028", "\x85", "\ud800", "émoji 👨\u200d👩\u200d👧 😀", "a" * 5000,
]  # fmt: skip


def code_of(text: str) -> ast.Module:
    """The Python of a card, as a reader copies it."""
    [block] = [t for t in MarkdownIt("gfm-like", {"linkify": False}).parse(ModelCard(text).text) if t.info == "python"]
    return ast.parse(block.content)


def calls(tree: ast.Module) -> dict[str, ast.Call]:
    """The calls in it by their names, each of which is made once and has no call in it."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = {node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id: node for node in found}
    assert len(found) == len(named)
    return named


def outline(text: str) -> list[tuple]:
    """What a card is made of, without its text."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(ModelCard(text).text)
    return [(t.type, [x.type for x in t.children or () if x.type != "text"]) for t in tokens]


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_a_prompt_holds_is_a_string_in_the_code_and_text_beside_it(tmp_path, text):
    folder = tmp_path / "run"
    folder.mkdir()
    prompts = {"validation_prompts": [text, "plain"], "dataset_license": text or "CC0", "license": "mit"}
    written = card.card_text(folder, SETTINGS | prompts, METRICS, "samples/step-000004.png")
    found = calls(code_of(written))
    assert set(found) == {"from_pretrained", "pipe", "save"}
    assert ast.literal_eval(found["pipe"].args[0]) == text
    usual = prompts | {"validation_prompts": ["usual", "plain"], "dataset_license": "usual"}
    plain = card.card_text(folder, SETTINGS | usual, METRICS, "samples/step-000004.png")
    assert outline(written) == outline(plain)
    if text.isprintable() and text.strip():
        [token] = [t for t in MarkdownIt().parse(ModelCard(written).text) if "same starting noise" in t.content]
        shown = "".join(x.content for x in token.children)
        assert f'the columns are "{" ".join(text.split())}", "plain"' in shown
    assert ModelCard(written).data.license == "mit" and hub.unedited(written)
    if text not in ("\ud800", "\x85"):  # which no YAML holds, and which it reads as a space
        assert ModelCard(written).data.widget[0]["text"] == text


@pytest.mark.parametrize("text", [x for x in HOSTILE if x.strip() and len(x) < 99 and not set("/\x00\ud800") & set(x)])
@pytest.mark.parametrize("kind", ["pipeline", "adapters"])
def test_whatever_a_folder_is_called_stands_as_itself_and_gives_way_to_the_repository(tmp_path, text, kind):
    folder = tmp_path / "jane" / text
    folder.mkdir(parents=True)
    base = {"pretrained_model_name_or_path": str(tmp_path / "jane" / f"base {text}"), "revision": text}
    settings = SETTINGS | {"train_data_dir": str(folder)} | base | ({"adapter": "lora"} if kind == "adapters" else {})
    written = card.card_text(folder, settings, METRICS, None)
    assert "jane" not in written
    loading = {"pipeline": "from_pretrained", "adapters": "load_lora_weights"}[kind]
    found = calls(code_of(written))
    assert ast.literal_eval(found[loading].args[0]) == f"./{text}"
    if kind == "adapters":
        assert ast.literal_eval(found["from_pretrained"].args[0]) == f"./base {text}"
        assert ast.literal_eval(found["from_pretrained"].keywords[1].value) == text
    pattern = hub.LOADING[hub.ADAPTERS if kind == "adapters" else hub.INDEX]
    published, count = pattern.subn(r'\1"user/name"', written)
    assert count == 1 and hub.unedited(published)
    assert ast.literal_eval(calls(code_of(published))[loading].args[0]) == "user/name"
    usual = tmp_path / "jane" / "usual"
    usual.mkdir()
    settings |= {"train_data_dir": "usual", "pretrained_model_name_or_path": "./usual", "revision": "main"}
    assert outline(written) == outline(card.card_text(usual, settings, METRICS, None))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_block_of_code_ends_where_it_should(text):
    shown = text.replace("\r\n", "\n").replace("\x00", "\ufffd")
    tokens = MarkdownIt().parse(markdown.fenced(text, "bash") + "\n\nafter\n")
    assert [t.type for t in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content == shown + "\n" and tokens[0].info == "bash"
    [_, inline, _] = MarkdownIt().parse(f"a {markdown.code(text)} b")
    assert [t.type for t in inline.children] == ["text", "code_inline", "text"]
    assert inline.children[1].content.strip() == " ".join(text.split()).replace("\x00", "\ufffd")


@pytest.mark.parametrize(
    "name, content",
    [
        ("recipe.yaml", "seed: [1"), ("recipe.yaml", "- 1"), ("recipe.yaml", b"\xff"), ("recipe.yaml", "seed: 1"),
        ("recipe.yaml", "train_batch_size: many"),
        ("metrics.json", ""), ("metrics.json", "[]"), ("metrics.json", "null"),
        ("metrics.json", '{"pictures": "many"}'), ("metrics.json", '{"pictures": 1}'), ("metrics.json", "[" * 100_000),
        ("evaluation.json", "{"), ("evaluation.json", "[]"), ("evaluation.json", "{}"),
        ("evaluation.json", '{"settings": 1, "pictures": {}, "data": null}'),
    ],
)  # fmt: skip
def test_a_card_of_broken_files_is_refused_in_one_line_and_the_old_one_stays(tmp_path, name, content):
    (tmp_path / "recipe.yaml").write_text(json.dumps(SETTINGS))
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    card.rewrite(tmp_path)
    before = (tmp_path / "README.md").read_bytes()
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError):  # before what the card is to say is found out
        card.check(tmp_path)
    with pytest.raises(UserError) as raised:
        card.rewrite(tmp_path)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)
    assert (tmp_path / "README.md").read_bytes() == before


def test_a_card_takes_the_place_of_a_link_and_is_not_written_through_it(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "secret").write_text("words")
    (tmp_path / "run" / "README.md").symlink_to(tmp_path / "secret")
    with hold(tmp_path / "run"):
        card.write(tmp_path / "run", SETTINGS, METRICS, None)
    assert (tmp_path / "secret").read_text() == "words"
    assert "# run" in (tmp_path / "run" / "README.md").read_text()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["README.md"]


def test_a_recipe_cannot_put_code_into_the_card_in_place_of_a_number(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    settings = SETTINGS | {"num_inference_steps": "4); import os", "guidance_scale": "2); exit("}
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    card.rewrite(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "import os" not in text and "exit" not in text


def test_a_last_window_without_a_finite_loss_has_a_card(tmp_path):
    text = card.card_text(tmp_path, SETTINGS, METRICS | {"loss": None}, None)
    assert "| last training loss | none that is finite |" in text


def test_a_card_says_what_it_is_of_by_what_the_run_left(tmp_path):
    folder = trained(tmp_path / "run", max_train_steps=2, dataset_license="CC0")
    text, metrics = (folder / "README.md").read_text(), json.loads((folder / "metrics.json").read_text())
    for words in (
        "| network | a U-Net of 2 levels with 16, 32 channels and 1 residual block each; attention in levels 2; reads "
        "text of 16 channels; draws 1 channels at 8x8 pixels; dropout 0.1 |",
        "| text encoder | T5EncoderModel, 1 layers of 16 channels |",
        "| set | `digits`, CC0 |",
        f"| hardware | {metrics['hardware']} |",
        f"torch {metrics['versions']['torch']}",
        "- `max_train_steps`: `2`\n",
        "```bash\nmezzotint train --recipe digits --max_train_samples 40 ",
    ):
        assert words in text, words
    assert "`adam_beta1`" not in text and "`output_dir`" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("dataset", ["user/boots", None])
def test_figures_go_to_the_hub_in_both_of_its_forms(tmp_path, dataset):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    source = {"dataset_name": dataset, "train_data_dir": None if dataset else "sprites"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(SETTINGS | source))
    card.keep(tmp_path, EVALUATION | {"data": source})
    data = ModelCard((tmp_path / "README.md").read_text()).data
    assert len(data.eval_results) == 6 and data.model_name == tmp_path.name
    assert {x.dataset_type for x in data.eval_results} == {dataset or "sprites"}
    assert {x.metric_args.get("real") for x in data.eval_results} == {0.75, None}
    path = tmp_path / ".eval_results" / "mezzotint.yaml"
    assert path.is_file() == (dataset is not None)  # that form names a set on the Hub
    if dataset is not None:
        entries = parse_eval_result_entries(yaml.safe_load(path.read_text()))
        assert [(x.dataset_id, x.value) for x in entries] == [("user/boots", 0.25)] * 6
        [copies] = [x for x in entries if x.task_id == "copy_rate"]
        assert copies.notes == "copy rate (clip); 95 % interval 0.125 to 0.5; real pictures 0.75"
        card.drop_evaluation(tmp_path)
        assert not path.exists() and not (tmp_path / card.EVALUATION).exists()


def test_a_course_is_plotted_where_there_is_enough_of_it(tmp_path):
    pytest.importorskip("matplotlib")
    log = [{"step": i, "loss": 1 / i} | ({"held_out_loss": 2 / i} if i % 4 == 0 else {}) for i in range(1, 13)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log[:5]))
    with hold(tmp_path):
        assert plots.plot(tmp_path) is None
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + "{cut")
        assert plots.plot(tmp_path) == "samples/course.png"
    with Image.open(tmp_path / "samples" / "course.png") as picture:
        assert picture.size[0] > picture.size[1] > 300 and not picture.text
    assert "![losses by update](samples/course.png)" in card.card_text(tmp_path, SETTINGS, METRICS, None)
