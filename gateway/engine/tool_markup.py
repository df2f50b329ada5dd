"""How an answer writes the call of a tool: the form of Hermes and Qwen."""

CALL_START = "<tool_call>"
CALL_END = "</tool_call>"
