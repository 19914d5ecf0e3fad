"""The training loop and where its batches come from, sampled or recorded. It does not know how workers are started."""
