"""The simulation: the whole service under one number, from which everything that happens to it follows.

A run is the real System on real SQLite files, with a virtual clock, a network of scripted relays, an upstream, and
clients that call its commands. Trio's order of tasks, chance, entropy and all faults are drawn from the seed, so the
same seed writes the same log, byte for byte; `make sim SEED=n` runs one and tells its story. A run is some 60 to 200
messages, three or four lives of the service, and minutes to hours of virtual time. Then the weather clears, and what
was promised is looked at by the checkers (tests/checkers), a promise a file.

What goes wrong here, and what is never allowed to:

The service dies at any await: at a moment, after so many steps of the scheduler, a few steps after some MAIL has left
(so in the middle of conversations), or in the middle of a commit. Several times a run; each time what is on disk in
that moment is all that is left, it is opened again by SQLite's own recovery, often under other retry delays, another
rule for doubt, other numbers of connections. It is also stopped in order, and told to hurry.

    A commit that was torn is there as a whole or not at all, and nobody had an answer about it.
    What fsync has promised stays: a drive that lies about that, or loses sectors, is not in this model. (Damage is
    found by `verify`, and that is tested where it lives.)
    The files are not written by anybody else.

The disk is full for a while, as SQLite itself finds out in the middle of a transaction. Commits and readings take time:
nothing, or up to a third of a second, so facts are on disk that nobody knows of yet, and what is read may be past.

Relays refuse the connection, do not resolve, never answer it, greet with 421 or 554, refuse EHLO; they refuse MAIL,
RCPT, DATA and the final dot with 4xx, 5xx, 421 and 530; they answer late or never; they hang up at any stage, after
they have idled, and after they have taken the message without having said so. They pipeline, or not. Addresses do not
exist, or are greylisted. Several accounts share a relay, with the same login or another one.

    A relay takes a message in one moment, whole, or not at all; from then on it is delivered.
    A relay that says 250 to the dot has taken it, and one that refuses it has not.

The network cuts a connection after any byte in either direction; what was under way to the service may be lost with it.
Bytes are not changed, repeated or reordered within a connection: TCP sees to that. There is no TLS here.

The wall clock jumps, forwards and back, by seconds or minutes, by an hour, five days or a year, while the service runs
or between two lives; some large jumps are taken back. Monotonic time does not jump.

Clients post one message or many, the same id again with the same content or another, two at once; they wait for the
outcome; they delete, suspend, pause, remove accounts, make them anew, change their limits, and do so just as the next
attempt is being granted. They ask again where no answer came, or never come back. The upstream repeats a batch until
its token is confirmed, answers with errors, loses answers, and is gone for minutes.

A bug in the delivery unit, once in a while: supervision starts it again in the middle of everything.

What cannot be seen here: threads (turns run inline), HTTP itself and slow HTTP clients, TLS, real sockets, the order of
two processes, more than some hundred facts, memory and speed, damage to the files, restored backups.
"""
