// Throughput and latency of the whole service, over the chosen window and the last quarter of an hour.

import { h, show } from "./dom.js";
import { many, number, seconds } from "./format.js";
import { spark } from "./spark.js";

const LENGTH = 180;

// The series grows from the right, so that the same distance is always the same time.
function full(values) {
  return [...Array(Math.max(0, LENGTH - values.length)).fill(null), ...values.slice(-LENGTH)];
}

function highest(values, unit) {
  const known = values.filter((value) => value !== null);
  return known.length ? `highest ${unit(Math.max(...known))}` : "no values yet";
}

function tile({ name, value, unit, below, lines, write }) {
  const label = `${name}, last 15 minutes: ${highest(lines[0], write)}`;
  return h("div", { class: "tile" },
    h("h3", {}, name),
    h("p", { class: "value" }, value, unit ? h("span", { class: "unit" }, ` ${unit}`) : null),
    h("p", { class: "below" }, below),
    spark(lines.map(full), label));
}

export function tiles(place, live, windowS) {
  const { series, running, waiting } = live.all;
  const now = live.all.windows[windowS];
  show(place, { now, running, waiting, series, windowS }, () => [
    tile({ name: "Requests", value: number(now.requests), unit: "/s", write: (each) => `${number(each)} a second`,
      below: now.requests ? `${many(Math.round(now.requests * now.seconds), "request")} ended` : "none ended",
      lines: [series.requests] }),
    tile({ name: "Errors", value: number(now.errors), unit: "/s", write: (each) => `${number(each)} a second`,
      below: now.errors ? `${number((now.errors / now.requests) * 100)} % of requests` : "none", lines: [series.errors] }),
    tile({ name: "Tokens generated", value: number(now.generated_tokens), unit: "/s", write: (each) => `${number(each)} a second`,
      below: `${number(now.prompt_tokens)} prompt tokens/s`, lines: [series.generated_tokens] }),
    tile({ name: "First token", value: seconds(now.first_token_p50_s), unit: now.first_token_p50_s === null ? "" : "p50",
      below: now.first_token_p95_s === null ? "no streams" : `${seconds(now.first_token_p95_s)} p95`, write: seconds,
      lines: [series.first_token_p50_s, series.first_token_p95_s] }),
    tile({ name: "Between tokens", value: seconds(now.inter_token_p50_s), unit: now.inter_token_p50_s === null ? "" : "p50",
      below: now.inter_token_p95_s === null ? "no streams" : `${seconds(now.inter_token_p95_s)} p95`, write: seconds,
      lines: [series.inter_token_p50_s, series.inter_token_p95_s] }),
    tile({ name: "Running", value: number(running), below: `${number(waiting)} waiting for a turn`, write: number,
      lines: [series.running] }),
  ]);
}
