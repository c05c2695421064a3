"""From logits to tokens: per-row sampling state, penalties, filters, draws, log probabilities. Rank 0 only."""
