"""`python -m bench`: the layers, then the whole service end to end; what takes longer is asked for by `--only`."""

import argparse
from collections.abc import Iterator

from . import auditing, endtoend, layers, letting_go, size


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "--messages",
        type=int,
        help="messages posted in batches (20,000); or that wait or have ended, or facts (1,000,000)",
    )
    parser.add_argument("--singles", type=int, default=5_000, help="messages posted one by one")
    parser.add_argument("--batch", type=int, default=500, help="messages of one batch")
    parser.add_argument("--connections", type=int, default=16, help="keep-alive connections of single posts")
    parser.add_argument("--only", choices=("layers", "endtoend", "size", "retention", "audit"), help="one of the parts")
    chosen = parser.parse_args()
    for line in _lines(chosen):
        print(line, flush=True)


def _lines(chosen: argparse.Namespace) -> Iterator[str]:
    """Without a choice, the two parts that take minutes together; the others are asked for by name."""
    messages = chosen.messages or 20_000
    if chosen.only in (None, "layers"):
        yield from layers.run(messages // 2)
    if chosen.only in (None, "endtoend"):
        yield from endtoend.run(messages, chosen.singles, chosen.batch, chosen.connections)
    if chosen.only == "size":
        yield from size.run(chosen.messages or 1_000_000)
    if chosen.only == "audit":
        yield from auditing.run(chosen.messages or 1_000_000)
    if chosen.only == "retention":
        yield from letting_go.run(chosen.messages or 1_000_000)


if __name__ == "__main__":
    main()
