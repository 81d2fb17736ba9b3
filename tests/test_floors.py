"""The floors of the house, read from the imports: a file imports from lower floors and from its own room, never from
above, and no program imports a program. The figures of this or another version of the code:

    python tests/test_floors.py [ROOT]
"""

import ast
import importlib.machinery
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Rooms by floor. Files at the top of `training` are the programs; a room of `src` stands below all of them
FLOORS = [
    ("mezzotint",),
    ("config", "modalities"),
    ("engine",),
    ("data", "learning", "few_steps"),
    ("networks",),
    ("metrics",),
    ("publishing",),
    ("programs",),
    ("benchmarks",),
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules(root: Path) -> dict[str, Path]:
    """The files of the package and of the training programs, by the names that they are imported by."""
    found = {}
    for name, folder in (("mezzotint", root / "src" / "mezzotint"), ("mezzotint_training", root / "training")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((name, *parts)).removesuffix(".__init__")] = path
    return found


def arrows(root: Path) -> dict[str, set[str]]:
    """Which of its files each file imports, anywhere in it, `from package import file` among them."""
    files = modules(root)
    found = {}
    for name, path in files.items():
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                names |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
        names = {x for x in names & files.keys() if x != name}
        # `from package import file` is of the file
        found[name] = {x for x in names if files[x].stem != "__init__" or not any(y.startswith(f"{x}.") for y in names)}
    return found


def room(name: str, files: dict[str, Path]) -> str:
    """The folder of a file; that of the programs where it stands at the top."""
    package, *_ = name.split(".")
    folder = files[name].parent.name
    return package if package == "mezzotint" else folder if folder in FLOOR else "programs"


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """The sets of names that all lead to each other."""
    reached = {name: set(others) for name, others in arrows.items()}
    for middle in reached:  # Warshall's closure
        for others in reached.values():
            if middle in others:
                others |= reached[middle]
    found = []
    for name in reached:
        circle = {other for other in reached[name] if name in reached[other]}
        if name in circle and circle not in found:
            found.append(circle)
    return found


def between_rooms(arrows: dict[str, set[str]], rooms: dict[str, str]) -> dict[str, set[str]]:
    """Which rooms each room imports from."""
    found: dict[str, set[str]] = {room: set() for room in rooms.values()}
    for name, others in arrows.items():
        found[rooms[name]] |= {rooms[other] for other in others} - {rooms[name]}
    return found


FILES, ARROWS = modules(ROOT), arrows(ROOT)
ROOMS = {name: room(name, FILES) for name in FILES}


@pytest.mark.parametrize("name", [name for name in ARROWS if ROOMS[name] != "mezzotint"])
def test_a_file_imports_from_lower_floors_and_its_own_room(name):
    own = ROOMS[name]
    for other in ARROWS[name] - {"mezzotint_training"}:
        if name == "mezzotint_training":  # which decides how threads wait, before torch is there
            assert other == "mezzotint_training.engine.threads"
        elif ROOMS[other] == own:
            assert own != "programs", f"{name} is a program and imports the program {other}"
        else:
            assert FLOOR[ROOMS[other]] < FLOOR[own], f"{name} on floor {FLOOR[own]} imports {other}"


def test_there_are_no_circles():
    assert circles(ARROWS) == [] and circles(between_rooms(ARROWS, ROOMS)) == []


def test_a_circle_would_be_seen():
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}
    assert circles(arrows) == [{"b", "c"}, {"d"}]


def test_every_room_is_on_a_floor_and_says_in_a_line_what_it_is_for():
    rooms = {path.parent for path in (ROOT / "training").glob("*/*.py")}
    assert {path.name for path in rooms} == FLOOR.keys() - {"mezzotint", "programs"} | {"recipes"}
    for path in rooms:
        code = ast.parse((path / "__init__.py").read_text(encoding="utf-8"))
        assert len(code.body) == 1 and len((ast.get_docstring(code) or "").splitlines()) == 1, path


def test_no_room_or_program_hides_a_library():
    """A program that runs as a script has its own folder first on the path."""
    elsewhere = [path for path in sys.path if path and ROOT not in Path(path).resolve().parents and Path(path) != ROOT]
    found = {path.stem for path in (ROOT / "training").iterdir() if path.is_dir() or path.suffix == ".py"}
    names = found - {"__init__"}
    assert len(names) > 10
    found = {name: importlib.machinery.PathFinder.find_spec(name, elsewhere) for name in names - {"evaluate"}}
    assert [name for name, spec in found.items() if spec is not None and spec.origin is not None] == []
    assert not names & set(sys.stdlib_module_names)


def figures(root: Path) -> dict[str, object]:
    """Rooms, floors, circles and lengths of a version of the code."""
    files, leads = modules(root), arrows(root)
    rooms = {name: room(name, files) for name in files}
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    functions = {
        f"{name}:{node.name}": (node.end_lineno or node.lineno) + 1 - node.lineno
        for name, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    programs = {name for name, text in texts.items() if rooms[name] == "programs" and '__name__ == "__main__"' in text}
    crowds = Counter(path.parent for path in files.values())
    longest, function = max(lines, key=lines.__getitem__), max(functions, key=functions.__getitem__)
    steps = [(name, other) for name, others in leads.items() for other in others if name != "mezzotint_training"]
    return {
        "files": len(files),
        "rooms": len(set(rooms.values())),
        "files in the fullest folder": max(crowds.values()),
        "floors": len({FLOOR[room] for room in rooms.values()}),
        "imports from no lower floor": sorted(
            f"{a} -> {b}" for a, b in steps if rooms[a] != rooms[b] and FLOOR[rooms[a]] <= FLOOR[rooms[b]]
        ),
        "programs that import a program": sorted(f"{a} -> {b}" for a, b in steps if {a, b} <= programs),
        "circles of files": [sorted(circle) for circle in circles(leads)],
        "circles of rooms": [sorted(circle) for circle in circles(between_rooms(leads, rooms))],
        "longest file": f"{longest}, {lines[longest]} lines",
        "longest function": f"{function}, {functions[function]} lines",
        "lines": sum(lines.values()),
        "lines of README.md": len((root / "README.md").read_text(encoding="utf-8").splitlines()),
    }


if __name__ == "__main__":
    for name, figure in figures(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT).items():
        print(f"{name}: {figure}")
