"""Hooks of mkdocs: the notebook and the changelog as pages, equations as MathML, as on GitHub."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOK = "tutorials/first_collision"
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_DISPLAYED = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"\$([^$\n]+(?:\n[^$\n]+)?)\$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the notebook as a page, with its pictures, in the file's place; add the changelog."""
    source = files.get_file_from_path(f"{NOTEBOOK}.ipynb")
    assert source is not None
    files.remove(source)
    page, pictures = as_markdown(json.loads(source.content_string))
    for name, content in {f"{NOTEBOOK}.md": page, **pictures}.items():
        files.append(File.generated(config, name, content=content))
    changelog = (Path(config.docs_dir).parent / "CHANGELOG.md").read_text()
    files.append(File.generated(config, "reference/changelog.md", content=changelog))
    return files


def as_markdown(notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """A notebook's cells with the outputs it is stored with, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            if said := "".join(output.get("text", [])).strip():
                parts.append(f"```\n{said}\n```")
            if "image/png" in output.get("data", {}):
                name = f"{NOTEBOOK}_{len(pictures)}.png"
                pictures[name] = base64.b64decode(output["data"]["image/png"])
                parts.append(f"![what the cell shows]({Path(name).name})")
    return "\n\n".join(parts) + "\n", pictures


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Equations outside of code become MathML, which browsers show by themselves."""
    parts = _CODE.split(markdown.replace(f"{Path(NOTEBOOK).name}.ipynb", "first_collision.md"))
    return "".join(part if number % 2 else _equations(part) for number, part in enumerate(parts))


def _equations(text: str) -> str:
    text = _DISPLAYED.sub(lambda found: f"\n\n{convert(found[1].strip(), 'block')}\n\n", text)
    return _INLINE.sub(lambda found: convert(" ".join(found[1].split())), text)
