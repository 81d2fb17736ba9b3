"""What the pages promise about this repository: their commands, their links to files, headings and lines, their Python.

`python tests/test_readme.py` puts the links to lines right after these have moved.
"""

import ast
import os
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from mezzotint_training.config import arguments

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder, pattern in [("", "*.md"), ("src", "**/*.md"), ("training", "**/*.md"), ("model_cards", "*.md")]
    for path in sorted((ROOT / folder).glob(pattern))
}
README = PAGES["README.md"]
LINE_LINK = re.compile(r"\[`(\w+)`\]\(([\w/.]+)#L(\d+)\)")
LINE_LINKS = [(page, *link) for page, text in PAGES.items() for link in LINE_LINK.findall(text)]
CAMPAIGNS = ROOT / "tests" / "conftest.py"  # which has pytest's flags of ours
PROGRAMS = [*sorted((ROOT / "training").glob("*.py")), *sorted((ROOT / "training" / "benchmarks").glob("*.py"))]
SETTINGS = ROOT / "training" / "config" / "settings.py"
# Where else than in `settings.py` or `arguments.py` a program's flags are
OWN_SETTINGS = {
    "train_autoencoder": SETTINGS.with_name("autoencoder.py"),
    "distill": SETTINGS.with_name("distillation.py"),
    "train_cascade": SETTINGS.with_name("cascade.py"),
    "train_two_towers": SETTINGS.with_name("towers.py"),
    "train_prior": SETTINGS.with_name("prior.py"),
    "video_quality": ROOT / "training" / "benchmarks" / "judged.py",
    "solid_quality": ROOT / "training" / "benchmarks" / "judged.py",
}
ARGUMENTS = SETTINGS.with_name("arguments.py")
FLAGS = SETTINGS.with_name("flags.py")  # --recipe and --config


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def definitions(path: Path, name: str) -> list[int]:
    """The lines on which `name` is a function, a class, an argument or a field."""
    named = {ast.FunctionDef: "name", ast.ClassDef: "name", ast.arg: "arg", ast.AnnAssign: "target"}
    found = []
    for node in ast.walk(parsed(path)):
        label = getattr(node, named.get(type(node), ""), None)
        if (label.id if isinstance(label, ast.Name) else label) == name:
            found.append(node.lineno)
    return found


@cache
def flags(path: Path) -> set[str]:
    """What may be a flag of a program: the texts in its source, without dashes, and the names of its fields."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.removeprefix("--"))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """The code within lines of text."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose)]


def commands(text: str) -> list[list[str]]:
    """The words of each command, in blocks and within lines."""
    lines = "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    inline = [span for span in spans(text) if re.match(r"(mezzotint|python|accelerate|pytest|[\w/]+\.py) |--", span)]
    return [shlex.split(part, comments=True) for line in [*lines, *inline] for part in line.split(" && ")]


def program(words: list[str]) -> Path | None:
    """The file that a command runs, if it is one of ours."""
    if words[0] == "mezzotint":
        return ROOT / "training" / f"{words[1].replace('-', '_')}.py"
    if words[0] == "pytest":
        return CAMPAIGNS
    for word in words:
        if word.endswith((".py", ".sh")):
            return ROOT / word if "/" in word else ROOT / "training" / "benchmarks" / word
    return None


@pytest.mark.parametrize(("page", "name", "path", "line"), LINE_LINKS)
def test_a_link_leads_to_what_it_names(page, name, path, line):
    path = (ROOT / page).parent / path
    assert int(line) in definitions(path, name), f"{name} is defined in {path} at {definitions(path, name)}"


