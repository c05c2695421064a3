"""What every service speaks: subjects, messages, wire format, bus, errors, configuration.

Nothing in here imports torch, and nothing in here knows one service from another.
"""

__version__ = "0.1.0"
