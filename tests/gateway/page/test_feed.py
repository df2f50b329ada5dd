"""What the page tells of events, routes and answers that are made up for it."""

import json
from typing import Any

from playwright.sync_api import Route, expect

from tests.gateway.page.conftest import KEY, OpenView

PROGRESS = {"id": "cmp-1", "stage": "quantize", "total": 9, "unit": "tokens"} | {
    "detail": "int4 on code"
}
STEP = {"act": "route_slices", "from": "int4", "to": "int8", "slices": ["domain:prose"]} | {
    "result": "done",
    "reason": "it drifts there",
}
STATUS: dict[str, Any] = {"home": "int4", "canary": None, "dry_run": False, "steps": []} | {
    "cool_down_left_s": 0,
    "decision": None,
    "reason": None,
}
"""Of a ladder whose keeper has done nothing yet."""


def frames(said: list[tuple[str, dict[str, Any]]]) -> str:
    """Return events as they are sent."""
    lines = []
    for number, (kind, fields) in enumerate(said, 1):
        data = json.dumps({"model": "tiny", "time": 0} | fields)
        lines.append(f"id: {number}\nevent: {kind}\ndata: {data}\n\n")
    return "".join(lines)


def answer_once(route: Route, content: str) -> None:
    """Send events to who has seen none."""
    is_first = route.request.headers["last-event-id"] == "0"
    route.fulfill(body=content if is_first else "", content_type="text/event-stream")


def test_a_key_that_nobody_looked_at_stays(view: OpenView) -> None:
    """While the service is not there the typed key is kept, and works once it is."""
    opened = view(key="")
    page = opened.page
    expect(page.locator("#gate")).to_be_visible()
    page.route("**/admin/models", lambda route: route.abort())
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#gate-why")).to_contain_text("could not be tried")
    expect(page.locator("#key")).to_have_value(KEY)
    page.unroute("**/admin/models")
    page.locator("#key").press("Enter")
    opened.wait_figures()
    opened.complaints.clear()  # a browser notes each failure by itself


def test_a_comparison_is_one_growing_line(view: OpenView) -> None:
    """Its progress is told in one place, whatever happens beside it; its states have words."""
    said: list[tuple[str, dict[str, Any]]] = [
        ("comparison", {"id": "cmp-1", "state": "running"}),
        ("comparison_progress", PROGRESS | {"done": 1}),
        ("ladder_step", STEP),
        ("comparison_progress", PROGRESS | {"done": 7, "stage": "compare"}),
        ("comparison", {"id": "cmp-1", "state": "failed", "error": "no room"}),
    ]
    opened = view(key="")
    page = opened.page
    opened.complaints.clear()
    page.route("**/admin/events", lambda route: answer_once(route, frames(said)))
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    lines = page.locator("#events li .what")
    expect(lines).to_have_count(4)
    expect(lines.nth(0)).to_contain_text("failed comparison of recipes of tiny: no room")
    expect(lines.nth(1)).to_contain_text("route slices, int4 to int8 (done), slices domain:prose")
    expect(lines.nth(2)).to_have_text(
        "comparison of recipes of tiny: compare: 7 of 9 tokens (int4 on code)"
    )
    expect(lines.nth(3)).to_contain_text("running comparison of recipes of tiny")


def test_routes_of_slices_are_shown(view: OpenView) -> None:
    """Where a slice goes that the active variant does not answer is told at the ladder."""
    page = view().page

    def routed(route: Route) -> None:
        told = route.fetch().json()
        routes = {"domain:prose": "int8", "domain:code": "full", "format:json": "full"}
        told["ladders"] = {"tiny": STATUS | {"routes": routes}}
        route.fulfill(json=told)

    page.route("**/admin/fidelity*", routed)
    expect(page.locator(".ladder-block").first).to_contain_text(
        "Slices: domain:prose goes to int8; domain:code, format:json go to full."
    )
    page.unroute_all(behavior="wait")


def test_an_operators_canary_is_shown(view: OpenView) -> None:
    """The ladder has the share that a rung takes on trial, and how the last trial ended."""
    page = view().page
    terms = {"share": 0.1, "num_requests": 300, "patience_s": 60, "beside": "int8"}
    canary = {"variant": "int4", "since": 0, "num_scored": 7, "terms": terms}
    ended = {"variant": "int4", "time": 0, "ending": "rolled_back", "reason": "it drifts"}
    status: dict[str, Any] = {"canary": canary}

    def tried(route: Route) -> None:
        told = route.fetch().json()
        told["ladders"] = {"tiny": STATUS | {"mode": "off", "routes": {}} | status}
        route.fulfill(json=told)

    page.route("**/admin/fidelity*", tried)
    block = page.locator(".ladder-block").first
    expect(block).to_contain_text("On trial: int4 takes 10 % of the requests, 7 of 300 scored.")
    expect(block).to_contain_text("Keeper off")
    status |= {"canary": None, "ended": ended}
    expect(block).to_contain_text("int4 rolled back (it drifts).")
    page.unroute_all(behavior="wait")


def test_no_sign_is_cut_in_two(view: OpenView) -> None:
    """Where two answers part amid a sign of two halves, the whole sign is the difference."""
    page = view().page
    side = {"usage": None, "seconds": 1, "finish_reason": "stop"}
    scores = {"tokens": [{"text": "a\U0001f600", "kl": 0.1, "agrees": False}], "total_kl": 0.1}
    scores |= {"first_divergence": 0, "mean_kl": 0.1, "top1_agreement": 0}
    pair = {
        "compressed": side | {"name": "tiny@int4", "text": "a\U0001f600"},
        "full": side | {"name": "tiny@full", "text": "a\U0001f601"},
        "scores": scores,
    }
    page.route("**/admin/side-by-side", lambda route: route.fulfill(json=pair))
    page.select_option("#ask-model", "tiny@int4")
    page.fill("#ask-text", "one two three")
    page.click("#ask-send")
    expect(page.locator(".parting")).to_contain_text("\U0001f601")
