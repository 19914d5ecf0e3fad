"""No test may reach a network or a user's cache of runs. Shapes of tensors are checked where the learner is entered."""

import os

from jaxtyping import install_import_hook

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

install_import_hook("rlopt.learner.group", "beartype.beartype")
