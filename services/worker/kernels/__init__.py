"""Triton kernels of the GPU worker: norms, rotary + KV write, gated activation, attention, sampling, mixture of
experts.

Each module holds kernels and the plain functions that launch them. They know tensors only: no model, no plan, no bus.
Called by the worker's layers, attention backend and sampler; `reference/` says in torch what each computes. Launch
shapes come from tables and device properties: nothing is tuned, synchronized or allocated behind the caller's back, so
that every function may run inside a CUDA graph capture unless its docstring says otherwise.
"""
