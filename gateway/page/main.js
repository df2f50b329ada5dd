// Where all parts of the page meet: what is asked when, and what shows it.

import { answers } from "./answers.js";
import { key, read, Refused } from "./api.js";
import { askModels, startAsking } from "./ask.js";
import { byId, chip, show } from "./dom.js";
import { follow } from "./feed.js";
import { fidelity } from "./fidelity.js";
import { duration } from "./format.js";
import { memory, models, rates } from "./models.js";
import { tiles } from "./tiles.js";

const LIVE_MS = 2000;
const REST_MS = 4000;

const state = { live: null, variants: [], cards: [], fidelity: null, shadow: null };
const progress = new Map();
let isLocked = false;
let lastSeen = 0;

const tell = (text) => {
  byId("notice").textContent = text;
};

const windowS = () => document.querySelector('input[name="window"]:checked').value;

function toleranceOf(name) {
  const told = state.fidelity?.data.find((each) => each.id === name || (each.model === name && each.active));
  return told?.slices.find((each) => each.slice === "all")?.tolerance ?? null;
}

function paintHead(status) {
  show(byId("service"), status, () => chip(status));
  const { live } = state;
  byId("since").textContent = live ? `${live.version} · up ${duration(live.uptime_s)}` : "";
  byId("forget").hidden = !key.get();
}

function paint() {
  const { live } = state;
  if (!live || !state.fidelity) return;
  byId("figures").hidden = isLocked;
  paintHead(live.status);
  answers(byId("answers"), state, windowS());
  tiles(byId("tiles"), live, windowS());
  memory(byId("memory"), live.memory);
  models(byId("models"), state, progress, (text) => {
    tell(text);
    refresh();
  });
  rates(byId("models"), live, windowS());
  fidelity(byId("fidelity"), state, (text) => {
    tell(text);
    refresh();
  }, paint);
  askModels(state.variants);
}

function lock(error) {
  isLocked = true;
  byId("figures").hidden = true;
  byId("gate").hidden = false;
  byId("gate-why").textContent = error.message[0].toUpperCase() + error.message.slice(1);
  paintHead("locked");
  byId("key").value = "";
  byId("key").focus();
}

function unlock() {
  isLocked = false;
  byId("gate").hidden = true;
}

function failed(error) {
  if (error instanceof Refused && error.isAboutKey) lock(error);
  else if (error instanceof Refused) tell(error.message);
  else {
    paintHead("not reachable");
    if (lastSeen) byId("since").textContent = `last seen ${duration((Date.now() - lastSeen) / 1000)} ago`;
  }
}

async function look(paths) {
  try {
    const found = await Promise.all(paths.map((path) => read(path)));
    lastSeen = Date.now();
    unlock();
    return found;
  } catch (error) {
    failed(error);
    return null;
  }
}

async function refreshLive() {
  const found = await look(["admin/live"]);
  if (found) {
    [state.live] = found;
    paint();
  }
}

async function refresh() {
  const found = await look(["admin/models", "v1/models", "admin/fidelity?window_s=60", "admin/shadow"]);
  if (!found) return;
  const [variants, cards, told, shadow] = found;
  Object.assign(state, { variants: variants.data, cards: cards.data, fidelity: told, shadow });
  paint();
}

function every(milliseconds, work) {
  const turn = async () => {
    // Nobody looks at a hidden tab, and a locked one would only be refused again.
    if (!document.hidden && !isLocked) await work();
    setTimeout(turn, milliseconds);
  };
  turn();
}

let isDue = false;

function refreshSoon() {
  if (isDue) return;
  isDue = true;
  setTimeout(() => {
    isDue = false;
    if (!isLocked) refresh();
  }, 200);
}

function onEvent(kind, said, words) {
  if (kind === "progress") {
    progress.set(said.model, words);
    if (state.fidelity) paint();
    return;
  }
  if (kind === "comparison_progress") return;
  progress.delete(said.model);
  refreshSoon();
}

async function tryKey(event) {
  event.preventDefault();
  const field = byId("key");
  key.set(field.value.trim());
  await refresh();
  if (isLocked) {
    key.forget();
    // A refusal has emptied the field; else nobody has looked at the key, and it can be sent again.
    if (field.value) byId("gate-why").textContent = "The key could not be tried: try again.";
    return;
  }
  field.value = "";
  await refreshLive();
  byId("main").focus();
  tell("The key is accepted.");
}

byId("gate-form").addEventListener("submit", tryKey);
byId("forget").addEventListener("click", () => {
  key.forget();
  location.reload();
});
for (const radio of document.querySelectorAll('input[name="window"]')) radio.addEventListener("change", paint);
byId("watched").addEventListener("change", paint);
document.addEventListener("visibilitychange", () => !document.hidden && !isLocked && refresh());
startAsking(toleranceOf);
every(LIVE_MS, refreshLive);
every(REST_MS, refresh);
follow(byId("events"), { onEvent, isWanted: () => !isLocked && state.live !== null });
