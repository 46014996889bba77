"""Names that may be a stranger's, made plain text in each medium they are shown in.

In HTML the templates do it. What is shown reads as it was; it marks nothing up, moves no cursor
and computes nothing.
"""

import html
import re
import unicodedata


def for_terminal(text: str) -> str:
    """Control characters as escapes, but line breaks and tabs of our own sentences."""
    return "".join(
        character if character in "\n\t" or _is_shown(character) else ascii(character)[1:-1]
        for character in text
    )


def for_line(text: str) -> str:
    """As `for_terminal`, on one line."""
    return " ".join(for_terminal(text).split())


def for_markdown(text: str) -> str:
    """One line in which nothing is markup, neither Markdown's nor HTML's."""
    return _MARKS.sub(r"\\\g<0>", html.escape(for_line(text), quote=False))


def for_csv(text: str) -> str:
    """What a spreadsheet shows and does not compute: a quote before what looks like a formula."""
    line = for_line(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


# An underscore between letters is one to Markdown, too.
_MARKS = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])|^(?:#|[-+](?=\s))")


def _is_shown(character: str) -> bool:
    """Neither a control character nor one that turns the direction of what follows."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
