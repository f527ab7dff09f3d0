"""Charts as inline SVG: numbers in, markup out.

Colors are the page's CSS variables, so a chart follows light and dark. Text and names
are escaped. Every chart says in words what it shows, for those who do not see it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

MAX_POINTS = 400  # Of a curve; more cannot be told apart.
MAX_NAMED_CLASSES = 30  # With more, bars are left out and places are not named.
FONT_WIDTH = 6.6  # Of a letter, in units of a chart.
PLACE_WIDTH = 9.8  # The same of a class on a map.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a chart.

    Attributes:
        x: `[n]`.
        y: `[n]`, finite.
        color: CSS color.
        dashes: SVG dash pattern; empty for a whole line.
        faint: Behind the others.
    """

    x: np.ndarray
    y: np.ndarray
    color: str = "var(--accent)"
    dashes: str = ""
    faint: bool = False


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element; children that are no markup and all attributes are escaped.

    A trailing underscore is dropped (`class_`), others become hyphens.
    """
    pairs = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
    )
    content = Markup("").join(children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), pairs, content)


def color(index: int, count: int) -> str:
    """One of `count` colors that can be told apart, light enough for either mode."""
    hue = (25 + 360 * index / count) % 360
    return f"oklch(var(--series-lightness) .15 {hue:.0f})"


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _coordinate(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _svg(width, height, label, *children):
    return tag(
        "svg",
        *children,
        class_="chart",
        viewBox=f"0 0 {width} {height}",
        style=f"max-width:{width * 1.15:.0f}px",
        role="img",
        aria_label=label,
    )


def _text(x, y, content, *, anchor="start", kind="tick", **more):
    return tag(
        "text",
        content,
        x=_coordinate(x),
        y=_coordinate(y),
        class_=kind,
        text_anchor=anchor,
        **more,
    )


def _short(text, longest):
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _path(points, **attributes):
    d = "M" + "L".join(f"{_coordinate(x)} {_coordinate(y)}" for x, y in points)
    return tag("path", d=d, **attributes)


def _rectangle(x, y, width, height, **attributes):
    return tag(
        "rect",
        x=_coordinate(x),
        y=_coordinate(y),
        width=_coordinate(max(width, 0)),
        height=_coordinate(max(height, 0)),
        **attributes,
    )


@dataclasses.dataclass(frozen=True)
class _Plane:
    """A plot area: numbers to places, with gridlines and labels."""

    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    left: float = 46
    right: float = 12
    top: float = 24
    bottom: float = 38

    def at(self, x, y):
        share_x = (x - self.x[0]) / (self.x[1] - self.x[0])
        share_y = (y - self.y[0]) / (self.y[1] - self.y[0])
        base, right = self.height - self.bottom, self.width - self.right
        return (
            self.left + share_x * (right - self.left),
            base - share_y * (base - self.top),
        )

    def frame(self, *, x_label, y_label, as_text=_number):
        parts = []
        for value in ticks(*self.y, count=4):
            _, place = self.at(self.x[0], value)
            start, end = self.left, self.width - self.right
            parts.append(_path([(start, place), (end, place)], class_="grid"))
            parts.append(_text(start - 6, place + 4, as_text(value), anchor="end"))
        base = self.height - self.bottom
        for value in ticks(*self.x, count=4):
            place, _ = self.at(value, self.y[0])
            parts.append(_path([(place, base), (place, base + 4)], class_="axis"))
            parts.append(_text(place, base + 16, as_text(value), anchor="middle"))
        ends = [(self.left, base), (self.width - self.right, base)]
        parts.append(_path(ends, class_="axis"))
        middle = (self.left + self.width - self.right) / 2
        parts.append(_text(middle, self.height - 4, x_label, anchor="middle"))
        parts.append(_text(0, 12, y_label, kind="axis-title"))
        return Markup("").join(parts)


def _thin(x, y):
    """At most MAX_POINTS points: means of neighbors."""
    groups = min(MAX_POINTS, len(x))
    return (
        np.array([part.mean() for part in np.array_split(x, groups)]),
        np.array([part.mean() for part in np.array_split(y, groups)]),
    )


def lines(series: Sequence[Line], *, x_label: str, y_label: str, label: str) -> Markup:
    """Curves over one x axis."""
    x = np.concatenate([line.x for line in series])
    y = np.concatenate([line.y for line in series])
    low, high = float(y.min()), float(y.max())
    margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.05
    first, last = float(x.min()), float(x.max())
    plane = _Plane(
        340,
        216,
        (first, last if last > first else first + 1),
        (low - margin, high + margin),
    )
    drawn = []
    for line in sorted(series, key=lambda line: not line.faint):
        points = [
            plane.at(*point) for point in zip(*_thin(line.x, line.y), strict=True)
        ]
        if len(points) == 1:
            points *= 2  # A dot, by the round end of the line.
        drawn.append(
            _path(
                points,
                class_="line faint" if line.faint else "line",
                style=f"stroke:{line.color}",
                **({"stroke_dasharray": line.dashes} if line.dashes else {}),
            )
        )
    frame = plane.frame(x_label=x_label, y_label=y_label)
    return _svg(340, 216, label, frame, *drawn)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A row of `intervals`.

    Attributes:
        name: At its left.
        share: Marked by a dot.
        ends: Of the interval around it.
        color: In CSS.
        parts: Shares that it is the mean of: a small dot each, in place of one.
        reference: Another share, marked by a line across.
    """

    name: str
    share: float
    ends: tuple[float, float]
    color: str
    parts: Sequence[float] = ()
    reference: float | None = None


