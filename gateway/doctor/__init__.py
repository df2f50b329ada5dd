"""``narrowgate doctor``: what will be slow or will fail on this machine, and what to do."""
