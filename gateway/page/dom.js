// Elements by DOM calls alone: nothing that a service or a model says is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(2).filter((each) => each !== null && each !== undefined && each !== false));
  return node;
}

export const h = (tag, attributes = {}, ...children) => make(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  make(document.createElementNS(SVG, tag), attributes, children);

export const byId = (id) => document.getElementById(id);

const shown = new WeakMap();

// Rebuilds a place only when what it shows has changed; the focus stays on the same control.
export function show(place, content, build) {
  const key = JSON.stringify(content);
  if (shown.get(place) === key) return;
  shown.set(place, key);
  const active = document.activeElement;
  const name = place.contains(active) ? active.dataset.focus : undefined;
  place.replaceChildren(...[build(content)].flat(2).filter(Boolean));
  if (name) place.querySelector(`[data-focus="${CSS.escape(name)}"]`)?.focus({ preventScroll: true });
}

// A state in words, with a sign of its own: colour is never the only difference.
const SIGNS = {
  ok: "✓", ready: "✓", drift: "✕", failed: "✕", stale: "?", learning: "…", loading: "…",
  restarting: "↻", stopping: "…", stopped: "–", draining: "…", "not ready": "…", "not reachable": "✕",
};

export const chip = (state, label = state) =>
  h("span", { class: `chip is-${state.replaceAll(" ", "-")}` },
    h("span", { "aria-hidden": "true" }, SIGNS[state] ?? "·"), ` ${label}`);
