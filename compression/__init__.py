"""Full checkpoint + recipe → artifact.

Kept free of imports and side effects: third-party code probes this name,
because Python 3.14 has a standard-library package called ``compression``.
"""
