"""The page in a browser: what an operator does, with mouse and keys, by day and by night."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.gateway.harness import Gateway
from tests.gateway.page.conftest import KEY, OpenView, chat


def act(page: Page, name: str) -> None:
    """Press one of a variant's buttons and say yes."""
    page.get_by_role("button", name=name, exact=True).click()
    page.locator("#confirm-yes").click()


def ask_both(page: Page, model: str = "tiny@int4") -> None:
    """Ask a question and wait for both answers."""
    page.select_option("#ask-model", model)
    page.fill("#ask-text", "one two three")
    page.click("#ask-send")
    page.wait_for_selector(".totals")


def begin_with(gateway: Gateway, variant: str) -> None:
    """Have one variant of the ladder loaded and active, and the other one stopped."""
    other = {"int4": "int8", "int8": "int4"}[variant]
    gateway.http.post(f"/admin/models/tiny@{variant}/activate").raise_for_status()
    gateway.http.post(f"/admin/models/tiny@{other}/unload").raise_for_status()


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    width: int = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return width


def test_the_page_loads_and_says_what_there_is(view: OpenView) -> None:
    """Every part has its figures; the browser has nothing to complain of, nobody else is asked."""
    page = view().page
    expect(page.locator("#service")).to_contain_text("ready")
    expect(page.locator(".answers .card")).to_have_count(3)
    expect(page.locator(".tile")).to_have_count(6)
    expect(page.locator(".rung")).to_have_text([re.compile("int4"), "int8", "full"])
    expect(page.locator(".rung[aria-current=step]")).to_contain_text("serves")
    expect(page.locator(".variant").first).to_contain_text("int4-g32-asym")
    expect(page.locator(".variant").first).to_contain_text("1 kB of 4 kB uncompressed (25 %)")
    expect(page.locator("#events li").last).to_be_attached()


def test_a_wrong_key_is_told_and_a_right_one_opens(view: OpenView) -> None:
    """Without a key nothing is shown but the question for it; the tab remembers it."""
    opened = view(key="")
    page = opened.page
    expect(page.locator("#gate-why")).to_contain_text("This service needs an API key")
    expect(page.locator("#figures")).to_be_hidden()
    page.fill("#key", "sk-wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#gate-why")).to_contain_text("The API key is not known here")
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    opened.wait_figures()
    expect(page.locator("#gate")).to_be_hidden()
    page.reload()
    opened.wait_figures()
    page.click("#forget")
    expect(page.locator("#gate")).to_be_visible()
    # A browser notes each refusal by itself; nothing else may be there.
    refused = [each for each in opened.complaints if "status of 401" in each]
    assert opened.complaints == refused
    opened.complaints.clear()


def test_tiles_move_under_traffic(view: OpenView, served: Gateway) -> None:
    """What clients do is seen within a few seconds, in numbers and in the line below."""
    page = view().page
    page.get_by_role("radio", name="10 s").check()
    tokens = page.locator(".tile", has_text="Tokens generated")
    for _ in range(5):
        chat(served, pace_s=0.01)
    expect(tokens.locator(".value")).not_to_have_text("0 /s")
    expect(page.locator(".tile", has_text="Between tokens").locator(".value")).to_contain_text("ms")
    expect(page.locator(".tile", has_text="First token").locator(".below")).to_contain_text("p95")
    expect(tokens.locator("polyline")).not_to_have_count(0)
    expect(page.locator(".answer").first).to_contain_text("tokens/s")
    expect(page.locator("[data-live='tiny@int4']")).to_contain_text("requests/s")


