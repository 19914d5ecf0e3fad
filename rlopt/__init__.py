"""rlopt: off-policy reinforcement fine-tuning of language models that can be trusted."""

from rlopt.core.moved import install

__version__ = "0.1.0"

install()
