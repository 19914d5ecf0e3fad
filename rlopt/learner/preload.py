"""Imported by the fork server, before learner ranks are forked from it; for nothing else."""

from importlib import import_module

for name in ("deepspeed", "rlopt.learner.worker"):
    import_module(name)
