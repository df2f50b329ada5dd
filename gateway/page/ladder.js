// A model's variants as steps, from the smallest to the safest.

import { h } from "./dom.js";
import { clock, duration, number } from "./format.js";

function rung(name, { active, home, canary, isKept }) {
  const tags = [
    name === active ? "serves" : null,
    isKept && name === home && home !== active ? "home" : null,
    name === canary ? "on trial" : null,
  ].filter(Boolean);
  return h("li", { class: name === active ? "rung active" : "rung", "aria-current": name === active ? "step" : null },
    h("span", { class: "rung-name" }, name), tags.length ? h("span", { class: "rung-tag" }, tags.join(", ")) : null);
}

// Where slices of the traffic go that the active variant does not answer.
function routed(routes) {
  const rungs = [...new Set(Object.values(routes))];
  return rungs.map((to) => {
    const slices = Object.keys(routes).filter((slice) => routes[slice] === to).toSorted();
    return `${slices.join(", ")} ${slices.length > 1 ? "go" : "goes"} to ${to}`;
  }).join("; ");
}

function keeper(status) {
  if (!status || status.mode === "off") return "Keeper off: steps are taken by hand. Switch it on with shadow.ladder.mode.";
  const mode = status.dry_run ? "Keeper in dry run: it tells what it would do, and does nothing." : "Keeper on: it steps by itself.";
  const last = status.steps.at(-1);
  const step = last ? ` Last step ${clock(last.time)}: ${last.act.replaceAll("_", " ")}${last.slices?.length ? ` (${last.slices.join(", ")})` : ""}, ${last.left} to ${last.to}.` : " No step yet.";
  const wait = status.cool_down_left_s > 0 ? ` Cool-down: ${duration(Math.ceil(status.cool_down_left_s / 10) * 10)} left.` : "";
  return mode + step + wait;
}

// The canary that an operator asked for, or how the last one ended.
function trial({ canary, ordered, ended } = {}) {
  if (ordered) return `On trial soon: ${ordered.variant} is loading.`;
  if (canary?.terms) {
    const { share, num_requests: wanted } = canary.terms;
    return `On trial: ${canary.variant} takes ${number(100 * share)} % of the requests, ${canary.num_scored} of ${wanted} scored.`;
  }
  return ended ? `Last trial, ${clock(ended.time)}: ${ended.variant} ${ended.ending.replaceAll("_", " ")} (${ended.reason}).` : null;
}

export function ladder(rungs, active, status) {
  if (rungs.length < 2) return h("p", { class: "muted small" }, "One variant: a ladder in the settings adds others to swap to.");
  const routes = routed(status?.routes ?? {});
  const told = { active, home: status?.home, canary: status?.canary?.variant, isKept: Boolean(status) };
  return h("div", { class: "ladder-block" },
    h("ol", { class: "ladder", "aria-label": "Ladder, from the smallest to the safest" }, rungs.map((name) => rung(name, told))),
    h("p", { class: "muted small" }, keeper(status)),
    trial(status) ? h("p", { class: "small" }, trial(status)) : null,
    routes ? h("p", { class: "small" }, `Slices: ${routes}.`) : null,
    status?.reason && status.decision !== "stay" ? h("p", { class: "small" }, `${status.decision.replaceAll("_", " ")}: ${status.reason}`) : null);
}