def test_verdicts_have_words_and_bands(view: OpenView, served: Gateway) -> None:
    """A slice tells its state, mean, band, tolerance and count; drift is not a colour alone."""
    page = view().page
    rows = page.locator(".slices tbody tr")
    expect(rows.first).to_contain_text("all requests")
    expect(rows.first).to_contain_text("0.02")
    expect(rows.first.locator("rect.band")).to_be_visible()
    expect(page.locator(".slices .chip").first).to_contain_text("drift")
    told = served.http.get("/admin/fidelity").json()["data"]
    alarm = next(each for each in told if each["id"] == "tiny@int4")["alarms"]["all"]
    assert alarm["n"] >= 8
    assert alarm["mean"] > 0.02
    expect(page.locator(".answers")).to_contain_text("tiny@int4, all requests")
    expect(page.locator("#fidelity")).to_contain_text("at most one false alarm")
    expect(page.locator("#fidelity")).to_contain_text("Noise floor, the full model against itself")


def test_variants_are_loaded_swapped_and_unloaded(view: OpenView, served: Gateway) -> None:
    """Each asks first, shows the new state, and says in words why another is not allowed now."""
    begin_with(served, "int4")
    page = view().page
    load = page.get_by_role("button", name="Load tiny@int8", exact=True)
    load.click()
    page.get_by_role("button", name="Cancel").click()
    expect(load).to_be_enabled()
    act(page, "Load tiny@int8")
    row = page.locator(".variant", has=page.get_by_role("heading", name="int8"))
    expect(row).to_contain_text("Load: done.")
    page.get_by_role("button", name="Load tiny@int8: not now, it is loaded").click(force=True)
    expect(row).to_contain_text("Load: not now, it is loaded.")
    act(page, "Activate tiny@int8")
    expect(page.locator(".rung[aria-current=step]")).to_contain_text("int8")
    expect(page.locator("#events")).to_contain_text("swap from int4 to int8 is done")
    act(page, "Activate tiny@int4")
    expect(page.locator(".rung[aria-current=step]")).to_contain_text("int4")
    expect(row.locator(".chip").first).to_contain_text("stopped")
    act(page, "Load tiny@int8")
    expect(row.locator(".chip").first).to_contain_text("ready")
    act(page, "Unload tiny@int8")
    expect(row).to_contain_text("Unload: done.")
    expect(row.locator(".chip").first).to_contain_text("stopped")


def test_a_load_that_fails_says_why(view: OpenView) -> None:
    """The service's own words stand beside the button, and nothing else is disturbed."""
    opened = view()
    act(opened.page, "Load broken@int4")
    row = opened.page.get_by_role("article", name="broken").locator(".variant")
    expect(row.locator(".bad")).to_contain_text("name one that exists")
    expect(row.locator(".chip").first).to_contain_text("failed")
    assert all("status of 503" in each for each in opened.complaints)
    opened.complaints.clear()


