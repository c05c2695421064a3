"""Encoders: from pixels to the embeddings that a language model takes in place of tokens.

One file per architecture; `registry.py` maps families to encoders and loads them.
"""
