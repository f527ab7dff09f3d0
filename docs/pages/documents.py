"""Tables and figures between the markers of Markdown files.

    <!-- table: methods/mnist -->
    … what stands here is made of results files …
    <!-- end -->

Likewise `<!-- figure: NAME -->`, whose content is the link to a picture.
"""

import pathlib
import re
from collections.abc import Callable

from dfkd_jax.errors import ResultsError
from dfkd_jax.runtime import files

_BLOCK = re.compile(
    r"^<!-- (?P<kind>table|figure): (?P<name>\S+) -->\n(?P<text>.*?)^<!-- end -->$",
    re.DOTALL | re.MULTILINE,
)
_START = re.compile(r"^<!-- (?:table|figure):", re.MULTILINE)

Fill = Callable[[str, str, pathlib.Path], str]


def paths(root: pathlib.Path) -> list[pathlib.Path]:
    """The Markdown files of a repository that can have markers."""
    found = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [path for path in found if path.is_file()]


def filled(path: pathlib.Path, fill: Fill) -> tuple[str, list[str]]:
    """The text of a document with its blocks made anew, and which of them changed.

    Args:
        path: The document.
        fill: (kind, name, path) to what stands between the markers, without the line
            breaks at both ends.

    Raises:
        ResultsError: A marker is not closed.
    """
    text = path.read_text(encoding="utf-8")
    changed = []

    def replace(match):
        kind, name = match["kind"], match["name"]
        if _START.search(match["text"]):
            raise ResultsError(
                f"{path}: <!-- {kind}: {name} --> is not closed by <!-- end -->."
            )
        content = fill(kind, name, path)
        content = f"{content}\n" if content else ""
        if content != match["text"]:
            changed.append(f"{kind} {name}")
        return f"<!-- {kind}: {name} -->\n{content}<!-- end -->"

    made = _BLOCK.sub(replace, text)
    if len(_START.findall(text)) != len(_BLOCK.findall(text)):
        raise ResultsError(f"{path}: a marker is not closed by <!-- end -->.")
    return made, changed


def write(path: pathlib.Path, text: str) -> None:
    """Writes a document."""
    with files.atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
