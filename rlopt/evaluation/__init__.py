"""avg@k, pass@k and greedy accuracy on held-out prompts. It does not know how a model was trained."""
