"""From conversations to answers, bottom up: `clips` (any audio to samples), `audio_embeddings` (samples to cached
vectors), `sampling` and `decoder` (the one decode loop), `stream_parser` (ids to text), `engine` (all of it, step by
step), `chat` (from Python), `offline` (files of rows).
"""
