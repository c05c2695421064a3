"""Images and videos: fetched, decoded, encoded, and kept for whoever asks again."""
