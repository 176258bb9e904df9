"""What adaptation methods are made of: the trainer of a method, prompts, templates, checkpoints, features on disk."""
