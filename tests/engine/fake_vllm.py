"""A server that takes vLLM's command line and answers with its prompt log-probabilities."""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

QUOTED = "WARNING ulimit is low: errors like `OSError: [Errno 24] Too many open files` may come"
KERNELS = {"int8-rows": "CPUInt8ScaledMMLinearKernel"}
OPTIONS = (
    "--port --max-model-len --max-num-seqs --max-num-batched-tokens --max-logprobs --enforce-eager "
    "--kv-cache-memory-bytes"
)
FACTS = {
    "version": "9.9",
    "has_command": False,
    "device": "cpu",
    "capability": None,
    "options": dict.fromkeys(OPTIONS.split()),
    "flags": ["--enforce-eager"],
    "num_devices": 0,
    "has_tracing": False,
    "architectures": ["LlamaForCausalLM"],
    "has_bitsandbytes_plugin": False,
    "cpu_features": [],
    "head_sizes": [64],
    "int8_error": 0.002,
    "fp8_weights": None,
    "has_int4_kernel": True,
}
FAILURE = "(Worker pid=1) ERROR 11-22 12:00:00 [core.py:1] AttributeError: no 'gemm'"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a look at its health, or what it runs."""
        info = {"served_model_name": "reader", "version": "9.9", "kernels": KERNELS}
        self._reply(200, info if self.path == "/engine/info" else {})

    def do_POST(self) -> None:
        """Say that each token was likely, and that token 0 was not."""
        length = int(self.headers["content-length"])
        fields = json.loads(self.rfile.read(length))
        if "--fail" in sys.argv:
            print(FAILURE, file=sys.stderr, flush=True)
            self._reply(500, {"error": {"message": "see the log"}})
            return
        told: list[dict[str, Any] | None] = [None]
        for token_id in fields["prompt"][1:]:
            likely, other = {"logprob": -0.5, "rank": 1}, {"logprob": -3.0, "rank": 2}
            told.append({str(token_id): likely, "0": other})
        self._reply(200, {"choices": [{"text": "x", "prompt_logprobs": told}]})

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""

    def _reply(self, status: int, fields: dict[str, Any]) -> None:
        body = json.dumps(fields).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Tell what it can do, or serve."""
    if "narrowgate_vllm.probe" in sys.argv:
        print(f"narrowgate-vllm-probe:{json.dumps(FACTS)}")
        return
    port = next(word for word in sys.argv if word.startswith("--port=")).partition("=")[2]
    print(QUOTED, file=sys.stderr, flush=True)
    HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