def intervals(rows: Sequence[Interval], *, label: str) -> Markup:
    """Shares with their 95 % intervals, a row each."""
    values = [value for row in rows for value in (*row.ends, *row.parts)]
    values += [row.reference for row in rows if row.reference is not None]
    margin = 0.1 * (max(values) - min(values)) or 0.01
    height = 34 + 30 * len(rows)
    plane = _Plane(
        440,
        height,
        (max(0.0, min(values) - margin), min(1.0, max(values) + margin)),
        (0, 1),
        left=max(64, 10 + FONT_WIDTH * min(24, max(len(row.name) for row in rows))),
        right=24,
        top=4,
        bottom=28,
    )
    base = height - plane.bottom
    drawn = []
    for value in ticks(*plane.x, count=4):
        place, _ = plane.at(value, 0)
        drawn.append(_path([(place, 4), (place, base)], class_="grid"))
        drawn.append(_text(place, base + 18, f"{100 * value:.4g} %", anchor="middle"))
    for place, row in enumerate(rows):
        y, style = 22 + 30 * place, f"--c:{row.color}"
        ends = [(plane.at(value, 0)[0], y) for value in row.ends]
        drawn.append(_text(0, y + 4, _short(row.name, 24), kind="name"))
        drawn.append(_path(ends, class_="whisker", style=style))
        if row.reference is not None:
            x, _ = plane.at(row.reference, 0)
            drawn.append(_path([(x, y - 11), (x, y + 11)], class_="reference"))
        for share in row.parts or (row.share,):
            drawn.append(
                tag(
                    "circle",
                    cx=_coordinate(plane.at(share, 0)[0]),
                    cy=y,
                    r=3.5 if row.parts else 5,
                    class_="dot ring" if row.parts else "dot",
                    style=style,
                )
            )
    return _svg(440, height, label, *drawn)


def class_balance(
    names: Sequence[str], shares: np.ndarray, means: np.ndarray, *, label: str
) -> Markup:
    """A bar a class for its share, a dot for its mean soft label, a line at even."""
    longest = min(14, max(map(len, names)))
    left = 10 + FONT_WIDTH * longest
    row = 21
    height = row * len(names) + 34
    top = float(max(shares.max(), means.max())) * 1.05
    plane = _Plane(440, height, (0, top), (0, 1), left=left, right=52, top=4, bottom=30)
    base = height - plane.bottom
    even, _ = plane.at(1 / len(shares), 0)
    parts = []
    for value in ticks(0, top, count=4):
        place, _ = plane.at(value, 0)
        parts.append(_path([(place, 4), (place, base)], class_="grid"))
        parts.append(_text(place, base + 18, f"{100 * value:.4g} %", anchor="middle"))
    for k, (name, share, mean) in enumerate(zip(names, shares, means, strict=True)):
        y = 4 + row * k
        end, _ = plane.at(share, 0)
        parts += [
            _text(left - 8, y + 15, _short(name, longest), anchor="end", kind="name"),
            _rectangle(left, y + 4, end - left, row - 8, class_="bar"),
            tag(
                "circle",
                cx=_coordinate(plane.at(mean, 0)[0]),
                cy=y + row / 2,
                r=4,
                class_="dot ring",
            ),
            _text(440, y + 15, f"{100 * share:.1f} %", anchor="end"),
        ]
    parts.append(_path([(even, 0), (even, base)], class_="reference"))
    return _svg(440, height, label, *parts)


def histogram(
    values: np.ndarray, *, limits: tuple[float, float], x_label: str, label: str
) -> Markup:
    """How many values lie where, with a line at their mean."""
    counts, edges = np.histogram(np.clip(values, *limits), bins=30, range=limits)
    shares = counts / max(1, len(values))
    plane = _Plane(440, 236, limits, (0, float(shares.max()) * 1.08 or 1.0))
    parts = [
        plane.frame(
            x_label=x_label,
            y_label="share of soft labels",
            as_text=lambda value: f"{value:.3g}",
        )
    ]
    for share, start, end in zip(shares, edges[:-1], edges[1:], strict=True):
        (left, top), (right, base) = plane.at(start, share), plane.at(end, 0)
        parts.append(
            _rectangle(left + 0.5, top, right - left - 1, base - top, class_="bar")
        )
    mean = float(np.mean(values))
    ends = [plane.at(mean, 0), plane.at(mean, plane.y[1])]
    parts.append(_path(ends, class_="reference"))
    side = "start" if mean < sum(limits) / 2 else "end"
    x = ends[1][0] + (6 if side == "start" else -6)
    parts.append(_text(x, plane.top + 10, f"mean {mean:.2f}", anchor=side, kind="name"))
    return _svg(440, 236, label, *parts)


