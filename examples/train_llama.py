"""Train a byte-level Llama, Hugging Face's own class, under a plan.

    python examples/train_llama.py --plan examples/plans/tp_sequence.plan                      ranks are threads
    torchrun --nproc-per-node 2 examples/train_llama.py --plan examples/plans/tp_sequence.plan ranks are processes

The vocabulary is the 256 bytes and a mark for the start of a sequence: 257, which no mesh divides. Prints what
train_gpt.py prints.
"""

import stretto
import torch
from report import DTYPES, Report, parser
from text import standard_library, windows
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

START = 256
"""The token that begins every sequence."""
FLOAT32_PARTS = 1e-6
"""This class computes its norms and its loss in float32, also where its parameters are float64."""


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """The model's own loss: that of each token after the ones before it."""
    return model(input_ids=tokens, labels=tokens).loss


def main() -> None:
    """Train, and compare the first steps."""
    options = parser("Train a byte-level Llama under a plan.")
    options.add_argument("--kv-heads", type=int, default=2)
    options.add_argument("--tie", action="store_true", help="one matrix for the embedding and the head")
    options = options.parse_args()
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=START + 1,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        max_position_embeddings=options.seq,
        tie_word_embeddings=options.tie,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(DTYPES[options.dtype])
    report = Report(options, model, loss_of, FLOAT32_PARTS)

    model = stretto.compile(model, plan=options.plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    for window in windows(standard_library(), options.batch, options.seq - 1, options.steps, options.seed):
        tokens = torch.nn.functional.pad(window, (1, 0), value=START)
        loss = loss_of(model, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        report.step(loss, tokens)
    report.end()


if __name__ == "__main__":
    main()
