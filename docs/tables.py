"""Tables of settings.md and python.md, from the code: `python docs/tables.py` writes them again."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING

import feature_collisions
from feature_collisions.settings.evaluate import EvaluateSettings
from feature_collisions.settings.train import Settings

REFERENCE = Path(__file__).parent / "reference"
BEGIN, END = "<!-- written by docs/tables.py -->\n", "<!-- until here -->\n"


def settings_tables() -> str:
    """One table per group of settings: name on the command line, default, meaning."""
    parts = []
    for title, settings in (("a job", Settings), ("an evaluation", EvaluateSettings)):
        parts.append(f"## Of {title}\n")
        for prefix, group in groups_of(settings):
            if prefix:
                about = (inspect.getdoc(group) or "").partition("\n")[0]
                parts.append(f"### {prefix[:-1]} (`{group.__name__}`)\n\n{about}\n")
            parts.append(table_of(prefix, group))
    return "\n".join(parts)


def groups_of(settings: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """A dataclass of settings and those within it, each with its prefix (`loss.`)."""
    yield prefix, settings
    for name, group in within(settings).items():
        yield from groups_of(group, f"{prefix}{name}.")


def within(settings: type) -> dict[str, type]:
    """The fields of a dataclass that are dataclasses, or lists of them (`stages[]`)."""
    found = {}
    for name, hint in get_type_hints(settings).items():
        entries = [each for each in getattr(hint, "__args__", ()) if dataclasses.is_dataclass(each)]
        if dataclasses.is_dataclass(hint):
            found[name] = hint
        elif entries:
            found[f"{name}[]"] = entries[0]
    return found


def table_of(prefix: str, settings: type) -> str:
    """The settings of one dataclass, without those that are groups."""
    meanings, groups = meanings_of(settings), within(settings)
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for each in dataclasses.fields(settings):
        if each.name not in groups:
            meaning = meanings[each.name].replace("|", r"\|")
            rows.append(f"| `{prefix}{each.name}` | {default_of(each)} | {meaning} |")
    return "\n".join(rows) + "\n"


def meanings_of(settings: type) -> dict[str, str]:
    """The docstring right below each field, on one line."""
    found = {}
    for base in reversed(settings.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, after in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(after.value.value).split())
    return found


def default_of(field: "dataclasses.Field[Any]") -> str:
    """A field's default as the command line writes it; empty if it has none."""
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    if value == MISSING or value is dataclasses.MISSING:
        return ""
    words = {None: "null", True: "true", False: "false"}
    return f"`{words[value] if value is None or isinstance(value, bool) else value}`"


def names_table() -> str:
    """The public names with the first sentence of their docstrings."""
    rows = ["| name | what it is |", "| --- | --- |"]
    for name in feature_collisions.__all__:
        said = " ".join((inspect.getdoc(getattr(feature_collisions, name)) or "").split())
        first = re.split(r"(?<=\.) (?=[A-Z])", said)[0].replace("|", r"\|")
        rows.append(f"| `{name}` | {first} |")
    return "\n".join(rows) + "\n"


TABLES = {"settings.md": settings_tables, "python.md": names_table}


def rewritten(page: str) -> str:
    """The text of a page with its table as the code has it now."""
    before, _, written = (REFERENCE / page).read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{TABLES[page]()}\n{END}{written.partition(END)[2]}"


if __name__ == "__main__":
    for page in TABLES:
        (REFERENCE / page).write_text(rewritten(page))
