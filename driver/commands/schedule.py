"""`stretto schedule`."""

from __future__ import annotations

import argparse

from .arguments import add_json, positive
from .outcome import Outcome, require_compiler

HELP = "draw, measure and prove a pipeline schedule, without a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.description = (
        "Make a schedule by name, or read one from a file; prove that it can run, and draw and measure it. "
        "Memory is counted in activations of one microbatch on all that a rank holds."
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a schedule, or a file with one; default: list all")
    parser.add_argument("-p", "--stages", type=positive, default=4, metavar="P", help="ranks; default: 4")
    parser.add_argument("-m", "--microbatches", type=positive, default=8, metavar="M", help="default: 8")
    parser.add_argument("--chunks", type=positive, metavar="V", help="stages of a rank; default: the schedule's")
    parser.add_argument(
        "--times", type=_times, default=(1.0, 1.0, 1.0, 0.0), metavar="F,B,W,C",
        help="times of one microbatch on a rank: forward, gradient of the input, of the weights, and of sending to "
        "another rank; default: 1,1,1,0",
    )  # fmt: skip
    parser.add_argument("--pair", type=float, metavar="FB", help="a forward and a backward, overlapped; default: F+B+W")
    parser.add_argument("--kept", type=float, default=1.0, metavar="SHARE", help="of activations until W; default: 1")
    parser.add_argument("--memory-cap", type=float, metavar="A", help="the most activations that a rank may hold")
    parser.add_argument("--search", type=int, default=0, metavar="TRIES", help="moves of a local search; default: 0")
    parser.add_argument("--by", choices=("makespan", "span"), help="what a search shortens; default: the schedule's")
    parser.add_argument(
        "--vocabulary", type=int, choices=(1, 2), default=0, metavar="BARRIERS",
        help="weave in what all ranks share of a vocabulary; they meet once or twice between F and B",
    )  # fmt: skip
    parser.add_argument(
        "--shared", type=_shared_times, default=(0.25, 0.25, 0.0, 0.0), metavar="S,T,E,G",
        help="with --vocabulary: a rank's times for the output, for what is left of it when ranks have met, for "
        "embeddings and for their gradient; default: 0.25,0.25,0,0, which is the output alone",
    )  # fmt: skip
    parser.add_argument("--svg", metavar="FILE", help="also write a picture")
    parser.add_argument("--pictures", action="store_true", help="write the pictures of docs/, in a checkout")
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def _times(text: str) -> tuple[float, float, float, float]:
    """Three or four numbers; the fourth is 0 where it is left out."""
    try:
        times = [float(each) for each in text.split(",")]
    except ValueError:
        times = []
    if len(times) not in (3, 4):
        raise argparse.ArgumentTypeError(f'"{text}" is not F,B,W,C, such as 1,1,1,0')
    return times[0], times[1], times[2], times[3] if len(times) == 4 else 0.0


def _shared_times(text: str) -> tuple[float, float, float, float]:
    """Two or four numbers; the last two are 0 where they are left out."""
    try:
        times = [float(each) for each in text.split(",")]
    except ValueError:
        times = []
    if len(times) not in (2, 4):
        raise argparse.ArgumentTypeError(f'"{text}" is not S,T,E,G, such as 0.25,0.25,0.1,0.1')
    return times[0], times[1], *(times[2:] if len(times) == 4 else (0.0, 0.0))


def run(given: argparse.Namespace) -> Outcome:
    """See `Command`."""
    from ...schedules import Costs, Measure, Request
    from ..text.schedule import is_file, list_json, measured, measured_file, show_list, show_schedule
    from ..text.schedule_svg import svg
    from ..text.text_files import write_text

    if given.pictures:
        if given.name is not None or given.svg or given.json:
            given.usage_error("--pictures is about all schedules, and stands alone")
        from ..text.console import say
        from ..text.schedule_pictures import write_pictures

        count = write_pictures()
        return Outcome(0, lambda: say(f"{count} pictures written"))
    if given.name is None:
        return Outcome(0, show_list, list_json)
    f, b, w, c = given.times
    s, t, e, g = given.shared
    costs = Costs(f, b, w, c, given.pair, given.kept, s, t, e, g)
    measure = Measure(given.by) if given.by else None
    request = Request(
        given.stages, given.microbatches, given.chunks, costs, given.memory_cap, given.search, measure
    )  # fmt: skip
    if is_file(given.name):
        require_compiler()
        found = measured_file(given.name, request, given.vocabulary)
    else:
        found = measured(given.name, request, given.vocabulary)
    if given.svg:
        write_text(given.svg, svg(found))
    return Outcome(0, lambda: show_schedule(found), found.to_json)
