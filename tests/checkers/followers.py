"""A follower is given every fact after where it began, once, in order, whatever it missed or slept through."""

from collections.abc import Iterator

from tests.simulation.observed import Observed


def check(observed: Observed) -> Iterator[str]:
    for followed in observed.followed:
        wanted = list(range(followed.after + 1, followed.after + 1 + len(followed.seqs)))
        if followed.seqs != wanted:
            at, seq = next((at, seq) for at, seq in enumerate(followed.seqs) if seq != wanted[at])
            yield f"in life {followed.life} a follower after {followed.after} was given {seq} for {wanted[at]}"
        elif list(observed.log[followed.after : followed.after + len(followed.entries)]) != followed.entries:
            yield f"in life {followed.life} a follower was given other facts than the log holds"
