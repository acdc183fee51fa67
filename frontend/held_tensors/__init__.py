"""Tensors that Python objects hold beside the modules of a model, such as a cache of keys and values.

Start reading at `objects.py`, about objects among the arguments. `aliases.py`: an object that holds a parameter or a
buffer of the model means the model's.
"""
