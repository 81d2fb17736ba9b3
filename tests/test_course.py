"""The course in `src/mezzotint/README.md`: it runs from top to bottom, prints what it says that it prints, and draws
its own pictures; the notebook beside it is the same page.

`python tests/test_course.py` runs the page and writes all three.
"""

import contextlib
import io
import json
import os
import re
import tempfile
import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

PAGE = Path(__file__).parents[1] / "src" / "mezzotint" / "README.md"
NOTEBOOK = PAGE.with_name("course.ipynb")
SNIPPET = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r"^!\[[^\]]+\]\((course/\w+\.png)\)\n", flags=re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
MOST_BYTES = 60_000  # of a picture


def run(folder: Path) -> list[str]:
    """Run the page's snippets in a folder, where they draw their pictures; what each prints."""
    names, printed, before = {}, [], Path.cwd()
    matplotlib.use("Agg")
    os.chdir(folder)
    try:
        with torch.random.fork_rng(), plt.rc_context():
            for number, (code, _) in enumerate(SNIPPET.findall(PAGE.read_text(encoding="utf-8")), start=1):
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    exec(compile(code, f"{PAGE.name}, snippet {number}", "exec"), names)
                printed.append(output.getvalue())
                plt.close("all")
    finally:
        os.chdir(before)
    return printed


def with_output(page: str, printed: list[str]) -> str:
    """The page with what its snippets print."""
    texts = iter(printed)

    def replaced(snippet: re.Match) -> str:
        text = next(texts)
        return f"```python\n{snippet[1]}```\n" + (f"\n```text\n{text}```\n" if text else "")

    return SNIPPET.sub(replaced, page)


def notebook(page: str) -> str:
    """The page as a Jupyter notebook without output; pictures appear below the code that draws them."""
    cells, place = [], 0

    def add_text(text: str) -> None:
        for part in re.split(r"\n(?=## )", PICTURE.sub("", text)):  # a cell for each section, so that it can be folded
            if lines := part.strip().splitlines(keepends=True):
                cells.append({"cell_type": "markdown", "metadata": {}, "source": lines})

    for snippet in SNIPPET.finditer(page):
        add_text(page[place : snippet.start()])
        code = {"execution_count": None, "metadata": {}, "outputs": [], "source": snippet[1].strip().splitlines(True)}
        cells.append({"cell_type": "code", **code})
        place = snippet.end()
    add_text(page[place:])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cells)]
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def assert_prints(said: str, printed: str) -> None:
    """The same words, and numbers that differ by no more than the last places of training on another processor: 5 %,
    or 2 units of the last digit shown."""
    words = [NUMBER.sub("#", text).split() for text in (said, printed)]
    assert words[0] == words[1], f"the page says {said!r}, it prints {printed!r}"
    for expected, got in zip(NUMBER.findall(said), NUMBER.findall(printed), strict=True):
        unit = 10.0 ** -len(expected.partition(".")[2])
        assert float(got) == pytest.approx(float(expected), rel=0.05, abs=2.01 * unit), f"{said!r}, {printed!r}"


def test_the_course_runs_and_prints_and_draws_what_the_page_shows(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    printed = run(tmp_path)
    for (code, said), got in zip(SNIPPET.findall(page), printed, strict=True):
        assert bool(said) == bool(got), f"{code}: the page says {said!r}, it prints {got!r}"
        assert_prints(said, got)
    shown = sorted(PICTURE.findall(page))
    assert shown == sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "course").iterdir())
    assert shown == sorted(path.relative_to(PAGE.parent).as_posix() for path in (PAGE.parent / "course").iterdir())
    for name in shown:
        ours, drawn = (np.asarray(Image.open(folder / name).convert("L"), float) for folder in (PAGE.parent, tmp_path))
        assert ours.shape == drawn.shape, name
        assert np.abs(ours - drawn).mean() < 4, name  # of 255
        assert (PAGE.parent / name).stat().st_size <= MOST_BYTES, name


def test_the_notebook_is_the_page():
    assert notebook(PAGE.read_text(encoding="utf-8")) == NOTEBOOK.read_text(encoding="utf-8")


def test_every_snippet_is_followed_by_the_picture_that_it_draws():
    page = PAGE.read_text(encoding="utf-8")
    ends = [snippet.end() for snippet in SNIPPET.finditer(page)]
    for snippet, following in zip(SNIPPET.finditer(page), [*ends[1:], len(page)], strict=True):
        drawn = re.findall(r'savefig\("(course/\w+\.png)"\)', snippet[1])
        drawn += [f"course/{name}.png" for name in re.findall(r'^show\("(\w+)"', snippet[1], flags=re.MULTILINE)]
        assert PICTURE.findall(page[snippet.end() : following]) == drawn


def test_formulas_say_the_same_to_github_as_to_a_notebook():
    """Markdown takes the backslash off a punctuation mark before GitHub reads the formula."""
    prose = SNIPPET.sub("", PAGE.read_text(encoding="utf-8"))
    assert prose.count("$") % 2 == 0
    for formula in re.findall(r"\$\$?([^$]+)\$\$?", prose):
        assert not re.search(r"\\[^A-Za-z]", formula), formula


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        printed = run(Path(folder))
        PAGE.write_text(page := with_output(PAGE.read_text(encoding="utf-8"), printed), encoding="utf-8")
        NOTEBOOK.write_text(notebook(page), encoding="utf-8")
        pictures = PAGE.with_name("course")
        pictures.mkdir(exist_ok=True)
        for old in pictures.iterdir():
            old.unlink()
        for path in Path(folder, "course").iterdir():
            (pictures / path.name).write_bytes(path.read_bytes())
