"""Weight quantizers: one method a file, each a function from weight and scheme to codes."""
