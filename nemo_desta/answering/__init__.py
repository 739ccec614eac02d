"""From conversations to answers, from below: `clips` (anything to samples), `hearing` (samples to embeddings, cached),
`sampling` and `decoding` (the one loop), `writer` (ids to text), `engine` (all of it, step by step), `chat` (from
Python), `batch` (files of rows). `ears` and `vllm_decoder`: the LLM elsewhere.
"""
