"""Every command, every Python example, every link and every name of a function in the docs."""

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from feature_collisions.commands.start import register_schemas
from feature_collisions.settings.train import expand_corner_sweep, to_settings
from helpers.commands import ROOT, run_command

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}\S.*\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(python|pip|pytest|wandb|ruff|mypy)(?: |$)")


def commands_of(text):
    """The shell commands of a page: in fenced and indented blocks, and in the text."""
    blocks = [body for kind, body in FENCED.findall(text) if kind in ("", "sh", "bash")]
    rest = FENCED.sub("", text)
    blocks += INDENTED.findall(rest)
    blocks += [" ".join(span.split()) for span in INLINE.findall(INDENTED.sub("", rest))]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" #")[0].split("&&"):
                part = part.strip().removesuffix(" &")  # in the background
                if COMMAND.match(part):
                    yield part


def listed():
    """Each page's commands, once each."""
    found = [
        (name, line)
        for name, page in zip(NAMES, PAGES, strict=True)
        for line in commands_of(page.read_text())
    ]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What the docs' names in capitals stand for."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("dir", "shared_dir"):
        (folder / name).mkdir()
    (folder / "file").touch()
    return {
        "SHARED_DIR": str(folder / "shared_dir"),
        "DIR": str(folder / "dir"),
        "FILE": str(folder / "file"),
        "N": "2",
    }


def words_of(command, places):
    """A command's words, without the environment it sets, with its placeholders filled in."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    for name, value in places.items():
        words = [re.sub(rf"(?<![A-Za-z_]){name}(?![A-Za-z_])", value, word) for word in words]
    return words


@pytest.fixture
def hydra():
    register_schemas(ConfigStore.instance())
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def settings_of(script, arguments):
    """Compose what a command line asks for, each job of a sweep, as train.py and evaluate.py do."""
    arguments = [a for a in expand_corner_sweep(arguments) if a not in ("-m", "--multirun")]
    overrides = OverridesParser.create().parse_overrides(arguments)
    choices = [
        [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
        if each.is_sweep_override()
        else [each.input_line]
        for each in overrides
    ]
    name = "config" if script == "train.py" else "evaluate"
    of_hydra = any(argument.startswith("hydra") for argument in arguments)
    found = []
    for k in range(max(map(len, choices), default=1)):  # each value once, not all combinations
        job = [values[k % len(values)] for values in choices]
        config = compose(name, job, return_hydra_config=of_hydra and k == 0)
        if "hydra" in config:  # its own settings are checked by composing them
            config = compose(name, [word for word in job if not word.startswith("hydra")])
        found.append(to_settings(config))
    return found


def test_commands_are_found():
    """Were the pages laid out in another way, the tests below might check nothing."""
    kinds = {}
    for _, command in listed():
        words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
        kind = words[1] if words[0] == "python" else words[0]
        kinds.setdefault(kind, []).append(command)
    assert {"train.py", "evaluate.py", "pip", "pytest", "wandb"} <= set(kinds)
    assert {kind for kind in kinds if kind.startswith("benchmarks/")}
    assert len(kinds["train.py"]) > 30
    assert len(kinds["evaluate.py"]) > 8
    pages = {page for page, _ in listed()}
    assert {
        "README.md",
        *(
            f"docs/{name}.md"
            for name in ("reference/paper", "tutorials/own_network", "how-to/scale")
        ),
    } <= pages


def test_where_commands_are_looked_for():
    page = [
        "```", "A=b python x.py \\", "  c=d  # why", "other words", "```", "As `python y.py z=1`",
        "says, or `pip install a && pytest`:", "", "    ruff check .", "", "`wandb.mode=online`",
        "```python", "pip", "```", "",
    ]  # fmt: skip
    found = ["A=b python x.py    c=d", "ruff check .", "python y.py z=1", "pip install a", "pytest"]
    assert list(commands_of("\n".join(page))) == found


@pytest.mark.parametrize(("page", "command"), listed(), ids=lambda value: str(value)[:60])
def test_every_command(page, command, places, hydra):
    words = words_of(command, places)
    if words[0] == "python" and words[1] in ("train.py", "evaluate.py"):
        launcher = next((w for w in words if w.startswith("hydra/launcher=")), None)
        if launcher:
            plugin = launcher.partition("=")[2].partition("_")[0]
            reason = f"the {plugin} launcher is not there"
            pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher", reason=reason)
        settings = settings_of(words[1], words[2:])
        assert settings
        sweeps = {"-m", "--multirun"} & set(words)
        assert sweeps or len(settings) == 1, "several values without -m"
    elif words[0] == "python":
        text = (ROOT / words[1]).read_text()
        for option in words[2:]:
            assert not option.startswith("--") or f'"{option}"' in text
    elif words[:2] == ["pip", "install"]:
        checks_extras(words)
    else:
        assert words[0] in ("pytest", "ruff", "mypy") or words[:2] == ["wandb", "sync"], command


def checks_extras(words):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[2:]:
        if extra := re.search(r"\[(\w+)\]", word):
            assert extra[1] in project["optional-dependencies"]
        elif not word.startswith((".", "-")):
            assert any(word in needed for needed in project["optional-dependencies"]["dev"])


QUICK = ("stop.min_steps=0", "stop.max_steps=2", "wandb.mode=disabled")


def runs_here(words):
    """Whether a command trains nothing, downloads nothing, and is one job or a few."""
    text = " ".join(words)
    elsewhere = ("experiment=", "data=", "classifier", "launcher", "trainer=", "FILE", "DIR")
    return words[:2] == ["python", "train.py"] and not any(word in text for word in elsewhere)


@pytest.mark.filterwarnings("ignore:not converged")
def test_the_readmes_training_commands_run(classifier, tmp_path, capsys):
    """Those on the bundled digits, two steps each, one after another in one folder."""
    page = (ROOT / "README.md").read_text()
    commands = list(dict.fromkeys(c for c in commands_of(page) if runs_here(shlex.split(c))))
    assert len(commands) >= 7
    for command in commands:
        arguments = shlex.split(command)[2:]
        corner = () if "corner" in command else ("corner=0",)
        sweep = ("-m",) if "-m" in arguments else ()
        given = [argument for argument in arguments if argument != "-m"]
        exact = any(each.startswith("solver=") for each in arguments)  # which takes no steps
        quick = QUICK[2:] if exact else QUICK
        if "ckpt_path=last" in arguments:  # the newest run is that of another command
            assert run_command(tmp_path, "train.py", *corner, *quick) is None
        assert run_command(tmp_path, "train.py", *sweep, *given, *corner, *quick) is None, command
        assert re.search(r"next: python \S*evaluate\.py run=", capsys.readouterr().out)


def example_network():
    """A classifier that names its layer as the README's example does."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    return torch.nn.Sequential(OrderedDict(flat=torch.nn.Flatten(), classifier=layers))


