"""Targets: load a model from `path/to/file.py:name`, or from `hf:PATH`, a Hugging Face config.

Start reading at `load_target.py`.
"""
