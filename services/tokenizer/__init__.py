"""Text <-> token ids: chat templates, encoding, incremental detokenization, stop strings.

`python -m services.tokenizer --model-path DIR` runs one instance; instances share requests through a queue group.
Nothing in here imports torch or transformers.
"""