def test_both_answers_side_by_side(view: OpenView) -> None:
    """Tokens are coloured by their divergence, the first one is marked, values come on demand."""
    page = view().page
    ask_both(page)
    tokens = page.locator(".tokens [role=option]")
    expect(tokens).to_have_count(4)
    expect(page.locator(".tokens .first")).to_have_count(1)
    expect(tokens.nth(2)).to_have_class(re.compile("kl-[56].* first differs"))
    levels = {tokens.nth(place).get_attribute("class") for place in range(4)}
    assert len(levels) > 1
    tokens.nth(0).hover()
    expect(page.locator("#readout")).to_contain_text("both find the same token likeliest")
    tokens.nth(0).focus()
    for key in ("ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator("#readout")).to_contain_text("the first divergence")
    expect(page.locator(".totals")).to_contain_text("First divergence")
    expect(page.locator(".totals")).to_contain_text("token 3")
    expect(page.locator(".answer-text")).to_have_text("aaa aab aac aad")


def test_a_question_that_is_refused_gets_words(view: OpenView) -> None:
    """The full model against itself is refused in the service's words."""
    opened = view()
    page = opened.page
    page.select_option("#ask-model", "tiny@full")
    page.fill("#ask-text", "hello")
    page.click("#ask-send")
    expect(page.locator("#reply .bad")).to_contain_text("name a compressed variant")
    assert all("status of 400" in each for each in opened.complaints)
    opened.complaints.clear()


def test_a_chat_with_one_model(view: OpenView) -> None:
    """It streams, remembers its turns, and tells who answered and how fast."""
    page = view().page
    page.get_by_role("radio", name="One model").check()
    for _ in range(2):
        page.fill("#ask-text", "one two three")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#ask-stop")).to_be_hidden()
        expect(page.locator("#ask-text")).to_have_value("")
    expect(page.locator(".turn.theirs")).to_have_count(2)
    expect(page.locator(".turn.theirs").last).to_have_text("aaa aab aac aad")
    expect(page.locator("#reply .num").last).to_contain_text("tiny@int4 · first token")
    page.click("#ask-clear")
    expect(page.locator(".turn")).to_have_count(0)


def test_keys_alone_do_everything(view: OpenView, served: Gateway) -> None:
    """Tab reaches every control in order, the focus is seen, dialogs take and give it back."""
    begin_with(served, "int4")
    page = view().page
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    seen: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, style = page.evaluate(
            """() => { const at = document.activeElement;
              const ring = at.closest(".segments label") ?? at;
              return [at.id || at.dataset.focus || at.name || at.tagName,
                      getComputedStyle(ring).outlineStyle]; }"""
        )
        if name == "BODY":
            break
        assert style != "none", name
        seen.append(name)
    for wanted in ("theme", "window", "tiny@int8 load", "tiny@int4 unload", "watched", "events"):
        assert wanted in seen or wanted == "watched", wanted
    for wanted in ("mode", "ask-model", "ask-tokens", "ask-temperature", "ask-text", "ask-send"):
        assert wanted in seen, wanted
    button = page.locator("[data-focus='quiet@int4 unload']")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#confirm")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#confirm")).to_be_hidden()
    expect(button).to_be_focused()
    # What is repainted keeps the focus where it was.
    page.locator("[data-focus='tiny@int8 load']").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".variant", has_text="Load: done.").first).to_be_visible()
    expect(page.locator("[data-focus='tiny@int8 load']")).to_be_focused()


@pytest.mark.parametrize("width", [360, 768, 1920])
def test_nothing_is_wider_than_the_window(view: OpenView, width: int) -> None:
    """From a phone to a wide screen nothing scrolls sideways, answers included."""
    page = view(width=width).page
    assert overflow(page) <= 0
    ask_both(page)
    assert overflow(page) <= 0


def test_light_and_dark(view: OpenView) -> None:
    """The system's theme is followed, a choice overrides it, and is kept."""
    opened = view(scheme="dark")
    page = opened.page

    def brightness() -> int:
        red: int = page.evaluate(
            "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
        )
        return red

    assert brightness() < 60
    page.select_option("#theme", "light")
    assert brightness() > 200
    page.reload()
    opened.wait_figures()
    assert brightness() > 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(view: OpenView, scheme: str) -> None:
    """Names, roles, structure and contrast hold, with answers shown, in both themes."""
    page = view(scheme=scheme).page
    ask_both(page)
    found = Axe().run(page)
    assert found.response["violations"] == [], found.generate_report()


def test_scoring_is_switched_on_where_nothing_is_scored(view: OpenView, served: Gateway) -> None:
    """Where no variant is watched the page says what to do, and does it."""
    opened = view()
    page = opened.page
    page.route(
        "**/admin/fidelity*",
        lambda route: route.fulfill(
            json={
                "time": 0,
                "promise": "",
                "data": [
                    {
                        "model": "quiet",
                        "variant": "int4",
                        "id": "quiet@int4",
                        "active": True,
                        "verdict": None,
                        "scored": 0,
                        "worst_slice": None,
                        "slices": [],
                    }
                ],
                "noise_floor": {},
                "ladders": {},
                "ledger": None,
            }
        ),
    )
    expect(page.locator("#fidelity .empty")).to_contain_text("Nothing is scored.")
    page.get_by_role("button", name="Score 10 % of requests").click()
    expect(page.locator("#fidelity")).to_contain_text("10 % of requests are drawn")
    assert served.http.get("/admin/shadow").json()["models"]["quiet"]["rate"] == 0.1
    served.http.post("/admin/shadow", json={"model": "quiet", "rate": 0})
