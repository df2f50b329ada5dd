"""Checks of the place where models and artifacts are kept."""

import shutil
import tempfile
from pathlib import Path

from gateway.doctor.finding import GB, Finding

_LEAST_BYTES, _FEW_BYTES = 0.5 * GB, 5 * GB


def check_storage(home: Path) -> Finding:
    """Return whether ``home``, which need not be there yet, can be written and has room."""
    place = next(path for path in (home, *home.parents) if path.exists())
    remedy = "free it, or set NARROWGATE_HOME to another place"
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding("storage", "fail", f"{home} cannot be written: {reason}", remedy)
    message = f"{home} has {free / GB:.1f} GB free"
    if free < _LEAST_BYTES:
        return Finding("storage", "fail", f"{message}: too little for any artifact", remedy)
    if free < _FEW_BYTES:
        return Finding("storage", "warn", f"{message}: enough for small models only", remedy)
    return Finding("storage", "ok", message)
