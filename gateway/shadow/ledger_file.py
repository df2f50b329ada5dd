"""The ledger's SQLite file: its tables, and every statement that is sent to them."""

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import StartupError
from gateway.shadow.ledger_entry import LedgerEntry, SliceAggregate

_VERSION = 1
_APPLICATION = 0x4E475731
"""Marks the file as ours; nobody else's is ever touched."""
_BUSY_TIMEOUT_S = 5.0

_TABLES = """
CREATE TABLE sources (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL,
    variant TEXT NOT NULL,
    recipe_digest TEXT NOT NULL,
    reference_digest TEXT NOT NULL,
    estimator TEXT NOT NULL,
    UNIQUE (model, variant, recipe_digest, reference_digest, estimator)
);
CREATE TABLE slices (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    source INTEGER NOT NULL REFERENCES sources,
    request_id TEXT NOT NULL,
    max_divergence REAL,
    first_divergence INTEGER
);
CREATE INDEX requests_by_time ON requests (time);
CREATE TABLE scores (
    request INTEGER NOT NULL REFERENCES requests,
    slice INTEGER NOT NULL REFERENCES slices,
    tokens INTEGER NOT NULL,
    divergence REAL,
    agreeing INTEGER NOT NULL,
    delta_nll REAL,
    PRIMARY KEY (request, slice)
) WITHOUT ROWID;
CREATE TABLE monitors (name TEXT PRIMARY KEY, state TEXT NOT NULL);
"""
_LADDERS = "CREATE TABLE IF NOT EXISTS ladders (model TEXT PRIMARY KEY, state TEXT NOT NULL)"
"""Not among the others, because files from before it hold evidence worth keeping."""

# Divergence and delta NLL are NULL where they were no numbers.

_NEW_SOURCE = "INSERT OR IGNORE INTO sources VALUES (NULL, ?, ?, ?, ?, ?)"
_NEW_REQUEST = """
INSERT INTO requests SELECT NULL, ?, id, ?, ?, ? FROM sources
WHERE model = ? AND variant = ? AND recipe_digest = ? AND reference_digest = ? AND estimator = ?
"""
_NEW_SLICE = "INSERT OR IGNORE INTO slices VALUES (NULL, ?)"
_NEW_SCORE = "INSERT INTO scores SELECT ?, id, ?, ?, ?, ? FROM slices WHERE name = ?"

_AGGREGATE = """
WITH figures AS (
    SELECT requests.source, scores.slice,
           count(*) AS num_requests,
           sum(tokens) AS num_tokens,
           sum(divergence IS NULL) AS num_broken,
           avg(divergence) AS mean,
           avg(divergence * divergence) AS square,
           sum(divergence * tokens) / sum(iif(divergence IS NULL, 0, tokens)) AS token_mean,
           max(max_divergence) AS largest,
           sum(agreeing) * 1.0 / sum(tokens) AS agreement,
           sum(delta_nll) / sum(iif(delta_nll IS NULL, 0, tokens)) AS delta_nll,
           min(time) AS first,
           max(time) AS last
    FROM requests JOIN scores ON scores.request = requests.id
    WHERE time >= :since AND time < :until AND requests.source IN (
        SELECT id FROM sources
        WHERE (:model IS NULL OR model = :model) AND (:variant IS NULL OR variant = :variant)
    )
    GROUP BY requests.source, scores.slice
)
SELECT sources.*, slices.name AS name, figures.*
FROM figures JOIN sources ON sources.id = source JOIN slices ON slices.id = slice
ORDER BY model, variant, estimator, source, mean DESC
"""


class NewerFormat(sqlite3.OperationalError):
    """A program newer than this one wrote the file; it is sound, and is left alone."""


@dataclass(frozen=True, slots=True)
class Window:
    """What to aggregate: times in seconds since the epoch, and all models unless one is named."""

    since: float = 0.0
    until: float = math.inf
    model: str | None = None
    variant: str | None = None


