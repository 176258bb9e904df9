"""Data: from a data set's lists of files to batches of tensors."""
