"""Structured pruning under grouped-query attention: a plain checkpoint to a plain smaller one.

``form`` and ``shape`` decide from the config alone what stays and as which family it is written;
``prune`` carries it out, layer by layer.
"""
