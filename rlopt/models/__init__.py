"""Loading a model, its log-probabilities, adapters, and the tiny models. It knows no objective and no worker."""
