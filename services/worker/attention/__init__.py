"""Attention over the paged KV pool, behind one Protocol (`backend.py`); `torch_backend.py` is the reference."""
