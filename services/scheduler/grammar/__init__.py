"""Grammars: from the text a user gave to masks of allowed tokens.

A `Compiler` lives as long as the scheduler. It checks, converts and tries a grammar in a process that may be killed,
and hands back a `Grammar`; each request starts a `GrammarState` of it, which the event loop owns. Knows nothing of
NATS, rows, pages or torch. What is enforced is listed in docs/structured_output.md.
"""

from services.scheduler.grammar.compiler import Compiler
from services.scheduler.grammar.state import Grammar, GrammarOverrun, GrammarState
from services.scheduler.grammar.vocabulary import Vocabulary, load_vocabulary

__all__ = ["Compiler", "Grammar", "GrammarOverrun", "GrammarState", "Vocabulary", "load_vocabulary"]
