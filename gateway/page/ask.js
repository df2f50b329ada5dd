// The question box: a variant and the full model side by side, or a chat with one model.

import { ask, events, read } from "./api.js";
import { byId, h } from "./dom.js";
import { number, seconds } from "./format.js";
import { tokens, totals } from "./tokens.js";

let turns = [];
let running = null;

const mode = () => document.querySelector('input[name="mode"]:checked').value;

function speed(reply) {
  const count = reply.usage?.completion_tokens;
  const end = reply.finish_reason === "length" ? "; cut off at the limit" : "";
  return count ? `${number(count)} tokens in ${seconds(reply.seconds)}, ${number(count / reply.seconds)} a second${end}` : seconds(reply.seconds) + end;
}

// Where the two texts part, which is often later than where the distributions do.
function parted(text, other) {
  let place = 0;
  while (place < text.length && text[place] === other[place]) place += 1;
  // Two signs may differ in their second half only: what is cut there is no text.
  const last = text.charCodeAt(place - 1);
  if (last >= 0xd800 && last <= 0xdbff) place -= 1;
  if (place === text.length && text.length === other.length) return [text || "(no text)"];
  return [text.slice(0, place), h("span", { class: "parting" }, h("span", { class: "hidden" }, "(from here the texts differ) "), text.slice(place) || "(ends here)")];
}

function both(found, tolerance) {
  return h("div", {},
    h("div", { class: "pair" },
      h("section", { "aria-label": "Compressed" }, h("h3", {}, found.compressed.name), h("p", { class: "muted small num" }, speed(found.compressed)), tokens(found.scores)),
      h("section", { "aria-label": "Full" }, h("h3", {}, found.full.name), h("p", { class: "muted small num" }, speed(found.full)),
        h("p", { class: "answer-text" }, parted(found.full.text, found.compressed.text)))),
    totals(found.scores, tolerance),
    h("p", { class: "muted small" }, "Scores: the full model reads the compressed answer token by token, as the shadow does. A text may differ where the scores are small, and the other way round."));
}

async function askBoth(fields, place, signal, tolerance) {
  place.replaceChildren(h("p", { class: "muted" }, "Both are answering; a full model that is not loaded is loaded first."));
  const found = await read("admin/side-by-side", { body: fields, signal });
  place.replaceChildren(both(found, tolerance));
}

async function askOne(fields, place, signal) {
  turns.push(...fields.messages);
  const answer = h("div", { class: "turn theirs" });
  const measure = h("p", { class: "muted small num" });
  if (turns.length === 1) place.replaceChildren();
  place.append(h("div", { class: "turn mine" }, fields.messages[0].content), answer, measure);
  const started = performance.now();
  let text = "";
  let first = null;
  let usage = null;
  try {
    const body = { ...fields, messages: turns, stream: true, stream_options: { include_usage: true } };
    const response = await ask("v1/chat/completions", { body, signal });
    const name = [response.headers.get("x-narrowgate-model"), response.headers.get("x-narrowgate-variant")].filter(Boolean).join("@");
    for await (const event of events(response)) {
      if (event.data === "[DONE]") break;
      const said = JSON.parse(event.data);
      if (said.error) throw new Error(said.error.message);
      usage = said.usage ?? usage;
      const piece = said.choices?.[0]?.delta?.content ?? "";
      if (piece && first === null) first = performance.now() - started;
      text += piece;
      answer.textContent = text;
    }
    const took = (performance.now() - started) / 1000;
    const count = usage?.completion_tokens;
    measure.textContent = [name, `first token ${seconds((first ?? 0) / 1000)}`, count ? `${number(count)} tokens, ${number(count / took)} a second` : null].filter(Boolean).join(" · ");
    turns.push({ role: "assistant", content: text });
  } catch (error) {
    turns.splice(-fields.messages.length);
    throw error;
  }
}

async function send(toleranceOf) {
  const place = byId("reply");
  const content = byId("ask-text").value.trim();
  if (!content || running) return;
  const fields = { model: byId("ask-model").value, messages: [{ role: "user", content }],
    max_tokens: Number(byId("ask-tokens").value), temperature: Number(byId("ask-temperature").value) };
  running = new AbortController();
  place.setAttribute("aria-busy", "true");
  byId("ask-stop").hidden = false;
  byId("ask-send").disabled = true;
  try {
    if (mode() === "both") await askBoth(fields, place, running.signal, toleranceOf(fields.model));
    else await askOne(fields, place, running.signal);
    if (mode() === "one") byId("ask-text").value = "";
  } catch (error) {
    const words = error.name === "AbortError" ? "Stopped." : error.message;
    if (mode() === "both") place.replaceChildren();
    place.append(h("p", { class: error.name === "AbortError" ? "muted" : "bad" }, words));
  } finally {
    running = null;
    place.setAttribute("aria-busy", "false");
    byId("ask-stop").hidden = true;
    byId("ask-send").disabled = false;
    byId("ask-clear").hidden = mode() === "both" || !turns.length;
  }
}

function onMode() {
  byId("ask-send").textContent = mode() === "both" ? "Ask both" : "Send";
  turns = [];
  byId("reply").replaceChildren();
  byId("ask-clear").hidden = true;
}

export function askModels(variants) {
  const choice = byId("ask-model");
  const names = [...new Set(variants.map((each) => each.model)), ...variants.map((each) => each.id)];
  if (choice.dataset.names === names.join()) return;
  const before = choice.value;
  choice.dataset.names = names.join();
  choice.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  if (names.includes(before)) choice.value = before;
}

export function startAsking(toleranceOf) {
  const form = byId("ask");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(toleranceOf);
  });
  byId("ask-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  byId("ask-stop").addEventListener("click", () => running?.abort());
  byId("ask-clear").addEventListener("click", onMode);
  for (const radio of form.elements.mode) radio.addEventListener("change", onMode);
}
