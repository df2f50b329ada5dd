"""Small drawings as inline SVG: shapes, texts and axes; colours are CSS classes of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]


@dataclass(slots=True)
class Drawing:
    """Shapes on a canvas of ``width`` x ``height`` units, y pointing down."""

    width: float
    height: float
    label: str
    """What the drawing shows, for those who cannot see it."""
    _parts: list[str] = field(default_factory=list)

    def line(self, start: Point, end: Point, style: str) -> None:
        """Draw a straight line."""
        (x1, y1), (x2, y2) = start, end
        self._parts.append(
            f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        )

    def path(self, points: Sequence[Point], style: str) -> None:
        """Draw a line through points."""
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline class="{style}" points="{steps}"/>')

    def bar(self, corner: Point, size: Point, style: str, tip: str) -> None:
        """Draw a rectangle from its upper left corner."""
        (x, y), (width, height) = corner, size
        self._parts.append(
            f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" '
            f'height="{height:.1f}" rx="2"><title>{escape(tip)}</title></rect>'
        )

    def dot(self, centre: Point, radius: float, style: str, tip: str) -> None:
        """Draw a filled circle that tells ``tip`` under the pointer."""
        x, y = centre
        self._parts.append(
            f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
            f"<title>{escape(tip)}</title></circle>"
        )

    def text(self, at: Point, words: str, style: str = "", *, anchor: str = "start") -> None:
        """Write one line; ``anchor`` is start, middle or end."""
        x, y = at
        self._parts.append(
            f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def render(self) -> str:
        """Return the SVG element."""
        return (
            f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" '
            f'aria-label="{escape(self.label)}">{"".join(self._parts)}</svg>'
        )


@dataclass(frozen=True, slots=True)
class Linear:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """Return about ``count`` round values within."""
        raw = (self.high - self.low) / count
        unit = float(10.0 ** math.floor(math.log10(raw)))
        step = next((unit * each for each in (1, 2, 2.5, 5) if unit * each >= raw), 10 * unit)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class Logarithmic:
    """The same for positive values and their logarithms; smaller ones stand at ``low``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        position = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + (self.end - self.start) * position

    def ticks(self) -> list[float]:
        """Return powers of ten within, and 2 and 5 times them where there are few."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if len(powers) <= 4 else (1,)
        found = (factor * 10.0**power for power in powers for factor in factors)
        return [value for value in found if self.low <= value <= self.high]
