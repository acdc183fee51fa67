"""Train a byte-level GPT, written in plain PyTorch, under a plan.

    python examples/train_gpt.py --plan examples/plans/dp_tp.plan                              ranks are threads
    torchrun --nproc-per-node 4 examples/train_gpt.py --plan examples/plans/dp_tp.plan         ranks are processes

Prints for each step the loss, the speed and, for the first steps, how far the loss is from that of the same model
trained on one device without Stretto.
"""

import stretto
import torch
from gpt import GPT, Config
from report import DTYPES, Report, parser
from text import standard_library, windows
from torch import Tensor, nn


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """The model's own loss."""
    return model(tokens, targets)


def main() -> None:
    """Train, and compare the first steps."""
    options = parser("Train a byte-level GPT under a plan.").parse_args()
    torch.manual_seed(options.seed)
    config = Config(hidden=options.hidden, layers=options.layers, heads=options.heads, positions=options.seq)
    model = GPT(config).to(DTYPES[options.dtype])
    report = Report(options, model, loss_of)

    model = stretto.compile(model, plan=options.plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    for window in windows(standard_library(), options.batch, options.seq + 1, options.steps, options.seed):
        tokens, targets = window[:, :-1].contiguous(), window[:, 1:].contiguous()
        loss = model(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        report.step(loss, tokens, targets)
    report.end()


if __name__ == "__main__":
    main()
