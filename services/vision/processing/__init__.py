"""From decoded images to the pixels that a family's encoder takes, and how many tokens they become. No torch.

`registry.py` maps families to processors; `prepared.py` is the contract with the encoders.
"""
