"""SVG by matplotlib for HTML pages: colours of the page's theme, marks that are links, and labels that stay distinct.

matplotlib draws in placeholder colours, which are replaced by CSS variables. Parts that an HTML page does not need
(namespaces, metadata, unused identifiers) are removed, and the other identifiers are made unique on the page.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from pipeline.schema import EMOTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, ACCENT, NONE, CARD = "#010203", "#010204", "#010205", "#010206", "#010207"
_PLACES = {
    INK: "var(--ink)", FAINT: "var(--faint)", ACCENT: "var(--accent)", NONE: "var(--none)", CARD: "var(--card)"
}  # fmt: skip
COLOURS = {emotion: f"#0203{number:02x}" for number, emotion in enumerate(EMOTIONS)}
_PLACES |= {colour: f"var(--{emotion})" for emotion, colour in COLOURS.items()}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}
GREY = ("(abstained)", "(no model)", "(unmapped)", "(regression)", "(no_speech)", "(none)")
"""Groups without an emotion, drawn in grey."""
WIDTH_IN = 4.2
"""Width of a plot: 302 points, the space on a phone 375 points wide, so that text is not scaled there."""
LONG_IN = 9.2
"""Width of a conversation: 662 points, and on a phone as much, to be scrolled."""
_LONGEST_NAME = 20
_FONT = re.compile(r"font-family: [^;]*;\s*|; font-family: [^;]*$")


def distinct(names: Sequence[str]) -> list[str]:
    """Shorten names for an axis so that names that differ stay different: where beginnings are equal, ends are shown."""
    plain = [_printable(each) for each in names]
    begun = [each if len(each) <= _LONGEST_NAME else f"{each[: _LONGEST_NAME - 1]}…" for each in plain]
    short = list(begun)
    for place, each in enumerate(plain):
        equal = [other for other, label in zip(plain, begun, strict=True) if label == begun[place] and other != each]
        if equal:
            short[place] = _around(each, max(_equal_letters(each, other) for other in equal))
    return [
        each if short.index(each) == place else f"{each[: _LONGEST_NAME - 4]} #{place + 1}"
        for place, each in enumerate(short)
    ]


def _equal_letters(first: str, second: str) -> int:
    """Return the length of the common beginning."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _around(name: str, place: int) -> str:
    """Shorten a name to its beginning and the letters from `place` on, or those at its end."""
    head, room = name[:5], _LONGEST_NAME - 6
    start = min(place, len(name) - room)
    rest = name[start : start + room]
    return f"{head}…{rest}" if start + room >= len(name) else f"{head}…{rest[:-1]}…"


def _printable(text: str) -> str:
    """Replace control characters (invalid in XML) and surrogates (invalid in matplotlib)."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def link(place: str, words: str) -> str:
    """Return what matplotlib takes for the address of a mark: the place in the table, a space, and the mark's title."""
    return f"#{place} {_printable(words)}"


def drawn_svg(draw: Callable[[Axes], None], name: str, *, height_in: float, width_in: float = WIDTH_IN) -> Markup:
    """Run matplotlib without a display and without its global state."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width_in, height_in))
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def _inline(content: bytes, name: str) -> Markup:
    """Convert the SVG for embedding in an HTML page. `name` makes its identifiers unique on the page."""
    root = ElementTree.fromstring(content)
    text = content.decode()
    for parent in list(root.iter()):
        for child in list(parent):
            kind = child.tag.rpartition("}")[2]
            # its style would apply to the whole page
            if kind in ("metadata", "style") or (
                kind == "defs" and not [c for c in child if not c.tag.endswith("style")]
            ):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        given: dict[str, Any] = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if element.tag == "a":
            given["href"], _, words = given["href"].partition(" ")
            del given["target"]
            title = ElementTree.Element("title")
            title.text = words
            element.insert(0, title)
        if (mine := given.pop("id", None)) and f"#{mine}" in text:
            given["id"] = f"{name}-{mine}"
        for key, value in given.items():
            if value.startswith("#") and key == "href":
                given[key] = f"#{name}-{value[1:]}"
            for colour, variable in _PLACES.items():
                given[key] = given[key].replace(colour, variable)
            given[key] = given[key].replace("url(#", f"url(#{name}-")
        if element.tag == "text":
            given["style"] = _FONT.sub("", given["style"])
            given["aria-hidden"] = "true"
        element.attrib.clear()
        element.attrib.update(given)
    for surplus in ("width", "height", "version"):
        root.attrib.pop(surplus, None)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # which escapes
