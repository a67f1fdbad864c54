"""A follower is given every fact after where it began, once, in order, whatever it missed or slept through."""

from collections.abc import Iterator

from tests.simulation.observed import Observed


def check(observed: Observed) -> Iterator[str]:
    for followed in observed.followed:
        wanted = list(range(followed.after + 1, followed.after + 1 + len(followed.seqs)))
        if followed.seqs != wanted:
            wrong = next(index for index, pair in enumerate(zip(followed.seqs, wanted, strict=True)) if pair[0] != pair[1])
            yield f"in life {followed.life} a follower after {followed.after} was given {followed.seqs[wrong]} as its {wrong + 1}th"
        elif list(observed.log[followed.after : followed.after + len(followed.entries)]) != followed.entries:
            yield f"in life {followed.life} a follower was given other facts than the log holds"
