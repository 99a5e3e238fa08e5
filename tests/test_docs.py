"""The README and docs/: links exist, every command line parses, and every block of code runs in a finished project."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from contextlib import suppress
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import NamedTuple

import pandas as pd
import pytest
import typer
import yaml
from conftest import DATASETS, ROOT, photographs, with_changes
from pipeline.test_stages import SMALL, _quick, write_params  # noqa: F401 - _quick is a fixture

from simtrail.cli import app
from simtrail.data.dataset import Declaration
from simtrail.data.demo import generate
from simtrail.params import Params, load_params, parse
from simtrail.pipeline import stages
from simtrail.sweep.space import load_space

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r'^( *)```(\w*)(?: title="([^"]+)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
PLACEHOLDER = re.compile(r"…|\b(VERB|COMMAND|FOLDER|RUN_A)\b")
TINY = {key: value for key, value in SMALL.items() if key != "register.name"}
FINISHED = {
    "register__name": "simtrail-encoder",
    "pretrain__encoder__fusion": "separate",
    "pretrain__terms__cross": 1.0,
    "pretrain__batch_size": 32,
}
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
# what the pages call that is too slow, needs the network, or does not end; each checks its arguments
STAND_INS = {
    "make": 'exec {make} -n -C {root} "$@" >/dev/null',
    "git": '[ "$1" = clone ] || exec {git} "$@"; [ $# = 3 ] && [ -d "$3" ]',
    "python": 'case $1 in benchmarks/*) test -f {root}/$1;; *) exec {python} "$@";; esac',
    "torchrun": '{python} -c "{torchrun}" "$@"; case "$*" in *--no-python*) exec simtrail "${{!#}}";; esac',
    "dvc": 'case "$*" in "queue start"*) exec {python} -m dvc "$@" --help >/dev/null;; esac; '
    'exec {python} -m dvc "${{@//\\/mnt\\/lab/$HOME/lab}}"',
    "simtrail": "case $1 in ui) exec {python} -m simtrail ui --help >/dev/null;; esac; "
    'case $1 in serve) exec {python} -m simtrail "$@";; esac; {python} -m simtrail "$@"; '
    'case $1 in init) cp -r "$HOME/photographs" "$2/new_photographs"; {python} -c "{small}" "$2/params.yaml";; esac',
}
TORCHRUN = "import sys; from torch.distributed.run import get_args_parser as p; p().parse_args(sys.argv[1:])"
SMALLER = f"""
import sys, yaml
from simtrail.params import change
tree = yaml.safe_load(open(sys.argv[1]))
change(tree, {TINY})
yaml.safe_dump(tree, open(sys.argv[1], 'w'))
"""


class Block(NamedTuple):
    language: str
    title: str
    code: str
    place: str  # page:line


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    places = [f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}" for match in FENCE.finditer(text)]
    parts = [match.groups() for match in FENCE.finditer(text)]
    return [Block(part[1], part[2] or "", dedent(part[3]), place) for part, place in zip(parts, places, strict=True)]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def commands(code: str) -> list[list[str]]:
    """The commands of a shell script, as lists of words, without assignments of variables."""
    found: list[list[str]] = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, "&&"]:
            if word in ("&&", "||", ";", "|", "&"):
                found.append(command)
                command = []
            elif command or not re.match(r"\w+=", word):
                command.append(word)
    return [command for command in found if command]


def check_command(words: list[str]) -> None:
    """Fails if the program does not know a command, an option or a parameter."""
    program, *arguments = words
    match program:
        case "simtrail":
            check_simtrail(arguments)
        case "dvc":
            from dvc.cli.parser import get_main_parser

            check_settings(getattr(get_main_parser().parse_args(arguments), "set_param", None))
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert next(w for w in arguments if not re.match("[A-Z]+=", w)) in targets, arguments
        case "torchrun":
            from torch.distributed.run import get_args_parser

            get_args_parser().parse_args(arguments)
        case "python":
            assert (ROOT / arguments[0]).exists()
        case _:
            assert program in ("git", "cd", "source", "curl", "kill"), program


def check_simtrail(arguments: list[str]) -> None:
    command, context = typer.main.get_command(app), None
    while True:
        if {"--help", "--install-completion"} & {*arguments}:
            return
        context = command.make_context(command.name, arguments, parent=context)
        check_settings(context.params.get("settings"))
        if not hasattr(command, "resolve_command"):
            return
        _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])


def check_settings(assignments: list[str] | None) -> None:
    load_params(ROOT / "params.yaml", assignments or ())


def check_yaml(block: Block, folder: Path) -> None:
    tree = yaml.safe_load(block.code)
    if block.title == "params.yaml":
        parse(Params, {"data": {"name": "demo"}, **tree}, block.place)
    elif block.title == "dataset.yaml":
        parse(Declaration, tree, block.place)
    else:
        assert re.fullmatch(r"sweeps/\w+\.yaml", block.title), block.place
        (folder / "sweeps").mkdir(exist_ok=True)
        (folder / block.title).write_text(block.code)
        load_space(Path(block.title).stem, with_changes({}))


def anchors(page: Path) -> set[str]:
    """The anchors of a page, as GitHub and mkdocs make them from headings; those of parameters.md are generated."""
    text = page.read_text()
    if page.name == "parameters.md":
        spec = spec_from_file_location("hooks", ROOT / "docs/hooks.py")
        hooks = module_from_spec(spec)
        spec.loader.exec_module(hooks)
        text += "\n".join(hooks.tables(Params))
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"\{: #(\S+) \}", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_exist(page):
    for link in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_settings_are_valid(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        assert block.language in ("sh", "python", "yaml", "text"), block.place
        if block.language == "sh":
            for command in commands(block.code):
                check_command(command)
        if block.language == "yaml":
            check_yaml(block, tmp_path)
    for code in re.findall(r"`((?:simtrail|make) [^`]+)`", re.sub(r"\s+", " ", prose(page))):
        if not PLACEHOLDER.search(code):
            with suppress(typer.BadParameter):  # in a sentence, a command may be without its arguments
                check_command(shlex.split(code))


def run_stages(project: Path, names: list[str], **changes: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        write_params(project, **FINISHED, **changes)
        for name in names:
            getattr(stages, name)()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, _quick) -> Path:  # noqa: F811
    """A folder with a project in which an encoder was trained and has embedded the images."""
    folder = tmp_path_factory.mktemp("pages")
    generate(folder / "simtrail/data/demo", species=4, specimens=10)
    shutil.copy(ROOT / "dvc.yaml", folder / "simtrail")
    run_stages(folder / "simtrail", STAGES[: STAGES.index("evaluate")])
    return folder


@pytest.fixture(scope="module")
def cloned(trained) -> Path:
    """The same folder, with a finished clone, two registered versions, and photographs of the user."""
    project, home = trained / "simtrail", trained / "home"
    run_stages(project, STAGES[STAGES.index("evaluate") :])
    run_stages(project, STAGES, pretrain__seeds=[1])
    for name in ("src", "sweeps"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".dvcignore", "mlruns/.gitignore"):
        shutil.copy(ROOT / name, project / name)
    for name in (".venv/bin", "new_photographs"):
        (project / name).mkdir(parents=True)
    (project / ".venv/bin/activate").touch()
    for i, path in enumerate(sorted((project / "data/demo/images").rglob("*.tif"))[:12], 1):
        shutil.copy(path, project / f"new_photographs/{i:04}.tif")
    named = "".join(f"{i:04}.tif,{'comma' if i % 2 else 'brimstone'}\n" for i in range(1, 9))
    (project / "labels.csv").write_text(f"path,label\n{named}")
    photographs(home / "photographs")
    images = sorted((home / "photographs").rglob("*.png"))
    rows = [f"{p.parent.name}/{p.name},{p.parent.name},{p.parent.name}-{int(p.stem) // 2}\n" for p in images]
    (home / "photographs/metadata.csv").write_text("path,species,specimen\n" + "".join(rows))
    shutil.copytree(ROOT / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "*.local"))
    start = "git init -q && dvc add -q data && dvc commit -q -f && git add . && git commit -qm all"
    shell(trained, f"{start} && python -m simtrail.pipeline.project", project)
    return trained


def shell(folder: Path, code: str, cwd: Path) -> Path:
    """Runs a script in `cwd` with the stand-ins first on the path; returns the folder in which it ends."""
    bin_, end, python = folder / "bin", folder / "end", shlex.quote(sys.executable)
    bin_.mkdir(exist_ok=True)
    values = {"root": shlex.quote(str(ROOT)), "python": python, "torchrun": TORCHRUN, "small": SMALLER}
    values |= {name: shutil.which(name) for name in ("make", "git")}
    for name, script in STAND_INS.items():
        (bin_ / name).write_text(f"#!/usr/bin/env bash\nset -e\n{script.format(**values)}\n")
        (bin_ / name).chmod(0o755)
    identity = {
        f"GIT_{who}_{what}": "docs@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    caches = {"XDG_CACHE_HOME": str(Path.home() / ".cache"), "PYTHONPATH": str(ROOT / "src"), "DVC_NO_ANALYTICS": "1"}
    environment = (
        os.environ | identity | caches | {"HOME": str(folder / "home"), "PATH": f"{bin_}:{os.environ['PATH']}"}
    )
    script = f"trap 'pwd > {shlex.quote(str(end))}' EXIT\n{code}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=cwd, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert result.returncode == 0, f"{code}\n{result.stdout[-5000:]}"
    return Path(end.read_text().strip())


def run_page(page: Path, folder: Path, monkeypatch) -> None:
    cwd, names = folder if page.name in ("README.md", "CONTRIBUTING.md") else folder / "simtrail", {}
    for block in blocks(page):
        monkeypatch.chdir(cwd)
        if block.language == "sh":
            cwd = shell(folder, block.code, cwd)
        if block.language == "python":
            exec(compile(block.code, block.place, "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page, cloned, tmp_path, monkeypatch):
    shutil.copytree(cloned, tmp_path / "copy", symlinks=True)
    run_page(page, tmp_path / "copy", monkeypatch)


@pytest.mark.slow
@pytest.mark.skipif(not (DATASETS / "butterflies.tar.xz").exists(), reason="needs shared/datasets/butterflies.tar.xz")
@pytest.mark.usefixtures("_quick")
def test_the_tour_runs_on_photographs_of_wings(tmp_path, monkeypatch):
    project, data = tmp_path / "simtrail", tmp_path / "simtrail/data/demo"
    with tarfile.open(DATASETS / "butterflies.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    table = pd.read_csv(tmp_path / "butterflies/metadata.csv")
    table = table[table["genus"].isin(["Papilio", "Parnassius", "Graphium"])].groupby("genus").head(30)
    (data / "images").mkdir(parents=True)
    for path in table["path"]:
        shutil.copy(tmp_path / "butterflies" / path, data / path)
    table.assign(species=table["genus"])[["path", "species", "specimen"]].to_csv(data / "metadata.csv", index=False)
    (data / "dataset.yaml").write_text("label: species\ngroup: specimen\n")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(project)
    shutil.copy(ROOT / "dvc.yaml", project)
    write_params(project, register__name="simtrail-encoder")
    for name in STAGES:
        getattr(stages, name)()
    shutil.copytree(data / "images", project / "new_photographs")
    run_page(ROOT / "docs/tutorial.md", tmp_path, monkeypatch)
    trail = json.loads((project / "encoder/trail.json").read_text())
    assert trail["data"]["images"] == len(table)


def script(name: str) -> ModuleType:
    spec = spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_results_are_those_of_the_result_files():
    tables = script("tables")
    for page in tables.PAGES:
        text = page.read_text()
        assert text.count("<!-- results: ") == text.count("<!-- end -->") == len(tables.BLOCK.findall(text)) > 0
        assert tables.filled(text) == text, f"{page.name}: run python docs/tables.py"


def test_the_notebook_is_the_tutorial():
    module = script("notebook")
    made = module.notebook((ROOT / "docs/tutorial.md").read_text())
    assert made == (ROOT / "docs/tutorial.ipynb").read_text(), "run python docs/notebook.py"
    code = ["".join(cell["source"]) for cell in json.loads(made)["cells"] if cell["cell_type"] == "code"]
    assert [c.removeprefix("%%bash\n") for c in code[1:]] == [b.code.strip() for b in blocks(ROOT / "docs/tutorial.md")]


class Loaded(HTMLParser):
    """The addresses that a browser loads by itself when it shows a page."""

    def __init__(self, page: str):
        super().__init__()
        styles = re.findall(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", page)
        self.addresses = [address for pair in styles for address in pair]
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "srcset", "poster", "data")]
        self.addresses += [value or "" for name, value in attributes if name == "href" and tag in ("link", "use")]


@pytest.mark.slow
def test_the_website_builds_without_warnings_and_loads_nothing_from_the_network(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    result = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    files = [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]
    assert len(files) > len(PAGES) - 2
    for file in files:
        outside = [a for a in Loaded(file.read_text()).addresses if re.match(r"(https?:)?//", a)]
        assert not outside, (file, outside)
    assert not (tmp_path / "picture.py").exists()
