"""Pieces of a static web page: one file, nothing fetched, every text escaped."""

import base64
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; } h1, h2, h3, p, figcaption { overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0; }
th, td { border: 1px solid #ddd; padding: .2rem .5rem; text-align: left; vertical-align: top;
         font-size: .875rem; }
th { background: #f3f3f3; } .number { text-align: right; font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
td.long { min-width: 12rem; white-space: normal; overflow-wrap: break-word; }
img, video { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
figcaption { color: #555; font-size: .875rem; }
.panels { display: flex; flex-wrap: wrap; gap: .5rem; }
.panels figure { margin: 0; max-width: 100%; }
.key { display: inline-block; width: 1.5rem; margin-right: .4rem; vertical-align: middle;
       border-top: 3px solid; }
.legend span { display: inline-block; margin-right: 1rem; }
.missing { color: #8a4b00; background: #fff6e5; padding: .25rem .5rem; }
nav a { margin-right: 1rem; display: inline-block; }
@media screen and (min-width: 45rem) { td:first-child, th:first-child { position: sticky; left: 0; }
  td:first-child { background: #fff; } }
@media screen and (max-width: 45rem) {
  body { padding: .5rem; }
  .wide img { max-width: none; }
}
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  .wide { overflow: visible; }
  th, td, td.long { font-size: 7pt; min-width: 0; padding: .1rem .3rem; white-space: normal;
                    overflow-wrap: anywhere; }
  tr, figure { break-inside: avoid; } h1, h2, h3 { break-after: avoid; }
  img { max-height: 20cm; width: auto; }
  .panels { display: block; } .panels figure { display: inline-block; width: 48%; }
}
"""
_LONG = 24  # letters; longer text in a cell may be broken, shorter one stays in a line
# Where it may be broken besides at spaces: after / and _, and after dots, but not those of numbers.
_BREAKS = re.compile(r"[/_]+|(?<!\d)\.|\.(?!\d)")


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
    """A table that scrolls sideways where it is too wide; columns of numbers stand right."""
    lines = [list(row) for row in rows]
    columns = range(len(header))
    number = [bool(lines) and all(_is_number(row[column]) for row in lines) for column in columns]
    page_lines = ['<div class="wide"><table><thead><tr>']
    page_lines += [_cell("th", cell, right) for cell, right in zip(header, number, strict=True)]
    page_lines.append("</tr></thead><tbody>")
    for row in lines:
        cells = [_cell("td", cell, right) for cell, right in zip(row, number, strict=True)]
        page_lines.append("<tr>" + "".join(cells) + "</tr>")
    page_lines.append("</tbody></table></div>")
    return "\n".join(page_lines)


def image(content: bytes, media_type: str, caption: str, description: str = "") -> str:
    """A picture (or, for "video/mp4", a film) inside the page; narrow screens scroll over it.

    Args:
        content: bytes of the file.
        media_type: such as "image/png".
        caption: text below.
        description: what it shows, for those who do not see it; none = the caption.
    """
    shown = _embedded(content, media_type, description or caption)
    return (
        f'<figure><div class="wide">{shown}</div><figcaption>{text(caption)}</figcaption></figure>'
    )


def panels(pictures: Iterable[tuple[bytes, str]]) -> str:
    """Small PNG pictures, as many side by side as fit: (content, description)."""
    figures = (
        f"<figure>{_embedded(content, 'image/png', description)}</figure>"
        for content, description in pictures
    )
    return f'<div class="panels">{"".join(figures)}</div>'


def legend(entries: Iterable[tuple[str, str, str]]) -> str:
    """What the lines of pictures mean: (label, "#rrggbb", "solid" or "dashed" or "dotted")."""
    keys = (
        f'<span><i class="key" style="border-color: {text(colour)}; border-top-style: '
        f'{text(dashes)}"></i>{text(label)}</span>'
        for label, colour, dashes in entries
    )
    return f'<p class="legend">{" ".join(keys)}</p>'


def _embedded(content: bytes, media_type: str, description: str) -> str:
    data = f"data:{text(media_type)};base64,{base64.b64encode(content).decode('ascii')}"
    if media_type.startswith("video/"):
        return f'<video controls loop muted aria-label="{text(description)}" src="{data}"></video>'
    return f'<img alt="{text(description)}" src="{data}">'


def _is_number(value: Any) -> bool:
    """Whether a cell may stand in a column of numbers; None and text such as "12.5" may."""
    if isinstance(value, str):
        return re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", value) is not None
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _cell(tag: str, value: Any, number: bool) -> str:
    kind, content = "number" if number else "", text(value)
    if len(str(value)) > _LONG:
        content = _BREAKS.sub(r"\g<0><wbr>", content)
        kind = "long" if tag == "td" and not number else kind
    return f'<{tag} class="{kind}">{content}</{tag}>' if kind else f"<{tag}>{content}</{tag}>"
