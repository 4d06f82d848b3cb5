"""Lines in a terminal, four dots a character high and two wide (Unicode's braille patterns, U+2800 to U+28FF)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]

#: The bit of the dot in column 0, 1 of rows 0 to 3 of a braille character.
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_LEFT = 10  # characters of the axis' numbers


def lines(title: str, series: Mapping[str, Points], *, width: int, height: int) -> list[str]:
    """The picture, `width` characters wide at most; `height` is that of one panel. Several series: one panel each.

    All panels share one scale, so that they can be compared; a terminal without colour could not tell their lines
    apart in one.
    """
    everything = [point for points in series.values() for point in points]
    x_range = _range([x for x, _ in everything])
    y_range = _range([y for _, y in everything])
    height = height if len(series) == 1 else max(4, height // 2)
    drawn = [title]
    for label, points in series.items():
        drawn += [label, *_panel(points, x_range, y_range, max(10, width - _LEFT - 2), height)]
    left, right = f"{x_range[0]:g}", f"{x_range[1]:g} step"
    gap = max(1, width - _LEFT - 2 - len(left) - len(right))
    return [*drawn, " " * (_LEFT + 1) + left + " " * gap + right]


def _panel(
    points: Points, x_range: tuple[float, float], y_range: tuple[float, float], width: int, height: int
) -> list[str]:
    cells = [[0] * width for _ in range(height)]
    last: tuple[int, int] | None = None
    for x, y in points:
        here = _dot(x, x_range, 2 * width), 4 * height - 1 - _dot(y, y_range, 4 * height)
        for column, row in _between(last or here, here):
            cells[row // 4][column // 2] |= _BITS[row % 4][column % 2]
        last = here
    marks = {0: y_range[1], height // 2: sum(y_range) / 2, height - 1: y_range[0]}
    text = [f"{marks[row]:.4g}" if row in marks else "" for row in range(height)]
    return [f"{text[row]:>{_LEFT}} {''.join(chr(0x2800 + cell) for cell in line)}" for row, line in enumerate(cells)]


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a straight line, both ends with it."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (round(start[0] + (end[0] - start[0]) * i / steps), round(start[1] + (end[1] - start[1]) * i / steps))
        for i in range(steps + 1)
    ]


def _dot(value: float, bounds: tuple[float, float], count: int) -> int:
    low, high = bounds
    return min(count - 1, int((value - low) / (high - low) * count))


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
