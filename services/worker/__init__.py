"""The worker: one process per accelerator (or CPU) that runs a model for the scheduler.

`service.py` moves messages; `engine.py` executes plans and knows nothing of the bus.
"""