@pytest.mark.filterwarnings("ignore:not converged", "ignore:features are .* these patches limit")
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_python_example(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = [body for kind, body in FENCED.findall(page.read_text()) if kind == "python"]
    if not blocks:
        assert page not in (ROOT / "README.md", ROOT / "docs" / "tutorials" / "own_network.md")
        return
    x0, xt = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    names = {"model": example_network(), "x0": x0, "xt": xt}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)


SOURCE = ROOT / "src" / "feature_collisions"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")
}
EXAMPLES = sorted(name for name, path in MODULES.items() if ">>> " in path.read_text())


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"feature_collisions.{name}")
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}
            assert anchor in slugs, target


def test_every_function_that_the_method_names_exists():
    text = (ROOT / "docs" / "explanation" / "method.md").read_text()
    named = {
        name for name in re.findall(r"`(\w+(?:\.\w+)+)`", text)
        if ".".join(name.split(".")[:2]) in MODULES
    }  # fmt: skip
    assert len(named) > 20
    for name in named:
        folder, module, *path = name.split(".")
        found = importlib.import_module(f"feature_collisions.{folder}.{module}")
        for part in path:
            found = getattr(found, part)


def test_settings_that_the_docs_name_exist(hydra):
    """`stop.positive` and the like, in backticks, without a value."""
    groups = ("loss", "stop", "log", "optimizer", "trainer", "wandb", "edges", "plain")
    pattern = rf"`((?:{'|'.join(groups)})\.[a-z_]+)(?:=[^`]*)?`"
    configs = [compose("config"), compose("evaluate")]
    named = {name for page in PAGES for name in re.findall(pattern, page.read_text())}
    assert len(named) > 10
    for name in named:
        group, key = name.split(".")
        setting = any(group in config and key in config[group] for config in configs)
        assert setting, name


def test_no_page_names_this_machine():
    home = str(Path.home())
    for page in PAGES:
        text = page.read_text()
        assert "/tmp/" not in text
        assert home == "/" or f"{home}/" not in text


def test_no_page_was_left_half_merged():
    for page in PAGES:
        assert not re.search(r"^(<<<<<<<|=======|>>>>>>>)", page.read_text(), re.MULTILINE), page


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("material", reason="the `docs` extra is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    options = {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | options, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    code = re.compile(r"<(code|pre|script)\b.*?</\1>", re.DOTALL)
    for page in pages:
        text = page.read_text()
        assert not re.search(r'<(script|img|iframe)[^>]+src="?(https?:)?//', text), page
        assert not re.search(r'<link[^>]+stylesheet[^>]+href="?(https?:)?//', text), page
        assert "$" not in code.sub("", text), page  # an equation that was left as it is written
    settings = (tmp_path / "reference" / "settings.html").read_text()
    assert "LossSettings" in settings
    assert "hull_weight" in settings


def test_brackets_are_quoted():
    """Some shells, such as zsh, read `corner=[0,3]` as a pattern of file names."""
    bare = re.compile(r"(?:^|\s)[a-z_.]+=[\[{]")
    for page, command in listed():
        assert not bare.search(command), (page, command)
