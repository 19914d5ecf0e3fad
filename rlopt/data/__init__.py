"""From rows of files to prompts, and from samples to padded tensors. It does not know how samples are made or learned from."""
