"""Rows, prompts and batches: everything between a JSONL file and the tensors that the model reads."""
