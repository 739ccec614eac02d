"""Plugin of lmms-eval: ``LMMS_EVAL_PLUGINS=nemo_desta.evaluation.lmms lmms-eval --model desta ...``."""
