"""Weights from the learner to the engines, verified. It does not know how either side computes."""
