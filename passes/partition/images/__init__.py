"""Images cut on height, width or depth: what ranks exchange, and what each op computes on what it then has.

`exchange.py` brings halos and takes their gradients back; `cut_dims.py` applies it to all cut dims of an image. The
other files are one kind of op each. Which dims an op may be cut on, and what it reads of them, is in
`passes/sharding/rules/windows.py` and `images.py`. Batch norm is in `passes/partition/batch_norm.py`. Start reading at
`convolution.py`.
"""
