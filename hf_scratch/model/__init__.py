"""The Hub closure: the two files in this folder ship with every published checkpoint as its remote code.

They import third-party packages and each other by `from .sibling import name`, and nothing else, because
that is what `save_pretrained` copies and what a machine without hf_scratch can load.
"""
