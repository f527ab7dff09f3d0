import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from dfkd_jax.reporting import charts

EVIL = "<script>\"&'</script>"


def parse(svg):
    return ET.fromstring(str(svg))


def points(path):
    numbers = re.findall(r"-?[\d.]+", path.get("d"))
    return np.array(numbers, float).reshape(-1, 2)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.91, 0.99, [0.92, 0.94, 0.96, 0.98]),
        (0, 23_000, [0, 5_000, 10_000, 15_000, 20_000]),
        (-3, 3, [-2, 0, 2]),
        (7, 7, [7]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_markup_is_escaped_everywhere():
    found = charts.tag("text", EVIL, aria_label=EVIL, class_="x")
    element = parse(found)
    assert element.text == element.get("aria-label") == EVIL
    assert "<script" not in found


def test_every_chart_escapes_names_and_says_what_it_shows():
    names = [EVIL, "b", "c"]
    label = f"What {EVIL}"
    soft = np.array([0.5, 0.3, 0.2])
    drawn = np.random.default_rng(0).uniform(size=(9, 2))
    for chart in (
        charts.lines(
            [charts.Line(x=np.arange(3), y=soft, color=EVIL)],
            x_label=EVIL,
            y_label=EVIL,
            label=label,
        ),
        charts.intervals(
            [
                charts.Interval(
                    name=EVIL,
                    share=0.9,
                    ends=(0.8, 0.95),
                    color=EVIL,
                    parts=(0.89, 0.91),
                    reference=0.97,
                )
            ],
            label=label,
        ),
        charts.class_balance(names, soft, soft, label=label),
        charts.histogram(soft, limits=(0, 1), x_label=EVIL, label=label),
        charts.places(drawn, drawn, np.arange(9) % 3, names, label=label),
        charts.reliability([{"count": 1, "accuracy": 0.5}], label=label),
    ):
        assert "<script" not in chart
        element = parse(chart)
        assert element.get("aria-label") == label
        assert element.get("role") == "img"
    assert "<script" not in charts.soft_label(soft, names)


def test_lines_go_where_the_numbers_say():
    line = charts.Line(x=np.array([0, 5, 10]), y=np.array([1.0, 3.0, 2.0]))
    svg = parse(charts.lines([line], x_label="x", y_label="y", label="l"))
    (path,) = [p for p in svg.iter("path") if p.get("class") == "line"]
    (x0, y0), (x1, y1), (x2, y2) = points(path)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(2 * (y2 - y1), abs=0.21)  # Up is less.


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [0.0, 0.0, 0.0], [-1.0, -1.0]])
def test_flat_and_single_points(values):
    line = charts.Line(x=np.arange(len(values)), y=np.array(values))
    chart = charts.lines([line], x_label="x", y_label="y", label="l")
    assert "nan" not in chart and "inf" not in chart
    parse(chart)


def test_long_curves_are_thinned_to_means():
    line = charts.Line(x=np.arange(100_000), y=np.ones(100_000))
    svg = parse(charts.lines([line], x_label="x", y_label="y", label="l"))
    (path,) = [p for p in svg.iter("path") if p.get("class") == "line"]
    found = points(path)
    assert len(found) == charts.MAX_POINTS
    assert len(np.unique(found[:, 1])) == 1


def test_bars_are_as_long_as_their_shares():
    shares = np.array([0.5, 0.25, 0.25])
    svg = parse(charts.class_balance("abc", shares, shares, label="l"))
    widths = [float(b.get("width")) for b in svg.iter("rect")]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
    assert [c.get("cx") for c in svg.iter("circle")][1:] == [
        [c.get("cx") for c in svg.iter("circle")][1]
    ] * 2


def test_soft_label_marks_the_likeliest_class():
    chart = charts.soft_label(np.array([0.1, 0.7, 0.2]), ["a", "b", "c"])
    svg = parse(chart)
    assert svg.get("aria-label") == "Soft label: b 0.70, c 0.20, a 0.10"
    bars = {path.get("class"): path.get("d") for path in svg.iter("path")}
    assert bars["label-likeliest"].count("M") == 1
    assert bars["label-rest"].count("M") == 2
    assert f"v-{0.7 * 28:.1f}" in bars["label-likeliest"]


def test_of_many_classes_the_ten_likeliest_are_bars():
    label = np.full(100, 0.3 / 99)
    label[77] = 0.7
    svg = parse(charts.soft_label(label, [str(k) for k in range(100)]))
    drawn = sum(p.get("d").count("v-") for p in svg.iter("path"))
    assert drawn == 10


def test_places_has_a_dot_a_point_and_a_name_a_class():
    rng = np.random.default_rng(0)
    own, others = rng.uniform(size=(30, 2)), rng.uniform(size=(20, 2))
    svg = parse(
        charts.places(own, others, np.repeat([0, 2], 15), ["a", "b", "c"], label="l")
    )
    paths = [p for p in svg.iter("path")]
    assert [p.get("d").count("M") for p in paths] == [20, 15, 15]
    assert [t.text for t in svg.iter("text")] == ["a", "c"]


def test_colors_of_classes_differ():
    assert len({charts.color(k, 10) for k in range(10)}) == 10


def test_confusion_pixels_show_hits_and_errors():
    pixels = charts.confusion_pixels(np.array([[10, 0], [5, 5]]))
    np.testing.assert_allclose(pixels[..., 3], [[1, 0], [1, 0.5]])
    assert pixels[0, 0, 2] > pixels[0, 0, 0]  # Blue.
    assert pixels[1, 0, 0] > pixels[1, 0, 2]  # Orange.
