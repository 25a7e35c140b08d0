"""The document as one page that holds everything and loads nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from espan_deploy.bench.pictures import Picture

SCRIPTS = ("core.js", "charts.js", "tables.js", "pictures.js", "main.js")


def render(document: dict[str, Any], pictures: Sequence[Picture] = ()) -> str:
    """The page. It shows the document and nothing else: every figure in it carries the JSON pointer it came from."""
    page = files(__package__) / "page"
    parts = {
        "STYLE": (page / "page.css").read_text(encoding="utf-8"),
        "REPORT": _embedded(document),
        "PICTURES": _embedded([picture.to_json() for picture in pictures]),
        "SCRIPT": "\n".join((page / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    html = (page / "page.html").read_text(encoding="utf-8")
    pieces = html.split("@@")
    return "".join(parts.get(piece, piece) for piece in pieces)


def _embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
