"""`python -m bench`: the layers, then the whole service end to end."""

import argparse

from . import endtoend, layers


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000, help="messages posted in batches")
    parser.add_argument("--singles", type=int, default=5_000, help="messages posted one by one")
    parser.add_argument("--batch", type=int, default=500, help="messages of one batch")
    parser.add_argument("--connections", type=int, default=16, help="keep-alive connections of single posts")
    parser.add_argument("--only", choices=("layers", "endtoend"), help="one of the two parts")
    chosen = parser.parse_args()
    if chosen.only != "endtoend":
        for line in layers.run(chosen.messages // 2):
            print(line, flush=True)
    if chosen.only != "layers":
        for line in endtoend.run(chosen.messages, chosen.singles, chosen.batch, chosen.connections):
            print(line, flush=True)


if __name__ == "__main__":
    main()
