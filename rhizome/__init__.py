"""Rhizome: LLM and VLM serving as independent services over NATS."""
