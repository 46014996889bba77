"""Escape untrusted names for the terminal, Markdown and CSV.

They are shown unchanged, but cannot become markup, cursor movements or formulas. In HTML the
templates escape them.
"""

import html
import re
import unicodedata


def for_terminal(text: str) -> str:
    """Escape control characters except line breaks and tabs."""
    return "".join(
        character if character in "\n\t" or _is_shown(character) else ascii(character)[1:-1]
        for character in text
    )


def for_line(text: str) -> str:
    """Escape all control characters, so the text is one line."""
    return " ".join(for_terminal(text).split())


def for_markdown(text: str) -> str:
    """Escape to one line without Markdown or HTML markup."""
    return _MARKS.sub(r"\\\g<0>", html.escape(for_line(text), quote=False))


def for_csv(text: str) -> str:
    """Put a quote before text that a spreadsheet would take for a formula."""
    line = for_line(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


# Markdown keeps underscores between letters.
_MARKS = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])|^(?:#|[-+](?=\s))")


def _is_shown(character: str) -> bool:
    """Whether it is neither a control character nor one that reverses the text direction."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
