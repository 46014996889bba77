"""Every setting says what it means: a docstring right below its field."""

import ast
from pathlib import Path

import pytest

from feature_collisions import settings

FOLDER = Path(settings.__file__).parent
FILES = sorted(set(FOLDER.glob("*.py")) - {FOLDER / "rules.py"})


def fields_of(path):
    """Each field of each dataclass, and what follows it in the class."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.dump(d) for d in
                                                  node.decorator_list):  # fmt: skip
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    yield f"{node.name}.{field.target.id}", after


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_field_of_every_settings_class_is_documented(path):
    bare = [name for name, after in fields_of(path) if not (
        isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str) and after.value.value.rstrip().endswith((".", ")"))
    )]  # fmt: skip
    assert not bare


def test_the_fields_are_found():
    names = [name for path in FILES for name, _ in fields_of(path)]
    assert {"LossSettings.alpha", "Settings.corner", "EvaluateSettings.run"} <= set(names)
