// Models and their variants: what was asked for, what really runs, and what it takes.

import { buttons, words } from "./actions.js";
import { bar } from "./bar.js";
import { chip, h, show } from "./dom.js";
import { bytes, number, percent, seconds } from "./format.js";
import { ladder } from "./ladder.js";

const serving = ({ state }) => (state === "ready" ? "serves" : "serves once it is loaded");

function applied(card) {
  if (!card?.schemes) return card?.engine ? "the engine does not tell" : "not loaded";
  const schemes = Object.entries(card.schemes).map(([name, count]) => `${name} ×${count}`).join(", ");
  const numerics = [...new Set(Object.values(card.numerics ?? {}))].join(", ");
  return [schemes, numerics, card.kv_dtype ? `cache ${card.kv_dtype}` : null].filter(Boolean).join(" · ");
}

function weights(card) {
  if (!card?.weights_bytes) return h("p", { class: "muted small" }, "Sizes are known once it is loaded.");
  const whole = card.weights_uncompressed_bytes ?? card.weights_bytes;
  const share = card.weights_bytes / whole;
  const text = `${bytes(card.weights_bytes)} of ${bytes(whole)} uncompressed (${percent(share)})`;
  return h("div", { class: "weights" }, bar(card.weights_bytes, whole, `Weights: ${text}`),
    h("p", { class: "small" }, text, card.weight_bits ? ` · ${number(card.weight_bits)} bits a weight` : ""));
}

function facts(variant, card) {
  const rows = [
    ["Requested", card?.recipe ?? variant.variant],
    ["Applied", applied(card)],
    ["Engine", [card?.engine, card?.engine_version].filter(Boolean).join(" ") || "none"],
    ["Holds", variant.memory_bytes ? `${bytes(variant.memory_bytes)}${variant.load_s ? ` · loaded in ${seconds(variant.load_s)}` : ""}` : "nothing"],
  ];
  return h("dl", { class: "facts" }, rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function variantRow(variant, card, progress, onChange) {
  const note = words(variant.id);
  return h("li", { class: variant.active ? "variant active" : "variant" },
    h("div", { class: "row between" },
      h("h4", {}, variant.variant, " ", chip(variant.state), variant.active ? h("span", { class: "chip is-active" }, serving(variant)) : null),
      buttons(variant, { onChange })),
    progress && variant.state === "loading" ? h("p", { class: "small" }, progress) : null,
    note.text ? h("p", { class: note.isBad ? "small bad" : "small" }, note.text) : null,
    weights(card), facts(variant, card),
    h("p", { class: "muted small num", "data-live": variant.id }));
}

export function models(place, { variants, cards, fidelity }, progress, onChange) {
  const byName = Object.fromEntries(cards.map((card) => [card.id, card]));
  const aliases = [...new Set(variants.map((each) => each.model))];
  const steady = variants.map(({ id, state, active, memory_bytes: held, load_s: load, variant, model }) =>
    ({ id, state, active, memory_bytes: held, load_s: load, variant, model, words: words(id), progress: progress.get(id) ?? null }));
  // The cool-down is told to ten seconds, so that a row is not rebuilt each time.
  const ladders = Object.fromEntries(Object.entries(fidelity.ladders).map(([model, status]) =>
    [model, { ...status, cool_down_left_s: Math.ceil(status.cool_down_left_s / 10) * 10 }]));
  show(place, [steady, cards, ladders], () => aliases.map((alias) => {
    const own = steady.filter((each) => each.model === alias);
    const active = own.find((each) => each.active);
    return h("article", { class: "panel model", "aria-label": alias },
      h("div", { class: "row between" }, h("h3", {}, alias),
        h("p", { class: "muted small" }, active ? `${active.variant} ${serving(active)}` : "nothing serves")),
      ladder(own.map((each) => each.variant), active?.variant, ladders[alias]),
      h("ul", { class: "variants" }, own.map((each) => variantRow(each, byName[each.id], each.progress, onChange))));
  }));
}

// What changes with every look is written in place, so that no control moves under a pointer.
export function rates(place, live, windowS) {
  for (const model of live.models) {
    for (const variant of model.variants) {
      const now = variant.windows[windowS];
      const line = place.querySelector(`[data-live="${CSS.escape(`${model.model}@${variant.variant}`)}"]`);
      if (!line) continue;
      const text = now.requests || variant.running
        ? [`${number(now.requests)} requests/s`, `${number(now.generated_tokens)} tokens/s`,
          now.first_token_p50_s === null ? null : `first token ${seconds(now.first_token_p50_s)}`,
          variant.running ? `${variant.running} running` : null].filter(Boolean).join(" · ")
        : "no traffic";
      if (line.textContent !== text) line.textContent = text;
    }
  }
}

export function memory(place, { held_bytes: held, budget_bytes: budget }) {
  show(place, [held, budget], () => {
    if (!budget) return h("p", { class: "muted small" }, `Engines hold ${bytes(held)}. No memory budget is set.`);
    const text = `Engines hold ${bytes(held)} of a budget of ${bytes(budget)} (${percent(held / budget)})`;
    return h("div", { class: "panel slim weights" }, bar(held, budget, text, held > 0.9 * budget ? "full" : ""), h("p", { class: "small" }, text));
  });
}
