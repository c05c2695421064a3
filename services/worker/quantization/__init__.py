"""Checkpoints whose weights take fewer bits: every format is read into one of few internal forms.

`scheme.py` chooses by config.json what reads the products of a checkpoint; `weights.py` has the forms. Formats know
names and bits, no devices' kernels; what computes with a form is in `models/` behind `LayerOps.product`.
"""
