"""The embedded language: programs of prompts, generations and Python control flow.

`rhizome` re-exports the public names lazily. This package knows no service and nothing of `shared`: it reaches a
server over HTTP or NATS, or any other API through a backend.
"""
