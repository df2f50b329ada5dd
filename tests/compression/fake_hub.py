"""A model hub on a local port: real HTTP, one repository of files, and the hub's own refusals."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "org/tiny"
GATED = "org/gated"


class FakeHub(ThreadingHTTPServer):
    """Serves the files below ``root`` as ``REPOSITORY``, branch ``main``.

    While ``may_send`` is clear, files are promised but their content does not come.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fetched: list[str] = []
        self.may_send = threading.Event()
        self.may_send.set()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        """Return the endpoint for ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent when a client leaves in the middle of a file."""


class Handler(BaseHTTPRequestHandler):
    """Answers the four requests that a snapshot needs."""

    server: FakeHub

    def do_GET(self) -> None:
        """Answer a listing or a file."""
        match unquote(urlsplit(self.path).path).strip("/").split("/"):
            case ["api", "models", *owner_name, "revision", revision]:
                self._answer_revision("/".join(owner_name), revision)
            case ["api", "models", *_, "tree", _]:
                self._send_json(200, self._tree())
            case ["api", "datasets", *owner_name]:
                self._answer_revision("/".join(owner_name), "main")
            case [_, _, "resolve", _, *path] | ["datasets", _, _, "resolve", _, *path]:
                self._send_file("/".join(path))
            case _:
                self._refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Stay silent."""

    def _answer_revision(self, repository: str, revision: str) -> None:
        if repository == GATED:
            self._refuse(403, "GatedRepo")
        elif repository != REPOSITORY:
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            siblings = [{"rfilename": file["path"]} for file in self._tree()]
            self._send_json(200, {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings})

    def _tree(self) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": path.relative_to(self.server.root).as_posix(),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest(),
            }
            for path in sorted(self.server.root.rglob("*"))
            if path.is_file()
        ]

    def _send_file(self, name: str) -> None:
        content = (self.server.root / name).read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.server.may_send.wait(30)
            self.server.fetched.append(name)
            self.wfile.write(content)

    def _send_json(self, status: int, content: object) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(encoded)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve_hub(root: Path) -> Iterator[FakeHub]:
    """Serve ``root`` from a thread until the block ends."""
    with FakeHub(root) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
