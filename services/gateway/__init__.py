"""The HTTP gateway: OpenAI-compatible and native routes in front of the bus."""
