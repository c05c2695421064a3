"""Tool calls in the text that a model writes: one reader per family of formats, and the grammars that force them.

Text goes in a piece at a time, events come out; whatever the pieces, the events add up to the same. Nothing here
knows tokens, requests or messages.
"""
