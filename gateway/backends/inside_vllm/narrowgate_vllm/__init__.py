"""What runs inside a vLLM that the gateway has started: its plugin, found through ``PYTHONPATH``.

Nothing of Narrowgate is installed beside vLLM, and nothing here imports the rest of Narrowgate:
vLLM has an interpreter and libraries of its own.
"""
