"""The frozen vision-language backbones. OpenAI's own surface (`load`, `tokenize`, `available_models`) is at the top."""

from clip.clip import available_models, load, tokenize

__all__ = ["available_models", "load", "tokenize"]
