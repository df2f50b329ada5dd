"""Other compressors at work on the same checkpoint, each in an environment of its own."""
