"""The linear probe: logistic regression on frozen image features. `python -m lpclip --help` says how to run it."""
