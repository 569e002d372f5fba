"""A line chart as SVG, without a library: what a document shows of a measurement."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 400, 56, 16, 44, 44
_COLOURS = ("#1f5fa8", "#c2571a", "#2e7d4f", "#7a3d9a")
_FONT = 'font-family="sans-serif" font-size="12" fill="#333"'


def line_chart(
    title: str, lines: Mapping[str, Sequence[Sequence[float]]], *, across: str, up: str
) -> str:
    """Return an SVG document.

    Args:
        title: Above the chart.
        lines: Name -> one or more curves of one colour, the first value at 1; their mean is thick.
        across: What the numbers of the values are.
        up: What the values are.
    """
    curves = [curve for each in lines.values() for curve in each]
    if not curves or any(len(curve) != len(curves[0]) or not curve for curve in curves):
        raise ValueError("a chart takes curves of one length, with a value at least")
    low, high = min(map(min, curves)), max(map(max, curves))
    frame = _Frame(len(curves[0]), low, high if high > low else low + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="18" {_FONT} font-weight="bold">{escape(title)}</text>',
        *frame.grid(across, up),
    ]
    for number, (name, group) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        parts += [frame.path(curve, colour, 1.0, 0.35) for curve in group]
        mean = [sum(values) / len(group) for values in zip(*group, strict=True)]
        parts.append(frame.path(mean, colour, 2.0, 1.0))
        x = _LEFT + 200 * number
        parts.append(f'<rect x="{x}" y="26" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 20}" y="33" {_FONT}>{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


class _Frame:
    """Where values are on the page."""

    def __init__(self, count: int, low: float, high: float) -> None:
        self._count, self._low, self._high = count, low, high

    def path(self, curve: Sequence[float], colour: str, width: float, opacity: float) -> str:
        points = " ".join(
            f"{self._x(n):.1f},{self._y(value):.1f}" for n, value in enumerate(curve, start=1)
        )
        return (
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'stroke-opacity="{opacity}"/>'
        )

    def grid(self, across: str, up: str) -> list[str]:
        parts = []
        for tick in range(5):
            value = self._low + (self._high - self._low) * tick / 4
            y = self._y(value)
            parts += [
                f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" '
                'stroke="#ddd"/>',
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" {_FONT}>{value:.2f}'
                "</text>",
            ]
            number = round(1 + (self._count - 1) * tick / 4)
            parts.append(
                f'<text x="{self._x(number):.1f}" y="{_HEIGHT - 24}" text-anchor="middle" {_FONT}>'
                f"{number}</text>"
            )
        middle = (_TOP + _HEIGHT - _BOTTOM) / 2
        parts.append(
            f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 6}" '
            f'text-anchor="middle" {_FONT}>{escape(across)}</text>'
        )
        parts.append(
            f'<text x="14" y="{middle:.0f}" text-anchor="middle" {_FONT} '
            f'transform="rotate(-90 14 {middle:.0f})">{escape(up)}</text>'
        )
        return parts

    def _x(self, number: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (number - 1) / max(self._count - 1, 1)

    def _y(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share