def reliability(bins: Sequence[dict[str, Any]], *, label: str) -> Markup:
    """Accuracy by confidence; a calibrated network's bars end at the diagonal."""
    plane = _Plane(340, 300, (0, 1), (0, 1))
    parts = [plane.frame(x_label="confidence of the student", y_label="accuracy")]
    for k, row in enumerate(bins):
        if row["count"]:
            (left, top), (right, base) = (
                plane.at(k / len(bins), row["accuracy"]),
                plane.at((k + 1) / len(bins), 0),
            )
            parts.append(
                _rectangle(left + 1, top, right - left - 2, base - top, class_="bar")
            )
    parts.append(_path([plane.at(0, 0), plane.at(1, 1)], class_="reference"))
    return _svg(340, 300, label, *parts)


def places(
    points: np.ndarray,
    others: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
    *,
    label: str,
) -> Markup:
    """A map: `points` by class, before `others` in gray.

    Args:
        points: `[n, 2]` on the scale 0 to 1.
        others: `[m, 2]`, likewise.
        classes: `[n]` likeliest class of each point.
        names: One a class; written where the class lies if there are not too many.
        label: What the map shows.
    """
    size, margin = 400, 12

    def at(points):
        return margin + points * (size - 2 * margin)

    def dots(points, **attributes):
        # A line of no length with round ends is the shortest way to write a dot.
        d = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in at(points))
        return tag("path", d=d, **attributes)

    parts = [
        _rectangle(0.5, 0.5, size - 1, size - 1, rx=4, class_="map"),
        dots(others, class_="point other"),
    ]
    present = np.unique(classes)
    for k in present:
        parts.append(
            dots(
                points[classes == k],
                class_="point",
                style=f"stroke:{color(int(k), len(names))}",
            )
        )
    if len(names) <= MAX_NAMED_CLASSES:
        for k in present:
            own = points[classes == k]
            # The member closest to the median lies on the class for certain.
            distance = np.square(own - np.median(own, axis=0)).sum(1)
            x, y = at(own[distance.argmin()])
            name = _short(names[k], 24)
            half = 16 + PLACE_WIDTH / 2 * (len(name) - 1)
            x = min(max(x, half), size - half)
            parts.append(_text(x, max(y + 5, 22), name, anchor="middle", kind="place"))
    return _svg(size, size, label, *parts)


def soft_label(label: np.ndarray, names: Sequence[str]) -> Markup:
    """A soft label as bars the width of an image, the likeliest class marked."""
    likeliest = int(label.argmax())
    order = range(len(label))
    if len(label) > MAX_NAMED_CLASSES:
        order = np.argsort(-label, kind="stable")[:10]
    width, height = 100, 28
    step = width / len(order)
    bars = {"rest": "", "likeliest": ""}
    for place, k in enumerate(order):
        tall = height * float(label[k])
        kind = "likeliest" if k == likeliest else "rest"
        bars[kind] += (
            f"M{_coordinate(place * step + 0.08 * step)} {height}"
            f"v{-tall:.1f}h{_coordinate(0.84 * step)}v{tall:.1f}z"
        )
    best = np.argsort(-label, kind="stable")[:3]
    text = ", ".join(f"{names[k]} {label[k]:.2f}" for k in best)
    return tag(
        "svg",
        tag("path", d=f"M0 {height}h{width}", class_="axis"),
        *[tag("path", d=d, class_=f"label-{kind}") for kind, d in bars.items() if d],
        class_="soft-label",
        viewBox=f"0 0 {width} {height}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"Soft label: {text}",
    )


def confusion_pixels(confusion: np.ndarray) -> np.ndarray:
    """Many classes' confusions as `[classes, classes, 4]` pixels, 0 to 1.

    By row: hits in blue, errors in orange, opaque the more there are.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    pixels = np.zeros((*shares.shape, 4))
    pixels[..., :3] = np.array([0.85, 0.42, 0.05])
    pixels[..., 3] = np.minimum(1, 2 * np.sqrt(shares))
    diagonal = np.diag_indices(len(shares))
    pixels[(*diagonal, slice(0, 3))] = np.array([0.22, 0.48, 0.82])
    pixels[(*diagonal, 3)] = shares[diagonal]
    return pixels
