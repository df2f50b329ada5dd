"""What the gateway costs and does in front of the real vLLM (``python -m benchmarks.vllm``)."""
