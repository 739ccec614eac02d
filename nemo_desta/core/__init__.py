"""The model without a trainer: a frozen LLM, perception, prompts and loss. Needs torch and transformers only."""
