"""Weights from safetensors files into memory. Needs torch: only services that have a model import it."""
