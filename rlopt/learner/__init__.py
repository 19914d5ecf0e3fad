"""DeepSpeed ranks that score sequences and update the weights. They do not know where batches come from."""
