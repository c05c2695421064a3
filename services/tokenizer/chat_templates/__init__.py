"""Built-in chat templates for `--chat-template NAME`: one .jinja file per model family."""
