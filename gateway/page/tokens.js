// The tokens of an answer, coloured by how far the full model's distribution is from the one that chose.

import { h } from "./dom.js";
import { nats, number, percent } from "./format.js";

const STEPS = [0.003, 0.01, 0.03, 0.1, 0.3, 1];

const level = (kl) => STEPS.filter((step) => kl >= step).length;

const visible = (text) => (text === "" ? "∅" : text.replaceAll(/[\u0000-\u0008\u000b-\u001f\u007f]/g, "·"));

const inWords = (text) => JSON.stringify(text === "" ? "(no text)" : text);

function describe(token, place, first) {
  const agreement = token.agrees ? "both find the same token likeliest" : "the full model finds another token likelier";
  return `Token ${place + 1}, ${inWords(token.text)}: ${nats(token.kl)} nats; ${agreement}${place === first ? "; the first divergence" : ""}`;
}

export function tokens({ tokens: all, first_divergence: first }) {
  const readout = h("p", { class: "readout small", id: "readout" }, "Point at a token, or walk along them with the arrow keys.");
  const list = h("div", { class: "tokens", role: "listbox", "aria-label": "Tokens of the compressed answer", "aria-describedby": "readout", "aria-orientation": "horizontal" });
  const nodes = all.map((token, place) =>
    h("span", { class: `token kl-${level(token.kl)}${place === first ? " first" : ""}${token.agrees ? "" : " differs"}${token.text ? "" : " silent"}`, role: "option",
      tabindex: place ? "-1" : "0", "aria-selected": "false", "aria-label": describe(token, place, first), "data-place": place }, visible(token.text)));
  const look = (place) => {
    readout.textContent = describe(all[place], place, first);
    for (const node of nodes) node.setAttribute("aria-selected", String(node === nodes[place]));
  };
  const go = (place) => {
    const to = Math.min(nodes.length - 1, Math.max(0, place));
    for (const node of nodes) node.tabIndex = node === nodes[to] ? 0 : -1;
    nodes[to].focus();
  };
  list.append(...nodes);
  list.addEventListener("pointerover", (event) => event.target.dataset.place && look(Number(event.target.dataset.place)));
  list.addEventListener("focusin", (event) => event.target.dataset.place && look(Number(event.target.dataset.place)));
  list.addEventListener("keydown", (event) => {
    const here = Number(event.target.dataset.place);
    const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(to);
  });
  return [list, readout, legend()];
}

function legend() {
  const names = [`< ${STEPS[0]}`, ...STEPS.map((step) => `≥ ${step}`)];
  return h("p", { class: "legend small", "aria-label": "Colours by nats" }, names.map((name, place) => h("span", { class: `token kl-${place}` }, name)),
    h("span", { class: "token differs" }, "another token likelier"), h("span", { class: "token first differs" }, "first divergence"));
}

export function totals(scores, tolerance) {
  const cells = [
    ["Mean", `${nats(scores.mean_kl)} nats a token`], ["Total", `${nats(scores.total_kl)} nats`],
    ["Same likeliest token", `${percent(scores.top1_agreement)} of ${number(scores.tokens.length)}`],
    ["First divergence", scores.first_divergence === null ? "none" : `token ${scores.first_divergence + 1}`],
  ];
  if (tolerance) cells.push(["Tolerance of all requests", `${nats(tolerance)} nats a token`]);
  return h("dl", { class: "totals" }, cells.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}
