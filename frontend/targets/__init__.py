"""Where a model comes from: `path/to/file.py:name`, or `hf:PATH`, a Hugging Face config.

Start reading at `load_target.py`.
"""
