"""What all figures share: colours, style, axes and tips; and a matplotlib figure as files, and as SVG for a page."""

import functools
import io
import math
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree  # nosec B405 - of what Matplotlib has drawn

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
TIP = "tip:"
WIDTH = 4.9  # inches; a phone's width at the text's own size
NOT_XML = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]")  # in UTF-8: controls, U+FFFE and U+FFFF

# Paul Tol's bright and high-contrast colours, which the colour-blind can tell apart; each at least 3:1 on white.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#997700", "#777777")
MOST_SERIES = len(COLOURS)
MARKERS = "os^Dv*"  # of the series, as `COLOURS`
INK, MUTED, RULE = "#222222", "#666666", "#dddddd"
VARIABLES = {colour: f"var(--series-{n})" for n, colour in enumerate(COLOURS)} | {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    "#000000": "var(--ink)",
    "#ffffff": "var(--paper)",
}
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
    "svg.hashsalt": "rresnet",
    "text.parse_math": False,  # a dollar sign in a name stays a dollar sign
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
}

ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


# Decorates what draws or saves a figure, so that the program's own settings stay.
style = functools.partial(mpl.rc_context, STYLE)


def tip(artist: Artist, text: str) -> None:
    """Give a mark the text that the page shows when the pointer is over it."""
    artist.set_gid(TIP + text)


def plain_log(axis: Axis, unit: str = "") -> None:
    """Label a logarithmic axis with plain numbers: as many round ones between its two ends as can be read."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades < 0.5:
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.3 else (1, 3) if decades < 2.2 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:{',.0f' if value >= 1000 else '.4g'}}{unit}"))


def row_wise(columns: int, names: Sequence[str]) -> list[int]:
    """The order in which a legend of so many columns reads along its rows; matplotlib fills columns."""
    return [place for column in range(columns) for place in range(column, len(names), columns)]


@style()
def svg(figure: Figure) -> bytes:
    """The figure as an SVG file."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # done; laying out again would take as long as drawing
    return NOT_XML.sub(b"?", file.getvalue())  # names may hold them; XML may not


@style()
def files(figure: Figure, name: str, drawn: bytes) -> dict[str, bytes]:
    """The figure as PNG and SVG files, keyed by `name` with their suffixes; `drawn` is what `svg` returns for it."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return {f"{name}.png": png.getvalue(), f"{name}.svg": drawn}


def inline(drawn: bytes, *, name: str, title: str, description: str) -> str:
    """A figure as an SVG element of a page.

    Args:
        drawn: the figure as `svg` gives it.
        name: unique among the figures of the page; the figure's ids begin with it.
        title: what a screen reader calls it.
        description: what a screen reader says about it.
    """
    root = ElementTree.fromstring(drawn)  # nosec B314
    for child in [*root.findall("{*}metadata"), *root.findall("{*}defs[{*}style]")]:  # a style would affect the page
        root.remove(child)
    background = root.find("{*}g/{*}g/{*}path")
    if background is not None:
        background.set("style", "fill: none")
    for element in list(root.iter()):
        _adapt(element, name)
    for tag, text in (("desc", description), ("title", title)):
        root.insert(0, _words(tag, text))
        root[0].set("id", f"{name}-{tag}")
    del root.attrib["width"], root.attrib["height"]
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str) -> None:
    identity = element.get("id")
    if identity is not None and identity.startswith(TIP):
        del element.attrib["id"]
        element.insert(0, _words("title", identity.removeprefix(TIP)))
    elif identity is not None:
        element.set("id", f"{name}-{identity}")
    link = element.get(f"{{{XLINK}}}href")
    if link is not None:
        element.set(f"{{{XLINK}}}href", link.replace("#", f"#{name}-"))
    clip = element.get("clip-path")
    if clip is not None:
        element.set("clip-path", clip.replace("#", f"#{name}-"))
    if "style" in element.attrib:
        element.set("style", _themed(element.attrib["style"]))


def _themed(declarations: str) -> str:
    """The declarations with the page's font and colours."""
    declared = dict(one.split(": ", 1) for one in declarations.rstrip("; ").split("; "))
    declared.pop("font-family", None)
    return "; ".join(f"{key}: {VARIABLES.get(value, value)}" for key, value in declared.items())


def _words(tag: str, text: str) -> ElementTree.Element:
    element = ElementTree.Element(f"{{{SVG}}}{tag}")
    element.text = NOT_XML.sub(b"?", text.encode()).decode()
    return element
