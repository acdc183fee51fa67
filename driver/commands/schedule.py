"""`stretto schedule`: draw, measure and prove a pipeline schedule."""

from __future__ import annotations

import argparse

from .arguments import add_json, positive
from .outcome import Outcome, require_compiler

HELP = "draw, measure and prove a pipeline schedule, without a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Generate a schedule by name, or read one from a file; then prove, draw and measure it. "
        "The unit of memory is the activations of one microbatch on one rank."
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a schedule, or a file with one; default: list all")
    parser.add_argument("-p", "--stages", type=positive, default=4, metavar="P", help="ranks; default: 4")
    parser.add_argument("-m", "--microbatches", type=positive, default=8, metavar="M", help="default: 8")
    parser.add_argument(
        "--chunks", type=positive, metavar="V", help="virtual stages of a rank; default: the schedule's"
    )
    parser.add_argument(
        "--times", type=_times, default=(1.0, 1.0, 1.0, 0.0), metavar="F,B,W,C",
        help="times of one microbatch on one rank: forward, input gradient, weight gradient, and a send to another "
        "rank; default: 1,1,1,0",
    )  # fmt: skip
    parser.add_argument(
        "--pair", type=float, metavar="FB", help="time of a forward and a backward overlapped; default: F+B+W"
    )
    parser.add_argument(
        "--kept", type=float, default=1.0, metavar="SHARE", help="share of activations kept until W; default: 1"
    )
    parser.add_argument("--memory-cap", type=float, metavar="A", help="the most activations on a rank")
    parser.add_argument("--search", type=int, default=0, metavar="TRIES", help="moves of a local search; default: 0")
    parser.add_argument("--by", choices=("makespan", "span"), help="what a search minimizes; default: the schedule's")
    parser.add_argument(
        "--vocabulary", type=int, choices=(1, 2), default=0, metavar="BARRIERS",
        help="add the tasks of a vocabulary shared by all ranks, with one or two barriers between F and B",
    )  # fmt: skip
    parser.add_argument(
        "--shared", type=_shared_times, default=(0.25, 0.25, 0.0, 0.0), metavar="S,T,E,G",
        help="with --vocabulary: a rank's times for the output, its rest after the barrier, embeddings and their "
        "gradient; default: 0.25,0.25,0,0, without embeddings",
    )  # fmt: skip
    parser.add_argument("--svg", metavar="FILE", help="also write a picture to this file")
    parser.add_argument("--pictures", action="store_true", help="write the pictures of docs/, in a checkout")
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def _times(text: str) -> tuple[float, float, float, float]:
    """Three or four numbers; the fourth is 0 where it is left out."""
    try:
        times = [float(number) for number in text.split(",")]
    except ValueError:
        times = []
    if len(times) not in (3, 4):
        raise argparse.ArgumentTypeError(f'"{text}" is not F,B,W,C; expected 3 or 4 numbers, such as 1,1,1,0')
    return times[0], times[1], times[2], times[3] if len(times) == 4 else 0.0


def _shared_times(text: str) -> tuple[float, float, float, float]:
    """Two or four numbers; the last two are 0 where they are left out."""
    try:
        times = [float(number) for number in text.split(",")]
    except ValueError:
        times = []
    if len(times) not in (2, 4):
        raise argparse.ArgumentTypeError(f'"{text}" is not S,T,E,G; expected 2 or 4 numbers, such as 0.25,0.25,0.1,0.1')
    return times[0], times[1], *(times[2:] if len(times) == 4 else (0.0, 0.0))


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    from ...schedules import Costs, Measure, Request
    from ..text.schedule import is_file, list_json, measure_file, measure_named, show_list, show_schedule
    from ..text.schedule_svg import svg
    from ..text.text_files import write_text

    if arguments.pictures:
        if arguments.name is not None or arguments.svg or arguments.json:
            arguments.usage_error("--pictures draws all schedules; it takes no NAME, --svg or --json")
        from ..text.console import say
        from ..text.schedule_pictures import write_pictures

        count = write_pictures()
        return Outcome(0, lambda: say(f"{count} pictures written"))
    if arguments.name is None:
        return Outcome(0, show_list, list_json)
    f, b, w, c = arguments.times
    s, t, e, g = arguments.shared
    costs = Costs(f, b, w, c, arguments.pair, arguments.kept, s, t, e, g)
    measure = Measure(arguments.by) if arguments.by else None
    request = Request(
        arguments.stages, arguments.microbatches, arguments.chunks, costs, arguments.memory_cap, arguments.search,
        measure,
    )  # fmt: skip
    if is_file(arguments.name):
        require_compiler()
        measured = measure_file(arguments.name, request, arguments.vocabulary)
    else:
        measured = measure_named(arguments.name, request, arguments.vocabulary)
    if arguments.svg:
        write_text(arguments.svg, svg(measured))
    return Outcome(0, lambda: show_schedule(measured), measured.to_json)
