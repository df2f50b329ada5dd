// A line over the last minutes, small enough to stand under a number.

import { svg } from "./dom.js";

const WIDTH = 200;
const HEIGHT = 40;
const INSET = 3;

function points(values, top) {
  const step = values.length > 1 ? WIDTH / (values.length - 1) : 0;
  return values.map((value, place) =>
    value === null || value === undefined
      ? null
      : [place * step, HEIGHT - INSET - (value / top) * (HEIGHT - 2 * INSET)]);
}

// Where nothing was measured the line has a gap.
function runs(found) {
  const all = [[]];
  for (const point of found) {
    if (point) all.at(-1).push(point);
    else if (all.at(-1).length) all.push([]);
  }
  return all.filter((run) => run.length);
}

const text = ([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`;

export function spark(lines, label) {
  const top = Math.max(...lines.flat().filter((value) => value !== null), 0) || 1;
  const shapes = lines.flatMap((values, place) =>
    runs(points(values, top)).flatMap((run) => {
      // A run of one point is a dot: a line of length 0 with round ends.
      const drawn = run.length > 1 ? run : [run[0], run[0]];
      const line = svg("polyline", { class: `spark-line line-${place}`, points: drawn.map(text).join(" ") });
      if (place) return [line];
      const area = [[run[0][0], HEIGHT], ...run, [run.at(-1)[0], HEIGHT]].map(text).join(" ");
      return [svg("polygon", { class: "spark-area", points: area }), line];
    }));
  return svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("line", { class: "spark-base", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }), shapes);
}
