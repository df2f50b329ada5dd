// A confidence band on a logarithmic scale, with the mean in it and the tolerance across.

import { svg } from "./dom.js";
import { nats } from "./format.js";

const LEAST = -5;
const MARGIN = 0.15;

export class Scale {
  constructor(values) {
    const known = values.filter((value) => value > 0).map(Math.log10);
    const middle = known.length ? known : [-2];
    this.low = Math.max(LEAST, Math.min(...middle) - MARGIN);
    this.high = Math.max(this.low + 1, Math.max(...middle) + MARGIN);
  }

  // In percent of the width; what is below the scale stands at its beginning.
  at(value) {
    if (!(value > 0)) return 0;
    const share = (Math.log10(value) - this.low) / (this.high - this.low);
    return Math.min(100, Math.max(0, share * 100));
  }

  get ticks() {
    const powers = Array.from({ length: Math.floor(this.high) - Math.ceil(this.low) + 1 }, (_, place) => Math.ceil(this.low) + place);
    // Three is about the middle of a decade on this scale.
    const steps = powers.length > 2 ? powers.map((each) => 10 ** each) : [Math.floor(this.low), ...powers].flatMap((each) => [10 ** each, 3 * 10 ** each]);
    return steps.filter((tick) => Math.log10(tick) >= this.low && Math.log10(tick) <= this.high);
  }
}

const pc = (value) => `${value.toFixed(2)}%`;

function grid(scale, height) {
  return scale.ticks.map((tick) =>
    svg("line", { class: "grid", x1: pc(scale.at(tick)), x2: pc(scale.at(tick)), y1: 0, y2: height }));
}

export function axis(scale) {
  return svg("svg", { class: "interval axis", "aria-hidden": "true" }, grid(scale, 20), scale.ticks.map((tick) => {
    const x = scale.at(tick);
    return svg("text", { x: pc(x), y: 12, class: "tick", "text-anchor": x < 8 ? "start" : x > 92 ? "end" : "middle" }, nats(tick));
  }));
}

export function interval({ lower, mean, upper, tolerance, state }, scale) {
  const left = scale.at(lower);
  const width = Math.max(0.6, scale.at(upper) - left);
  return svg("svg", { class: `interval is-${state}`, "aria-hidden": "true" }, grid(scale, 22),
    svg("rect", { class: "band", x: pc(left), y: 7, width: pc(width), height: 8, rx: 2 }),
    tolerance ? svg("line", { class: "tolerance", x1: pc(scale.at(tolerance)), x2: pc(scale.at(tolerance)), y1: 1, y2: 21 }) : null,
    svg("line", { class: "mean", x1: pc(scale.at(mean)), x2: pc(scale.at(mean)), y1: 4, y2: 18 }));
}
