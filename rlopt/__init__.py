"""rlopt: off-policy reinforcement fine-tuning of language models that can be trusted."""

__version__ = "0.1.0"
