"""The service: one OpenAI-compatible address in front of engines that are processes."""