class LedgerFile:
    """One open file, for one thread at a time.

    Raises:
        sqlite3.DatabaseError: any method, if the file is damaged; OperationalError, if it is
            locked or cannot grow, belongs to another program, or is of a newer one (NewerFormat).
    """

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        address = path.absolute().as_uri()
        self._connection = _connect(f"{address}?mode=ro" if is_read_only else address)
        try:
            if is_read_only:
                self._require_ledger()
            else:
                self._prepare()
        except sqlite3.Error:
            self._connection.close()
            raise

    def write(self, entries: Sequence[LedgerEntry]) -> int:
        """Add entries, all or none; return how many."""
        with self._transaction() as cursor:
            for entry in entries:
                _insert(cursor, entry)
        return len(entries)

    def forget(self, *, before: float, max_rows: int) -> None:
        """Drop requests older than a time, and the oldest beyond a number of them."""
        with self._transaction() as cursor:
            cursor.execute(
                "DELETE FROM requests WHERE time < ? OR id <= (SELECT max(id) FROM requests) - ?",
                (before, max_rows),
            )
            # Requests come in order, so their ids do too.
            cursor.execute(
                "DELETE FROM scores WHERE request < "
                "ifnull((SELECT min(id) FROM requests), 9223372036854775807)"
            )

    def aggregates(self, window: Window) -> list[SliceAggregate]:
        """Return the figures of each slice, the largest divergence of a variant first."""
        parameters = {
            "since": window.since,
            "until": window.until,
            "model": window.model,
            "variant": window.variant,
        }
        return [_aggregate(row) for row in self._connection.execute(_AGGREGATE, parameters)]

    def keep_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what monitors know, by their names."""
        rows = [(name, json.dumps(state)) for name, state in states.items()]
        with self._transaction() as cursor:
            cursor.executemany("INSERT OR REPLACE INTO monitors VALUES (?, ?)", rows)

    def states(self) -> dict[str, Any]:
        """Return what monitors knew."""
        return self._read_states("SELECT name, state FROM monitors")

    def keep_ladder(self, model: str, state: Mapping[str, Any]) -> None:
        """Keep where the ladder of a model stands."""
        with self._transaction() as cursor:
            row = (model, json.dumps(state))
            cursor.execute("INSERT OR REPLACE INTO ladders VALUES (?, ?)", row)

    def ladders(self) -> dict[str, Any]:
        """Return where ladders stood, by model."""
        return self._read_states("SELECT model AS name, state FROM ladders")

    def forget_ladders(self, *, but: Iterable[str]) -> None:
        """Drop the ladders of all other models."""
        kept = json.dumps(sorted(but))
        with self._transaction() as cursor:
            cursor.execute(
                "DELETE FROM ladders WHERE model NOT IN (SELECT value FROM json_each(?))", (kept,)
            )

    def close(self) -> None:
        """Close the file; what was written is in it."""
        self._connection.close()

    def _read_states(self, query: str) -> dict[str, Any]:
        try:
            return {
                row["name"]: json.loads(row["state"]) for row in self._connection.execute(query)
            }
        except ValueError as error:
            raise sqlite3.DatabaseError(f"a state is no JSON: {error}") from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with self._connection, closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            yield cursor

    def _prepare(self) -> None:
        (num_tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if num_tables:
            self._require_ledger()
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        if not num_tables:
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {_TABLES} PRAGMA application_id = {_APPLICATION}; "
                f"PRAGMA user_version = {_VERSION}; COMMIT;"
            )
        self._connection.execute(_LADDERS)

    def _require_ledger(self) -> None:
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        if application != _APPLICATION:
            raise sqlite3.OperationalError("it is the database of another program")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise NewerFormat(
                f"it has format {version}, and this program knows formats up to {_VERSION}: "
                "use the program that wrote it, or a newer one"
            )
        if version != _VERSION:
            raise sqlite3.DatabaseError(f"it has format {version}, this program {_VERSION}")


def read_aggregates(path: Path, window: Window) -> list[SliceAggregate]:
    """Return the figures of each slice, beside the process that writes the file.

    Raises:
        StartupError: there is no such file, or it is no sound ledger.
    """
    if not path.is_file():
        raise StartupError(f"no ledger {str(path)!r}: name the file that the service writes")
    try:
        with closing(LedgerFile(path, is_read_only=True)) as file:
            return file.aggregates(window)
    except sqlite3.Error as error:
        raise StartupError(f"the ledger {str(path)!r} cannot be read: {error}") from None


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=_BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None
    )
    connection.row_factory = sqlite3.Row
    return connection


def _insert(cursor: sqlite3.Cursor, entry: LedgerEntry) -> None:
    source = (
        entry.model,
        entry.variant,
        entry.recipe_digest,
        entry.reference_digest,
        entry.estimator,
    )
    cursor.execute(_NEW_SOURCE, source)
    numbers = (entry.time, entry.request_id, _finite(entry.max_divergence), entry.first_divergence)
    cursor.execute(_NEW_REQUEST, (*numbers, *source))
    request = cursor.lastrowid
    cursor.executemany(_NEW_SLICE, [(name,) for name in entry.slices])
    cursor.executemany(
        _NEW_SCORE,
        [
            (
                request,
                score.num_tokens,
                _finite(score.divergence),
                score.num_agreeing,
                _finite(score.delta_nll),
                name,
            )
            for name, score in entry.slices.items()
        ],
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _aggregate(row: sqlite3.Row) -> SliceAggregate:
    num, mean = row["num_requests"] - row["num_broken"], row["mean"]
    error = None
    if num > 1:
        error = math.sqrt(max(0.0, row["square"] - mean**2) / (num - 1))
    return SliceAggregate(
        model=row["model"],
        variant=row["variant"],
        recipe_digest=row["recipe_digest"],
        reference_digest=row["reference_digest"],
        estimator=row["estimator"],
        slice=row["name"],
        num_requests=row["num_requests"],
        num_tokens=row["num_tokens"],
        num_broken=row["num_broken"],
        mean_divergence=mean,
        standard_error=error,
        token_divergence=row["token_mean"],
        max_divergence=row["largest"],
        agreement=row["agreement"],
        delta_nll=row["delta_nll"],
        first=row["first"],
        last=row["last"],
    )
