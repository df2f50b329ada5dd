"""The page's files over HTTP: open to all, strict in what a browser may do with them."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.page.assets import POLICY, load_assets
from tests.gateway.harness import Gateway

KEYS = [{"name": "boss", "key": "sk-boss", "admin": True}, {"name": "user", "key": "sk-user"}]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway that asks for keys."""
    gateway = Gateway(tmp_path_factory.mktemp("static"), {"api_keys": KEYS}, {})
    gateway.wait_ready()
    yield gateway
    gateway.close()


def get(gateway: Gateway, path: str, **headers: str) -> httpx.Response:
    """Return the reply to a GET."""
    return gateway.http.get(
        path, headers={name.replace("_", "-"): headers[name] for name in headers}
    )


def test_every_file_is_served_without_a_key(keyed: Gateway) -> None:
    """Page and files come with their types, the policy, and no sniffing."""
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg"}
    names = ["", *(f"/{name}" for name in load_assets())]
    assert len(names) > 10
    for name in names:
        reply = get(keyed, f"/dashboard{name}")
        assert reply.status_code == 200
        ending = name.rpartition(".")[2] or "html"
        assert reply.headers["content-type"].startswith(types[ending])
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.content


def test_the_policy_allows_nothing_from_elsewhere() -> None:
    """Nothing inline, nothing evaluated, nothing of other origins, no frame around."""
    assert "unsafe" not in POLICY
    assert "*" not in POLICY
    assert "http" not in POLICY
    for part in ("default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"):
        assert part in POLICY


def test_the_files_name_no_other_origin() -> None:
    """No file asks for anything elsewhere; the name of SVG is a name."""
    for name, asset in load_assets().items():
        text = asset.content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, name
        assert "https://" not in text, name
        assert "innerHTML" not in text, name
        assert " style=" not in text, name


def test_an_unchanged_file_is_not_sent_again(keyed: Gateway) -> None:
    """A matching etag gets 304 without a body; a stale one the file."""
    first = get(keyed, "/dashboard/main.js")
    again = get(keyed, "/dashboard/main.js", if_none_match=first.headers["etag"])
    assert (again.status_code, again.content) == (304, b"")
    assert get(keyed, "/dashboard/main.js", if_none_match='"old"').content == first.content
    assert first.headers["cache-control"] == "no-cache"


def test_head_has_headers_alone(keyed: Gateway) -> None:
    """HEAD works on the page as on every GET."""
    reply = keyed.http.head("/dashboard")
    assert (reply.status_code, reply.content) == (200, b"")
    assert int(reply.headers["content-length"]) == len(get(keyed, "/dashboard").content)


@pytest.mark.parametrize(
    "path",
    [
        "/dashboard/absent.js",
        "/dashboard/assets.py",
        "/dashboard/__init__.py",
        "/dashboard/..%2fsettings.py",
        "/dashboard/%2e%2e/settings.py",
        "/dashboard/..%5c..%5csettings.py",
        "/dashboard/%00",
        "/dashboard/",
        "/dashboard/page.css/x",
    ],
)
def test_nothing_else_is_served(keyed: Gateway, path: str) -> None:
    """Other names are 404, whatever way they point."""
    raw = httpx.URL(keyed.url).copy_with(raw_path=path.encode())
    reply = keyed.http.get(raw)
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("path", ["/admin/live", "/admin/models", "/dashboards", "/dashboard-x"])
def test_what_the_page_shows_needs_the_key(keyed: Gateway, path: str) -> None:
    """The files are open, the figures are not; names that begin alike are not the page."""
    assert get(keyed, path).status_code == 401
    if path.startswith("/admin"):
        assert get(keyed, path, authorization="Bearer sk-user").status_code == 403
        assert get(keyed, path, authorization="Bearer sk-boss").status_code == 200


def test_the_package_has_all_files() -> None:
    """Whatever lies in the directory is loaded, so that none is forgotten."""
    directory = Path(__file__).parents[3] / "gateway" / "page"
    found = {
        file.name for file in directory.iterdir() if file.suffix in {".js", ".css", ".html", ".svg"}
    }
    assert found == set(load_assets())
