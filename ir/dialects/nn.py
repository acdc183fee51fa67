"""The `nn` dialect: idioms that stand for chains of aten operations, and their backwards.

Shapes: B batch, H heads, S and T tokens of queries and keys, D head size, V classes, C features.
All are pure. A backward takes the saved results of its forward (`logsumexp`, `rstd`, `mean`), not intermediates.
"""

from __future__ import annotations

NN_SCHEMAS: tuple[tuple[str, bool], ...] = (
    # query (B, H, S, D), key and value (B, G, T, D) with G dividing H, mask broadcastable to (B, H, S, T);
    # query head i reads key and value head i // (H / G); causal: a query sees keys of its position and before, where
    # positions are indices plus `q_offset` and `k_offset` (0-d integers; 0 where not given); a query that sees no key
    # has out 0 and logsumexp -inf
    # -> out (B, H, S, D), logsumexp (B, H, S)
    (
        "nn::attention(Tensor query, Tensor key, Tensor value, Tensor? mask, bool causal, float? scale,"
        " Tensor? q_offset, Tensor? k_offset) -> (Tensor out, Tensor logsumexp)",
        True,
    ),
    (
        "nn::attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor logsumexp,"
        " Tensor? mask, bool causal, float? scale, Tensor? q_offset, Tensor? k_offset)"
        " -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
        True,
    ),
    # attention over keys that come in parts: total = sum over the parts of out * exp(logsumexp - highest), weight = sum
    # of exp(logsumexp - highest), highest = the largest logsumexp; to those of the parts so far this adds one part;
    # a row that has seen no key has 0, 0 and -inf; total, out (B, H, S, D), the others (B, H, S)
    (
        "nn::merge_attention(Tensor total, Tensor weight, Tensor highest, Tensor out, Tensor logsumexp)"
        " -> (Tensor merged_total, Tensor merged_weight, Tensor merged_highest)",
        True,
    ),
    # y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2, -1) + eps); x (..., C), weight (C), rstd (..., 1)
    ("nn::rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor y, Tensor rstd)", True),
    (
        "nn::rms_norm_backward(Tensor grad, Tensor x, Tensor rstd, Tensor weight)"
        " -> (Tensor grad_x, Tensor grad_weight)",
        True,
    ),
    # y = (x - mean) * rstd * weight + bias over the last len(shape) dims; mean and rstd keep those dims as 1
    (
        "nn::layer_norm(Tensor x, Tensor? weight, Tensor? bias, int[] shape, float eps)"
        " -> (Tensor y, Tensor mean, Tensor rstd)",
        True,
    ),
    (
        "nn::layer_norm_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias,"
        " int[] shape) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
        True,
    ),
    # y = x * cos + rotate_half(x) * sin; x (B, H, S, D), cos and sin (B or 1, S, D)
    ("nn::rotary(Tensor x, Tensor cos, Tensor sin) -> Tensor", True),
    ("nn::rotary_backward(Tensor grad, Tensor cos, Tensor sin) -> Tensor", True),
    # logits (..., V), labels (...): total = sum over rows whose label is not `ignore_index` of lse - logit[label];
    # count = how many such rows; lse (...)
    (
        "nn::cross_entropy(Tensor logits, Tensor labels, int ignore_index)"
        " -> (Tensor total, Tensor count, Tensor logsumexp)",
        True,
    ),
    # (softmax(logits) - onehot(labels)) * scale, zero in ignored rows; scale is a scalar tensor
    (
        "nn::cross_entropy_backward(Tensor scale, Tensor logits, Tensor labels, Tensor logsumexp, int ignore_index)"
        " -> Tensor",
        True,
    ),
    # scores (..., V), labels (...), weight (V): -scores[label], times the weight of that class if there are weights;
    # 0 in rows whose label is `ignore_index` -> losses (...)
    ("nn::nll_loss(Tensor scores, Tensor labels, Tensor? weight, int ignore_index) -> Tensor", True),
    # the gradient of the scores: -grad * weight at each row's label, zero elsewhere and in ignored rows; grad (...)
    (
        "nn::nll_loss_backward(Tensor grad, Tensor scores, Tensor labels, Tensor? weight, int ignore_index) -> Tensor",
        True,
    ),
    # a @ b over the last two dims, (..., M, K) and (..., K, N); the leading dims, two or more, are the same
    ("nn::matmul(Tensor a, Tensor b) -> Tensor", True),
    # x @ weight + bias over the last dim; x (..., K), weight (K, N), bias (N)
    ("nn::linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", True),
    # the sum over all rows of a's row times b's: a (..., M), b (..., N) of the same leading dims -> (M, N)
    ("nn::sum_of_outer_products(Tensor a, Tensor b) -> Tensor", True),
    # each row times the matrix of its expert: x (..., K), weight (E, K, N), experts (...); the row of an expert outside
    # [0, E) is not defined; bound: how many times the even share of rows a rank has room for, None: all of them;
    # capacity: how many rows an expert has at most, and then a row of expert E, which is none, gives zeros
    ("nn::expert_linear(Tensor x, Tensor weight, Tensor experts, float? bound, int? capacity) -> Tensor", True),
    # for each expert, the sum over its rows of a's row times b's: a (..., M), b (..., N), experts (...) -> (E, M, N);
    # rows of experts outside [0, E) add nothing; `weight` (E, M, N), whose gradient it is, is read for its placement
    (
        "nn::expert_outer_products(Tensor a, Tensor b, Tensor experts, Tensor weight, float? bound, int? capacity)"
        " -> Tensor",
        True,
    ),
    # the experts (...) of rows, but `count`, which is none, for each row behind `capacity` rows of its expert
    ("nn::kept_experts(Tensor experts, int count, int capacity) -> Tensor", True),
    # uniform words in [0, 2^32), int64, or with `below` whether each is below it, of shape `size`: a function of state
    # (seed, step), the 0-d `number` of the random op, and the element's index; `like`, of the same shape, is its user
    ("nn::random(Tensor state, Tensor number, Tensor? like, int[] size, int? below) -> Tensor", True),
)
"""(schema, whether it is pure) of each operation."""
