// What happened to models, newest first, as it comes.

import { ask, events } from "./api.js";
import { chip, h } from "./dom.js";
import { clock, nats } from "./format.js";

const KEPT = 80;
const PAUSE_MS = 2000;
const LOOK_MS = 200;

const progressWords = ({ stage, done, total, unit }) => (total ? `${stage}: ${done} of ${total} ${unit}` : stage);

const WORDS = {
  state: (said) => [chip(said.state), " ", said.model],
  progress: (said) => [said.model, ": ", progressWords(said)],
  swap_started: (said) => [said.model, `: swap from ${said.from} to ${said.to} begins`],
  swap_ended: (said) => [said.model, `: swap from ${said.from} to ${said.to} ${said.result === "ok" ? "is done" : "failed"}`],
  verdict: (said) => [chip(said.to), ` ${said.model}@${said.variant}, ${said.slice}: was ${said.from}; ${said.reason}`,
    said.evidence?.n ? ` (mean ${nats(said.evidence.mean)} nats, ${said.evidence.n} scored)` : ""],
  ladder_step: (said) => [said.model, `: ${said.act.replaceAll("_", " ")}, ${said.from} to ${said.to} (${said.result})`,
    said.slices?.length ? `, slices ${said.slices.join(", ")}` : "", `: ${said.reason}`],
  comparison: (said) => [chip(said.state), ` comparison of recipes of ${said.model}`, said.error ? `: ${said.error}` : ""],
  comparison_progress: (said) => [`comparison of recipes of ${said.model}: `, progressWords(said), said.detail ? ` (${said.detail})` : ""],
};

// Of what grows there is one line, not hundreds.
const GROWS = {
  progress: (said) => `${said.model} ${said.stage}`,
  comparison_progress: (said) => said.id,
};

const NAMES = { state: "state", progress: "progress", swap_started: "swap", swap_ended: "swap", verdict: "verdict", ladder_step: "ladder",
  comparison: "compare", comparison_progress: "compare" };

function line(kind, said) {
  const words = WORDS[kind] ? WORDS[kind](said) : [said.model ?? "", ` ${kind}`];
  return h("li", { "data-kind": kind, "data-of": GROWS[kind]?.(said) ?? null },
    h("time", { datetime: new Date(said.time * 1000).toISOString() }, clock(said.time)),
    h("span", { class: "kind" }, NAMES[kind] ?? kind), h("span", { class: "what" }, words));
}

function add(place, kind, said) {
  const entry = line(kind, said);
  const { of } = entry.dataset;
  // A load grows where it is the last that happened; a comparison goes on beside all else.
  const earlier = kind === "progress" ? [place.firstElementChild] : [...place.children];
  const grown = of && earlier.find((each) => each?.dataset.of === of);
  if (grown) grown.replaceWith(entry);
  else place.prepend(entry);
  place.querySelector(".none")?.remove();
  while (place.children.length > KEPT) place.lastElementChild.remove();
}

export async function follow(place, { onEvent, isWanted }) {
  if (!place.children.length) place.append(h("li", { class: "none muted" }, "Nothing has happened yet: loads, swaps and verdicts are told here."));
  let last = "0";
  for (;;) {
    const isOn = isWanted();
    if (isOn) {
      try {
        const response = await ask("admin/events", { more: { "last-event-id": last } });
        for await (const event of events(response)) {
          const said = JSON.parse(event.data);
          last = event.id || last;
          add(place, event.event, said);
          onEvent(event.event, said, event.event === "progress" ? progressWords(said) : "");
        }
      } catch { /* the figures say that the service is not there */ }
    }
    await new Promise((resolve) => setTimeout(resolve, isOn ? PAUSE_MS : LOOK_MS));
  }
}
