// Load, swap and unload: what is allowed now, a question before, and the service's words after.

import { ask } from "./api.js";
import { byId, h } from "./dom.js";

const BUSY = { loading: "it is loading", stopping: "it is stopping", restarting: "it restarts" };

function obstacle(verb, variant) {
  if (verb === "load") return variant.state === "ready" ? "it is loaded" : BUSY[variant.state] ?? null;
  if (verb === "activate") return variant.active ? "it serves already" : null;
  return variant.state === "stopped" ? "it is not loaded" : variant.state === "stopping" ? BUSY.stopping : null;
}

const VERBS = {
  load: { label: "Load", doing: "is being loaded", title: (id) => `Load ${id}?`,
    text: () => "It takes memory beside what serves now. Traffic stays where it is." },
  activate: { label: "Activate", doing: "is being swapped in", title: (id) => `Let ${id} serve?`,
    text: () => "It is loaded and tried first, then requests go to it, and the one that serves now is stopped after its last answer. No request fails." },
  unload: { label: "Unload", doing: "is being stopped", title: (id) => `Unload ${id}?`,
    text: (variant) => variant.active
      ? "It serves its model now: the next request waits until it is loaded again."
      : "Its running requests end first." },
};

export function confirmed(title, text, yes) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// Words beside the buttons outlive a repaint of their row.
const said = new Map();

export const words = (id) => said.get(id) ?? { text: "", isBad: false };

export function buttons(variant, { onChange }) {
  const say = (text, isBad = false) => {
    said.set(variant.id, { text, isBad });
    onChange(text);
  };
  const act = async (verb) => {
    const { title, text, label, doing } = VERBS[verb];
    const reason = obstacle(verb, variant);
    if (reason) return say(`${label}: not now, ${reason}.`);
    if (!(await confirmed(title(variant.id), text(variant), label))) return;
    say(`${variant.id} ${doing}.`);
    try {
      await ask(`admin/models/${encodeURIComponent(variant.id)}/${verb}`, { verb: "POST" });
      say(`${label}: done.`);
    } catch (error) {
      say(`${label} failed: ${error.message}`, true);
    }
  };
  return h("div", { class: "row buttons", role: "group", "aria-label": `Actions for ${variant.id}` },
    Object.entries(VERBS).map(([verb, { label }]) => {
      const reason = obstacle(verb, variant);
      // Still reachable with the keyboard, so that the reason can be read.
      return h("button", { type: "button", class: "small", "data-focus": `${variant.id} ${verb}`, "aria-disabled": reason ? "true" : null,
        title: reason ? `Not now: ${reason}` : null, "aria-label": reason ? `${label} ${variant.id}: not now, ${reason}` : `${label} ${variant.id}`,
        on: { click: () => act(verb) } }, label);
    }));
}
