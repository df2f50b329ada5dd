// The three questions of an operator, each answered in one line: fast, small, faithful?

import { chip, h, show } from "./dom.js";
import { evidence } from "./fidelity.js";
import { bytes, nats, number, percent, seconds } from "./format.js";

const ORDER = ["drift", "stale", "learning", "ok"];

function speed(live, windowS) {
  const now = live.all.windows[windowS];
  const span = { 10: "10 s", 60: "minute", 300: "5 min" }[windowS];
  if (!now.requests && !live.all.running) {
    return [h("p", { class: "answer" }, "idle"), h("p", { class: "why" }, `No request ended in the last ${span}.`)];
  }
  const first = now.first_token_p50_s === null ? "no streamed requests"
    : `first token ${seconds(now.first_token_p50_s)} (p95 ${seconds(now.first_token_p95_s)})`;
  const errors = now.errors ? `${percent(now.errors / now.requests)} errors` : "no errors";
  return [
    h("p", { class: "answer" }, number(now.generated_tokens), h("span", { class: "unit" }, " tokens/s")),
    h("p", { class: "why" }, `${first}; ${errors} in the last ${span}.`),
  ];
}

function size(cards) {
  const active = cards.filter((card) => card.active && card.id.includes("@") && card.weights_bytes && card.weights_uncompressed_bytes);
  if (!active.length) {
    return [h("p", { class: "answer" }, "–"), h("p", { class: "why" }, "No loaded variant tells its size: load one.")];
  }
  const now = active.reduce((sum, card) => sum + card.weights_bytes, 0);
  const before = active.reduce((sum, card) => sum + card.weights_uncompressed_bytes, 0);
  const ratio = before / now;
  const words = ratio < 1.02 ? "uncompressed" : [number(ratio), h("span", { class: "unit" }, "× smaller")];
  return [h("p", { class: "answer" }, words),
    h("p", { class: "why" }, `Weights that serve take ${bytes(now)}; uncompressed ${bytes(before)}.`)];
}

function quality(fidelity) {
  const watched = fidelity.data.filter((each) => each.active && each.verdict);
  if (!watched.length) {
    const compressed = fidelity.data.some((each) => each.active && each.variant !== "full");
    return [h("p", { class: "answer" }, compressed ? "not known" : "full model"),
      h("p", { class: "why" }, compressed ? "Nothing is scored yet: see Fidelity." : "The full model serves: there is nothing to compare.")];
  }
  const worst = watched.toSorted((left, right) => ORDER.indexOf(left.verdict) - ORDER.indexOf(right.verdict))[0];
  const drifting = worst.slices.find((each) => each.slice === "all" && each.state === "drift") ?? worst.slices.find((each) => each.state === "drift");
  const chosen = drifting ?? worst.slices.find((each) => each.slice === "all");
  const slice = chosen && evidence(worst, chosen);
  const bound = slice?.n ? `${slice.slice === "all" ? "all requests" : slice.slice}: ${nats(slice.mean)} nats a token (${nats(slice.lower)} to ${nats(slice.upper)})${slice.isAlarm ? " at the alarm" : ""}` : "no scores yet";
  const limit = slice?.tolerance ? `; tolerance ${nats(slice.tolerance)}` : "; the tolerance is being learned";
  return [h("p", { class: "answer" }, chip(worst.verdict)), h("p", { class: "why" }, `${worst.id}, ${bound}${limit}.`)];
}

export function answers(place, { live, cards, fidelity }, windowS) {
  const content = [live.all.windows[windowS], live.all.running, cards, fidelity.data, windowS];
  show(place, content, () => [
    h("div", { class: "panel card" }, h("h2", {}, "Is it fast?"), speed(live, windowS)),
    h("div", { class: "panel card" }, h("h2", {}, "Does compression pay?"), size(cards)),
    h("div", { class: "panel card" }, h("h2", {}, "Does quality hold?"), quality(fidelity)),
  ]);
}
