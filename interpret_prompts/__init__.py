"""Reading learned text prompts by their nearest vocabulary words. `python -m interpret_prompts --help` says how."""
