"""Pieces of a static web page: one file, nothing fetched, every text escaped."""

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; } h1, h2, h3, td, th, p, figcaption { overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0; }
th, td { border: 1px solid #ddd; padding: .2rem .5rem; text-align: left; vertical-align: top;
         min-width: 4rem; font-size: .875rem; }
th { background: #f3f3f3; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
img, video { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
figcaption { color: #555; font-size: .875rem; }
.missing { color: #8a4b00; background: #fff6e5; padding: .25rem .5rem; }
nav a { margin-right: 1rem; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; ``body`` is HTML, ``title`` is text."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',  # or else browsers ask a server for one
            f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{text(title)}</h1>",
            *body,
            "</body></html>\n",
        ]
    )


def text(value: Any) -> str:
    """Escapes a value; numbers are rounded for reading, None is a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        value = f"{value:.6g}" if math.isfinite(value) else str(value)
    # File names that are no valid UTF-8 reach us as surrogates, which no page can hold.
    return escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def heading(level: int, content: str, anchor: str = "") -> str:
    """A heading; with an anchor it can be linked to."""
    attribute = f' id="{text(anchor)}"' if anchor else ""
    return f"<h{level}{attribute}>{text(content)}</h{level}>"


def paragraph(content: str, missing: bool = False) -> str:
    """A paragraph; marked if it says that something is missing."""
    attribute = ' class="missing"' if missing else ""
    return f"<p{attribute}>{text(content)}</p>"


def links(targets: Sequence[tuple[str, str]]) -> str:
    """Links to anchors of the page: (anchor, content)."""
    return (
        "<nav>"
        + "".join(f'<a href="#{text(anchor)}">{text(content)}</a>' for anchor, content in targets)
        + "</nav>"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table that scrolls sideways where it is too wide; numbers stand right."""
    lines = ['<div class="wide"><table><thead><tr>']
    lines += [f"<th>{text(cell)}</th>" for cell in header]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        lines.append("<tr>" + "".join(map(_cell, row)) + "</tr>")
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def image(content: bytes, media_type: str, caption: str) -> str:
    """A picture (or, for "video/mp4", a film) inside the page."""
    data = f"data:{text(media_type)};base64,{base64.b64encode(content).decode('ascii')}"
    shown = f'<img alt="{text(caption)}" src="{data}">'
    if media_type.startswith("video/"):
        shown = f'<video controls loop muted title="{text(caption)}" src="{data}"></video>'
    return f"<figure>{shown}<figcaption>{text(caption)}</figcaption></figure>"


def _cell(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f'<td class="number">{text(value)}</td>' if number else f"<td>{text(value)}</td>"
