"""The worker's CPU kernels, compiled by numba: attention of decode rows, rotary with KV write, norms, activation.

They know arrays and nothing of rows, requests or models; fp32 only. `attention/numba_backend.py` and
`models/numba_ops.py` call them, and only where numba is installed.
"""
