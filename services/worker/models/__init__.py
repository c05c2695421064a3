"""Model code: from token ids and positions to hidden states and logits, for one tensor-parallel rank.

One file per architecture family; `registry.py` maps Hugging Face architecture names to builders.
"""
