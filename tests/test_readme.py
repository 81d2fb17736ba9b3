"""The README's promises about this repository: its commands, its links to lines, its Python.

`python tests/test_readme.py` puts the links right after lines have moved.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\[`(\w+)`\]\(([\w/.]+)#L(\d+)\)", README)


def definitions(path: str, name: str) -> list[int]:
    """The lines on which `name` is a function, a class, an argument or a field."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    named = {ast.FunctionDef: "name", ast.ClassDef: "name", ast.arg: "arg", ast.AnnAssign: "target"}
    found = []
    for node in ast.walk(tree):
        label = getattr(node, named.get(type(node), ""), None)
        if (label.id if isinstance(label, ast.Name) else label) == name:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(("name", "path", "line"), LINKS)
def test_a_link_leads_to_what_it_names(name, path, line):
    assert int(line) in definitions(path, name), f"{name} is defined in {path} at {definitions(path, name)}"


def test_every_other_link_leads_to_a_file():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_walk_covers_its_ideas():
    assert len(LINKS) >= 20
    for idea in ("Forward process", "Noise schedule", "U-Net", "Training step", "Reverse process", "guidance"):
        assert idea in README


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


if __name__ == "__main__":  # put the links right after lines have moved
    (ROOT / "README.md").write_text(
        re.sub(
            r"\[`(\w+)`\]\(([\w/.]+)#L\d+\)",
            lambda link: f"[`{link[1]}`]({link[2]}#L{definitions(link[2], link[1])[0]})",
            README,
        ),
        encoding="utf-8",
    )
