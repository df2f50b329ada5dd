// The verdict of each slice of the traffic, with its band against the tolerance; worst first.

import { ask } from "./api.js";
import { byId, chip, h, show } from "./dom.js";
import { clock, many, nats, number } from "./format.js";
import { axis, interval, Scale } from "./interval.js";

const ORDER = { drift: 0, stale: 1, learning: 2, ok: 3 };
const AT_FIRST = 8;
const MEANING = {
  ok: "shown to be below the tolerance",
  drift: "shown to be above the tolerance",
  learning: "not enough evidence yet",
  stale: "requests are served, but none is scored",
};

const expanded = new Set();

// The numbers of a slice: with an alarm they begin anew, and until then those that raised it are shown.
export function evidence(variant, slice) {
  const alarm = slice.n ? null : variant.alarms?.[slice.slice];
  return alarm ? { ...slice, n: alarm.n, mean: alarm.mean, lower: alarm.lower, upper: alarm.upper, isAlarm: true } : slice;
}

const badness = (slice) => (slice.tolerance ? slice.lower / slice.tolerance : 0);
const share = (slice) => (slice.tolerance ? slice.mean / slice.tolerance : 0);

function worstFirst(slices) {
  return slices.filter((each) => each.slice !== "all").toSorted((left, right) =>
    (left.state === "drift" ? 0 : 1) - (right.state === "drift" ? 0 : 1)
    || badness(right) - badness(left) || share(right) - share(left));
}

function row(slice, scale) {
  const band = slice.n ? `${nats(slice.mean)} (${nats(slice.lower)} to ${nats(slice.upper)})${slice.isAlarm ? " at the alarm" : ""}`
    : slice.state === "drift" ? "none since the alarm" : "no scores";
  const limit = slice.tolerance ? nats(slice.tolerance) : "learning";
  return h("tr", { role: "row", class: slice.slice === "all" ? "whole" : null },
    h("th", { scope: "row", role: "rowheader" }, slice.slice === "all" ? "all requests" : slice.slice),
    h("td", { role: "cell", class: "verdict", title: MEANING[slice.state] }, chip(slice.state)),
    h("td", { role: "cell", class: "chart" }, slice.n ? interval(slice, scale) : null),
    h("td", { role: "cell", class: "num" }, h("span", { class: "narrow" }, "mean "), band),
    h("td", { role: "cell", class: "num" }, h("span", { class: "narrow" }, "tolerance "), limit),
    h("td", { role: "cell", class: "num" }, number(slice.n), h("span", { class: "narrow" }, " scored")));
}

function table(variant, repaint) {
  const found = variant.slices.map((each) => evidence(variant, each));
  const whole = found.filter((each) => each.slice === "all");
  const rest = worstFirst(found);
  const isWhole = expanded.has(variant.id) || rest.length <= AT_FIRST + 1;
  const slices = [...whole, ...(isWhole ? rest : rest.slice(0, AT_FIRST))];
  const scale = new Scale(slices.filter((each) => each.n).flatMap((each) => [each.lower, each.mean, each.upper, each.tolerance]));
  const heads = ["Slice", "Verdict", "", "Mean and band", "Tolerance", "Scored"];
  return [
    h("table", { class: "slices", role: "table", "aria-label": `KL divergence of ${variant.id} by slice, in nats a token` },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads.map((name, place) =>
        h("th", { scope: "col", role: "columnheader", class: place > 2 ? "num" : null }, name || [h("span", { class: "hidden" }, "Chart"), axis(scale)])))),
      h("tbody", { role: "rowgroup" }, slices.map((each) => row(each, scale)))),
    h("p", { class: "muted small key" }, h("span", { class: "key-band", "aria-hidden": "true" }), " band that holds at all times ",
      h("span", { class: "key-mean", "aria-hidden": "true" }), " mean ", h("span", { class: "key-limit", "aria-hidden": "true" }),
      " tolerance; nats a token, logarithmic"),
    isWhole ? null : h("button", { type: "button", class: "small quiet", "data-focus": "more slices",
      on: { click: () => { expanded.add(variant.id); repaint(); } } }, `Show all ${rest.length} slices`),
  ];
}

