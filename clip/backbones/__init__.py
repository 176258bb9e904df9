"""Backbones of one's own: the file `<name>.py` in this folder is what `MODEL.BACKBONE.NAME: <name>` means.

It offers `load(path) -> clip.backbone.Backbone`, where `path` is `MODEL.BACKBONE.PATH`; nothing has to be registered.
"""
