"""Every file that is made from this package, and which of them are not as they should be."""

import json
from pathlib import Path

import yaml

from grafana.alerting.files import rule_files
from grafana.catalogue import dashboards
from grafana.colours import Json
from grafana.metrics_page import metrics_page

ROOT = Path(__file__).parents[1]
"""Of the repository."""

DATASOURCE_UID = "narrowgate-prometheus"
DASHBOARDS, PROVISIONING, RULES = "dashboards", "provisioning", "rules"
METRICS_PAGE = "docs/metrics.md"
DEPLOYED_AT = "/etc/narrowgate/grafana"
"""Where this directory lies for Grafana."""

SCRAPE_INTERVAL = "5s"
"""How often Prometheus asks; Grafana makes ``$__rate_interval`` of it."""


def generated() -> dict[str, str]:
    """Return the text of every generated file, by its path in the repository."""
    return {
        **{
            f"grafana/{DASHBOARDS}/{each.uid}.json": json.dumps(
                each.json(), indent=2, sort_keys=True, ensure_ascii=False
            )
            + "\n"
            for each in dashboards()
        },
        **{f"grafana/{RULES}/{name}": text for name, text in rule_files().items()},
        f"grafana/{PROVISIONING}/datasources/narrowgate.yaml": _yaml(_datasource()),
        f"grafana/{PROVISIONING}/dashboards/narrowgate.yaml": _yaml(_provider()),
        METRICS_PAGE: metrics_page(),
    }


def write(root: Path = ROOT) -> None:
    """Write what differs, and remove dashboards that are no longer made."""
    wanted = generated()
    for name in differences(root):
        path = root / name
        if name in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[name], encoding="utf-8")
        else:
            path.unlink()


def differences(root: Path = ROOT) -> tuple[str, ...]:
    """Return the paths of files that are missing, differ, or should not be there."""
    wanted = generated()
    found = {
        path.relative_to(root).as_posix(): path
        for directory in (DASHBOARDS, PROVISIONING, RULES)
        for path in (root / "grafana" / directory).rglob("*")
        if path.is_file()
    }
    if (page := root / METRICS_PAGE).is_file():
        found[METRICS_PAGE] = page
    return tuple(
        sorted(
            name
            for name in wanted.keys() | found.keys()
            if name not in wanted
            or name not in found
            or found[name].read_text(encoding="utf-8") != wanted[name]
        )
    )


def _datasource() -> Json:
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Narrowgate",
                "uid": DATASOURCE_UID,
                "type": "prometheus",
                "access": "proxy",
                "url": "$PROMETHEUS_URL",
                "isDefault": True,
                "editable": False,
                "jsonData": {"httpMethod": "POST", "timeInterval": SCRAPE_INTERVAL},
            }
        ],
    }


def _provider() -> Json:
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "narrowgate",
                "type": "file",
                "folder": "Narrowgate",
                "folderUid": "narrowgate",
                "disableDeletion": True,
                "allowUiUpdates": False,
                "updateIntervalSeconds": 30,
                "options": {"path": f"{DEPLOYED_AT}/{DASHBOARDS}"},
            }
        ],
    }


def _yaml(content: Json) -> str:
    return "# Written by `python -m grafana`.\n" + yaml.safe_dump(content, sort_keys=False)
