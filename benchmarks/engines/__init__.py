"""The embedded engine beside the CPU engines people use (``python -m benchmarks.engines``)."""
