"""The documentation names commands, options, files and headings that exist, and tells the true order of imports."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"--help", "--nproc-per-node"}  # options in running text that no --help of ours lists
OPTION = re.compile(r"--[a-z][a-z0-9.-]*[a-z0-9]")
FENCED = re.compile(r"^```\w*\n(.*?)^```\n", re.M | re.S)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.M)
INLINE = re.compile(r"`([^`\n]+)`")

# Imports take the time, so one process asks for all. A command with subcommands is asked for these, too.
ASK = """
import contextlib, io, json, re, runpy, sys

def ask(command):
    sys.argv, text = [*command, "--help"], io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        if command[0].endswith(".py"):
            sys.path[0] = command[0].rpartition("/")[0]
            runpy.run_path(command[0], run_name="__main__")
        else:
            runpy.run_module(command[0], run_name="__main__")
    helps[" ".join(command)] = text.getvalue()

helps = {}
for name in json.loads(sys.argv[1]):
    ask([name])
    for subcommand in re.findall("• ([a-z]+)", helps[name]):
        ask([name, subcommand])
print(json.dumps(helps))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What ``--help`` says, by script or module, and by module and subcommand."""
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.glob("*/*.py")}
    names = [path for path in sources if re.match("(pipelines|training)/(?!_)", path) and "__main__" in sources[path]]
    names += [path for path in sources if path.startswith("benchmarks/") and "tyro.cli(" in sources[path]]
    names += ["catalog", "dense_depth"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    call = [sys.executable, "-c", ASK, json.dumps(names)]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def code_blocks(text: str) -> list[str]:
    return FENCED.findall(text) + INDENTED.findall(FENCED.sub("", text))


def command_lines(text: str) -> list[list[str]]:
    """Words of the command lines that run a script or module of this project, from its name on."""
    for name, value in re.findall(r'^ *([A-Z]+)="(.*)"$', text, re.M):
        text = re.sub(rf"\${name}\b", value, text)
    found = []
    for code in [*code_blocks(text), *INLINE.findall(text)]:
        for line in code.replace("\\\n", " ").splitlines():
            if command := re.search(r"\bpython (?:-m )?((?!-m)\S.*)|\bray submit \S+ (.+)", line):
                found.append(shlex.split(command[1] or command[2], comments=True))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_and_know_their_options(page, helps):
    for name, *words in command_lines(page.read_text()):
        if name in ("pip", "pytest"):
            continue
        known, command = helps.get(name, ""), " ".join([name, *words])
        if "subcommands" in known and words:
            subcommand = next((f"{name} {word}" for word in words if f"{name} {word}" in helps), "")
            assert subcommand, f"{command}: names no subcommand"
            known += helps[subcommand]
        if name not in helps:  # a script or module without options
            module = ROOT / name.replace(".", "/")
            paths = [ROOT / name, module.with_suffix(".py"), module / "__main__.py"]
            assert any(path.is_file() for path in paths), f"{command}: no such script"
        options = {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}
        assert options <= set(OPTION.findall(known)), f"{command}: not all of these options exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_text_exist(page, helps):
    known = {option for text in helps.values() for option in OPTION.findall(text)} | OTHERS
    text = INDENTED.sub("", FENCED.sub("", page.read_text()))
    named = {option for code in INLINE.findall(text) for option in OPTION.findall(code)}
    assert named <= known, f"no command has {sorted(named - known)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_the_text_exist(page):
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text()):
        if not path.startswith("demo/"):  # made by make demo
            assert (ROOT / path).exists(), f"{path}: no such file"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_of_make_exist(page):
    text = page.read_text()
    code = [*code_blocks(text), *INLINE.findall(text)]
    named = {name for part in code for name in re.findall(r"^ *(?:\w+=\S+ )?make ([a-z]+)", part, re.M)}
    assert named <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    origins = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return names | {f"{node.module}.{alias.name}" for node in origins for alias in node.names}


def order_of_imports() -> list[dict[str, int]]:
    """The chains that CONTRIBUTING has, of all and of packages: the level of each module by its dotted name."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    whole = re.search(r"Imports point one way:\n\n((?: {4}.*\n)+)", text)[1]
    chains = []
    for package, chain in [("", whole), *re.findall(r"^ {4}(\w+): (.*<-.*)$", text, re.M)]:
        possible = (f"{package}/",) if package else ("", "dense_depth/", "dense_depth/datasets/")
        chains.append({})
        for level, names in enumerate(chain.split("<-")):
            for name in re.findall(r"\w+", names):
                homes = [home for home in possible if any(ROOT.glob(f"{home}{name}*"))]
                assert len(homes) == 1, f"{name}: in {homes}"
                chains[-1][homes[0].replace("/", ".") + name] = level
    return chains


def test_every_module_has_its_place_in_the_order_of_imports():
    named = {name for chain in order_of_imports() for name in chain}
    for package in ("dense_depth", "catalog", "pipelines"):
        modules = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or path.is_dir()}
        missing = {f"{package}.{module}" for module in modules if not module.startswith("__")} - named
        assert not missing, f"CONTRIBUTING does not name {missing}"


@pytest.mark.parametrize("level_of", order_of_imports(), ids=["all", "catalog", "pipelines"])
def test_imports_point_the_way_that_contributing_says(level_of):
    def level(module: str) -> int | None:
        parents = [module.rsplit(".", i)[0] for i in range(module.count(".") + 1)]
        return next((level_of[parent] for parent in parents if parent in level_of), None)

    packages = ("dense_depth", "catalog", "pipelines", "training")
    for path in [path for package in packages for path in (ROOT / package).rglob("*.py")]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        own = level(module)
        for name in imports(path) if own is not None else ():
            other = level(name)
            assert other is None or other <= own, f"{module} imports {name}, which stands above it"
            assert not module.startswith("training") or not name.startswith(("ray", "pipelines")), f"{module}: {name}"
