// Part of a whole as a bar; the words beside it say the same.

import { svg } from "./dom.js";

export function bar(part, whole, label, kind = "") {
  const share = whole > 0 ? Math.min(1, part / whole) : 0;
  return svg("svg", { class: `bar ${kind}`, role: "img", "aria-label": label },
    svg("rect", { class: "bar-whole", width: "100%", height: "100%", rx: 3 }),
    svg("rect", { class: "bar-part", width: `${(share * 100).toFixed(2)}%`, height: "100%", rx: 3 }));
}