function floorWords(floor) {
  if (!floor) return "Noise floor: not measured yet; it comes with some scored requests.";
  return `Noise floor, the full model against itself: mean ${nats(floor.mean)}, largest ${nats(floor.largest)} (${many(floor.num_requests, "request")}).`;
}

function estimatorWords(variant) {
  if (variant.estimator !== "exact") return "Divergences are over the likeliest tokens and one bin for the rest: a lower bound.";
  const gap = variant.topk_gap;
  return `Divergences are exact, over the whole vocabulary${gap ? `; over the likeliest tokens alone the mean would be ${nats(gap.topk)} instead of ${nats(gap.exact)} (${many(gap.num_requests, "request")})` : ""}.`;
}

function nothing(model, shadow, tell) {
  const told = shadow.models[model];
  if (!told?.rate) {
    const start = async () => {
      try {
        await ask("admin/shadow", { body: { model, rate: 0.1 } });
        tell(`One in ten requests of ${model} is scored from now on.`);
      } catch (error) {
        tell(`Scoring was not switched on: ${error.message}`);
      }
    };
    return h("div", { class: "empty" }, h("p", {}, h("strong", {}, "Nothing is scored. "),
      "Switch it on here until the next start, or for good with ", h("code", {}, "shadow.rate"), " in the settings; ",
      h("code", {}, "POST /admin/shadow"), " does the same as this button."),
    h("button", { type: "button", "data-focus": "score", on: { click: start } }, "Score 10 % of requests"));
  }
  const dropped = Object.entries(told.dropped ?? {}).map(([reason, count]) => `${reason.replaceAll("_", " ")} ${count}`);
  return h("div", { class: "empty" }, h("p", {}, h("strong", {}, "Nothing is scored yet. "),
    `${number(told.rate * 100)} % of requests are drawn: ${many(told.candidates ?? 0, "candidate")}, ${number(told.scored ?? 0)} scored. `,
    "Scores are made while no request runs: send some, then wait a moment."),
  dropped.length ? h("p", { class: "muted small" }, `Not scored: ${dropped.join(", ")}.`) : null);
}

function choose(fidelity, choice) {
  const watched = fidelity.data.filter((each) => each.verdict);
  const field = byId("watched-field");
  field.hidden = watched.length < 2;
  const names = watched.map((each) => each.id);
  if (choice.dataset.names !== names.join()) {
    const before = choice.value;
    const first = watched.toSorted((left, right) => Number(right.active) - Number(left.active) || ORDER[left.verdict] - ORDER[right.verdict])[0];
    choice.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    choice.dataset.names = names.join();
    choice.value = names.includes(before) ? before : first?.id ?? "";
  }
  return watched.find((each) => each.id === choice.value);
}

export function fidelity(place, state, tell, repaint) {
  const { fidelity: told, shadow } = state;
  const variant = choose(told, byId("watched"));
  const model = variant?.model ?? told.data.find((each) => each.active)?.model;
  const content = [variant, told.noise_floor[model], expanded.has(variant?.id), variant ? null : shadow.models[model]];
  show(place, content, () => {
    if (!variant) return nothing(model, shadow, tell);
    const since = variant.slices.find((each) => each.slice === "all")?.since;
    return [
      h("div", { class: "row between" },
        h("p", {}, chip(variant.verdict), " ", h("strong", {}, variant.id), h("span", { class: "muted" }, ` ${MEANING[variant.verdict]}${since ? `, since ${clock(since)}` : ""}`)),
        h("p", { class: "muted small" }, `${many(variant.scored, "request")} scored since the start`)),
      table(variant, repaint),
      h("p", { class: "muted small" }, estimatorWords(variant)),
      h("p", { class: "muted small" }, floorWords(told.noise_floor[model])),
      h("p", { class: "muted small" }, `What a verdict promises: ${told.promise}`),
    ];
  });
}
