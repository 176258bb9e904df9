"""The programs that are files at the top of the repository: `train` and `predict`."""
