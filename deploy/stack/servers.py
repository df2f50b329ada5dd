"""Which servers make the stack: their commands, ports and ready endpoints."""

import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.stack.layout import Layout
from gateway.errors import SettingsError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """Where the servers listen, on the loopback address."""

    gateway: int
    prometheus: int
    alertmanager: int


@dataclass(frozen=True)
class Server:
    """One program of the stack; without ``log`` its lines go to the terminal."""

    name: str
    command: tuple[str, ...]
    port: int
    ready_path: str
    log: Path | None = None

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"http://{LOOPBACK}:{self.port}"


def make_servers(ports: Ports, layout: Layout, serve_flags: Sequence[str]) -> tuple[Server, ...]:
    """Return the gateway, Prometheus and Alertmanager, in this order.

    Raises:
        SettingsError: a program is not installed.
    """
    return (
        _gateway(ports.gateway, serve_flags),
        _prometheus(ports.prometheus, layout),
        _alertmanager(ports.alertmanager, layout),
    )


def check_ports(servers: Sequence[Server]) -> None:
    """Refuse ports that something else listens on, before anything is started.

    Raises:
        SettingsError: names the server, its port and the remedy.
    """
    taken: set[int] = set()
    for server in servers:
        if server.port in taken or not _is_free(server.port):
            flag = "port" if server.name == "gateway" else f"{server.name}-port"
            raise SettingsError(
                f"port {server.port} for {server.name} is taken: pass another --{flag}, with make "
                f"{flag.upper().replace('-', '_')}=N"
            )
        taken.add(server.port)


def _gateway(port: int, serve_flags: Sequence[str]) -> Server:
    command = (sys.executable, "-m", "gateway", "serve", "--host", LOOPBACK, "--port", str(port))
    return Server("gateway", (*command, *serve_flags), port, "/ready")


def _prometheus(port: int, layout: Layout) -> Server:
    command = (
        _program("prometheus", ["prometheus"]),
        f"--config.file={layout.prometheus_config}",
        f"--storage.tsdb.path={layout.data('prometheus')}",
        "--storage.tsdb.retention.time=7d",
        "--enable-feature=exemplar-storage,expand-external-labels",
        f"--web.listen-address={LOOPBACK}:{port}",
        f"--web.external-url=http://{LOOPBACK}:{port}",
    )
    return Server("prometheus", command, port, "/-/ready", layout.log("prometheus"))


def _alertmanager(port: int, layout: Layout) -> Server:
    command = (
        _program("prometheus-alertmanager", ["prometheus-alertmanager", "alertmanager"]),
        f"--config.file={layout.alertmanager_config}",
        f"--storage.path={layout.data('alertmanager')}",
        "--cluster.listen-address=",
        f"--web.listen-address={LOOPBACK}:{port}",
        f"--web.external-url=http://{LOOPBACK}:{port}",
    )
    return Server("alertmanager", command, port, "/-/ready", layout.log("alertmanager"))


def _program(package: str, names: Sequence[str]) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    raise SettingsError(
        f"the program {names[0]!r} is not installed: run 'apt-get install {package}'"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
