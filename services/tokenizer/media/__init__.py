"""Images and videos in prompts: found in messages, encoded by the vision service, put in the places of their
placeholders."""