@pytest.mark.parametrize("page", PAGES)
def test_every_other_link_leads_to_a_file_or_a_heading(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", LINE_LINK.sub("", PAGES[page])):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            # as GitHub makes them: lower case, no punctuation, a dash for a space
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{page} links to {target}#{anchor}; there are {anchors}"


def test_every_page_can_be_reached_from_the_readme():
    reached, ahead = set(), ["README.md"]
    while ahead:
        page = ahead.pop()
        if page in PAGES and page not in reached:
            reached.add(page)
            targets = re.findall(r"\]\(([^)#:]+)", PAGES[page])
            ahead += [os.path.normpath(Path(page).parent / target) for target in targets]
    assert reached == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_a_page_are_there(page):
    inside = [
        span for span in spans(PAGES[page]) if re.fullmatch(r"(src|training|tests|model_cards)/[a-z\d_/.-]*", span)
    ]
    assert [path for path in inside if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_a_page_are_ones(page):
    for words in filter(None, commands(PAGES[page])):
        path = program(words)
        if path is None and not words[0].startswith("--"):
            continue  # another's program
        assert path is None or path.exists(), f"{page}: {words} runs {path}"
        if path is None:  # a flag alone, of any program
            known = set().union(*map(flags, [CAMPAIGNS, SETTINGS, *OWN_SETTINGS.values(), FLAGS, ARGUMENTS, *PROGRAMS]))
        elif (name := path.stem.replace("_", "-")) in arguments.TAKES:
            known = {flag.removeprefix("--") for flag in arguments.parser_of(name)._option_string_actions}
        else:
            known = flags(path) if path.suffix == ".py" else set()
            known = known | (flags(OWN_SETTINGS[path.stem]) if path.stem in OWN_SETTINGS else set())
            if path.stem.startswith("train") or path.stem == "slurm":
                known = known | flags(SETTINGS) | flags(FLAGS)
        known = known | {"config_file"}  # which is accelerate's
        for word in words:
            flag = word.removeprefix("--").removeprefix("no-")
            assert not word.startswith("--") or flag in known, f"{page}: {words} has {word}"
            assert not word.startswith(("tests/", "training/")) or (ROOT / word).exists(), f"{page}: {words} has {word}"


def test_the_readme_has_two_screens():
    assert len(README.splitlines()) <= 140


def test_the_walk_covers_its_ideas():
    walk = PAGES["src/mezzotint/README.md"]
    assert len(LINE_LINK.findall(walk)) >= 20
    ideas = (
        "Forward process", "Noise schedule", "bound", "Reparameterisation", "Score and noise", "U-Net",
        "Training objective", "DDPM", "DDIM", "Probability flow", "On text", "On classes", "Classifier guidance",
        "Classifier-free guidance", "Few steps",
    )  # fmt: skip
    for idea in ideas:
        assert idea in walk, idea


def test_the_second_command_is_what_continuous_integration_runs():
    first, second = re.findall(r"```bash\n(pip install[^\n]+)\n```", README)
    assert second in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    recipe = re.search(r"--recipe (\S+)", first).group(1)
    assert (ROOT / "training" / "recipes" / f"{recipe}.yaml").is_file()
    trained, shipped = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    compile(trained + shipped, "README.md", "exec")
    assert f'"runs/{recipe}"' in trained
    (folder,) = re.findall(r'from_pretrained\("([^"]+)"', shipped)
    assert (ROOT / folder / "model_index.json").is_file()


def test_the_python_of_all_pages_runs(tmp_path, monkeypatch, make_pipe):
    monkeypatch.chdir(tmp_path)
    make_pipe().save_pretrained("runs/digits")
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    for page, text in PAGES.items():
        if page == "src/mezzotint/README.md":
            continue  # the course, which test_course.py runs
        code = "".join(blocks(text, "python"))
        exec(compile(code, page, "exec"), {})
    assert {path.name for path in tmp_path.glob("*.png")} == {"seven.png", "face.png"}


if __name__ == "__main__":  # put the links right after lines have moved
    for page, text in PAGES.items():

        def put_right(link: re.Match, folder: Path = (ROOT / page).parent) -> str:
            return f"[`{link[1]}`]({link[2]}#L{definitions(folder / link[2], link[1])[0]})"

        (ROOT / page).write_text(LINE_LINK.sub(put_right, text), encoding="utf-8")
