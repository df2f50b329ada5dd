"""``python -m gateway.engine``: load one model, then serve it until told to stop."""

import argparse
import errno
import gc
import logging
import socket
import sys
import time
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from compression.errors import CompressionError
from gateway.collector import collector_paused
from gateway.engine.lifeline import end_with_parent
from gateway.errors import PortInUse, StartupError
from gateway.telemetry import is_wanted

if TYPE_CHECKING:
    from gateway.engine.sequence import SpanSink
    from gateway.engine.service import EngineService
    from gateway.engine.tokenizer import Tokenizer

logger = logging.getLogger("gateway.engine")

ON_STANDARD_INPUT = Path("-")


def main(arguments: Items[str] | None = None) -> int:
    """Run the engine; return the exit code: 0 after a drain, 2 for a refusal."""
    options = _parser().parse_args(arguments)
    if options.ends_with_parent:
        end_with_parent()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    # It would write a line for each part of what is fetched for a score.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return _serve(options)
    except (CompressionError, StartupError) as error:
        print(f"narrowgate engine: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.engine", description="Serve one model over the OpenAI API."
    )
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        help="directory of the checkpoint; -: its libraries are loaded first, then standard input "
        "tells it in one line, or ends and so does the engine",
    )
    parser.add_argument("--served-model-name", required=True, help="the name clients send")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--threads", type=_positive, help="CPU threads of the model")
    parser.add_argument("--max-model-len", type=_positive, help="tokens, prompt and answer")
    parser.add_argument("--max-num-seqs", type=_positive, help="sequences decoded together")
    parser.add_argument(
        "--max-num-batched-tokens", type=_positive, help="of all sequences in one step"
    )
    parser.add_argument("--kv-cache-memory-bytes", type=_positive, help="of keys and values")
    parser.add_argument(
        "--row-memory-bytes", type=_positive, help="of whole distributions that wait for a score"
    )
    parser.add_argument(
        "--read-in-float32",
        dest="reads_in_float32",
        action="store_true",
        help="read texts in float32, also where another dtype is faster",
    )
    parser.add_argument(
        "--fetch-rows",
        dest="fetches_rows",
        action="store_true",
        help="fetch distributions that engines on this machine keep, where a score names them",
    )
    parser.add_argument("--otlp-endpoint", metavar="URL", help="of a collector of traces")
    parser.add_argument(
        "--no-end-with-parent",
        dest="ends_with_parent",
        action="store_false",
        help="go on when the process that started it has ended",
    )
    parser.add_argument(
        "--no-enable-prefix-caching",
        dest="shares_prefixes",
        action="store_false",
        help="read every prompt from its first token on",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _serve(options: argparse.Namespace) -> int:
    # 1. Take the port, but do not listen yet: a conflict shows before anything long starts.
    listener = _bind(options.host, options.port)
    started = time.monotonic()

    # 2. Load everything. It stays, so the collector need not walk it, neither now nor later.
    with collector_paused():
        # Load torch only now: it takes seconds.
        import gateway.engine.runner  # noqa: F401

        if options.model == ON_STANDARD_INPUT:
            told = sys.stdin.readline().removesuffix("\n")
            if not told:
                return 0
            options.model = Path(told)
        service = _load(options)
        gc.freeze()

    # 3. Serve.
    import uvloop

    from gateway.engine.server import serve

    host, port = listener.getsockname()[:2]
    seconds = time.monotonic() - started
    logger.info("serving %s on %s:%d after %.1f s", options.served_model_name, host, port, seconds)
    uvloop.run(serve(service, listener))
    return 0


def _load(options: argparse.Namespace) -> "EngineService":
    # 1. Load the weights, and beside them whatever else takes time: their packing leaves
    # Python's interpreter free.
    from gateway.engine.runner import load_runner

    with ThreadPoolExecutor(1) as pool:
        tokenizer_to_come = pool.submit(_load_beside, options)
        runner = load_runner(
            options.model,
            threads=options.threads,
            max_model_len=options.max_model_len,
            reads_in_float32=options.reads_in_float32,
        )
        tokenizer = tokenizer_to_come.result()

    # 2. Put the parts together.
    from compression.manifest import read_manifest
    from gateway.engine.kv_memory import fit, free_bytes, page_sizes
    from gateway.engine.loop import EngineLoop
    from gateway.engine.metrics import EngineMetrics
    from gateway.engine.pages import PAGE_TOKENS
    from gateway.engine.scheduler import MAX_NUM_SEQUENCES, TOKEN_BUDGET, Scheduler
    from gateway.engine.service import EngineService, describe
    from gateway.prepared import told_of

    sizes = page_sizes(runner, options.kv_cache_memory_bytes or free_bytes())
    runner = fit(runner, sizes, asked=options.max_model_len)
    max_num_sequences = options.max_num_seqs or MAX_NUM_SEQUENCES
    scheduler = Scheduler(
        max_num_sequences=max_num_sequences,
        token_budget=max(max_num_sequences, options.max_num_batched_tokens or TOKEN_BUDGET),
        sizes=sizes,
        shares_prefixes=options.shares_prefixes,
    )
    spans = _open_spans(options.otlp_endpoint, model=options.served_model_name)
    metrics = EngineMetrics(scheduler, model=options.served_model_name, spans=spans)
    description = describe(runner, served_model_name=options.served_model_name)
    row_bytes = options.row_memory_bytes or 0
    if (manifest := read_manifest(options.model)) is not None:
        description |= told_of(manifest.model_dump(mode="json"), rounds_at_load=True)
    return EngineService(
        description=description
        | {"kv_tokens": sizes.total * PAGE_TOKENS, "row_memory_bytes": row_bytes},
        loop=EngineLoop(runner, scheduler, metrics),
        metrics=metrics,
        tokenizer=tokenizer,
        row_bytes=row_bytes,
        fetches_rows=options.fetches_rows,
    )


def _load_beside(options: argparse.Namespace) -> "Tokenizer":
    """Import what serving takes and return the tokenizer."""
    import uvloop  # noqa: F401

    import gateway.engine.server
    from gateway.engine.tokenizer import load_tokenizer

    if options.fetches_rows:
        # Its import would hold up the first score, and all answers with it.
        import gateway.upstream  # noqa: F401

    return load_tokenizer(options.model)


def _open_spans(endpoint: str | None, *, model: str) -> "SpanSink | None":
    """Return what sends spans, if they are wanted.

    Raises:
        SettingsError: there is an endpoint, but not the libraries.
    """
    if not is_wanted(endpoint):
        return None
    from gateway.engine.spans import SequenceSpans

    return SequenceSpans(endpoint, model=model)


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, not yet listening.

    Raises:
        PortInUse: another process listens there.
        StartupError: the address cannot be used at all.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(host, port) from None
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


if __name__ == "__main__":
    sys.exit(main())
