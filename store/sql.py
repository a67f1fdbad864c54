"""The statements of the named reads (`reading`), a name and a sentence each.

No statement here scans a table that grows with the mail: each is a range or a look-up of a key or an index, and
tests/store/test_query_plans.py asks SQLite itself. What is read whole is declared there: accounts, relays, open
attempts, the only rows of dispatch and rules.

Where a filter has no index, the statement looks at a bounded stretch of rows, and the reading says where the next
stretch begins: a page may come back short, or empty, and still have a next one. A stretch is a co-routine that
gives its rows in order, one by one, so the outer statement needs no order of its own and stops at its limit.
"""

from msgspec import Struct

from .views.accounts import AccountRow, RelayRow
from .views.counts import ResultRow
from .views.dispatch import DispatchRow
from .views.messages import MessageRow
from .views.rules import RulesRow
from .views.volumes import VolumeRow


def columns(row: type[Struct], table: str) -> str:
    """A row's columns in the order of its fields."""
    return ", ".join(f"{table}.{name}" for name in row.__struct_fields__)


_MESSAGE = columns(MessageRow, "m")

_WAITING_STRETCH = (
    "(select * from messages indexed by messages_waiting where state = 'waiting' and number > :after"
    " order by number limit :stretch) m"
)
_THROTTLED = "m.account in (select number from accounts where throttled_until_us > :now)"

PENDING = f"select {_MESSAGE} from {_WAITING_STRETCH} where m.due_us <= :now and not ({_THROTTLED}) limit :limit"
"""Waiting, due, and not behind a throttled account; a stretch of the index messages_waiting."""

DEFERRED = f"select {_MESSAGE} from {_WAITING_STRETCH} where (m.due_us > :now or {_THROTTLED}) limit :limit"
"""Waiting for a later moment, or behind a throttled account; a stretch of the index messages_waiting."""

WAITING_STRETCH_END = (
    "select number from messages indexed by messages_waiting where state = 'waiting' and number > :after"
    " order by number limit 1 offset :skip"
)
"""The last number of a full stretch of waiting messages; no row where the stretch reaches the end."""

WAITING = f"select {_MESSAGE} from {_WAITING_STRETCH} limit :limit"
"""Waiting messages, due or not."""

HELD = (
    f"select {_MESSAGE} from messages m indexed by messages_held"
    " where m.state = 'held' and m.number > :after order by m.number limit :limit"
)
"""Mail held for a person: the index messages_held holds nothing else."""

IN_FLIGHT = (
    f"select {_MESSAGE} from attempts a cross join messages m on m.number = a.message"
    " where a.message > :after order by m.number limit :limit"
)
"""The messages of open attempts, of which there are no more than connections."""

MESSAGES = (
    f"select {_MESSAGE} from (select * from messages where number > :after order by number limit :stretch) m"
    " where (:states is null or m.state in (select value from json_each(:states)))"
    " and (:accounts is null or m.account in (select value from json_each(:accounts)))"
    " limit :limit"
)
"""Messages of some states and accounts among a stretch of all of them."""

MESSAGES_STRETCH_END = "select number from messages where number > :after order by number limit 1 offset :skip"
"""The last number of a full stretch of messages; no row where the stretch reaches the end."""

MESSAGE = f"select {_MESSAGE} from messages m where m.number = ?"
"""A message's row."""

NUMBER_OF_ID = "select number from ids where id = ?"
"""The number that a client's id stands for."""

KNOWN_IDS = (
    f"select i.id, i.number, {_MESSAGE} from ids i left join messages m on m.number = i.number"
    " where i.id in (select value from json_each(?))"
)
"""Of these ids, those the log knows, with their rows; a row that retention took away is null."""

FIRST_FACTS = (
    "select seq, at_us, kind, version, message, account, data from log where seq in (select value from json_each(?))"
)
"""The first facts of messages, which hold their ids: for those whose row retention took away."""

IDS_OF_NUMBERS = "select number, id from messages where number in (select value from json_each(?))"
"""The client's ids of these numbers."""

TIMELINE = (
    "select seq, at_us, kind, version, message, account, data from log"
    " where message = ? and seq > ? order by seq limit ?"
)
"""Every fact about one message: a range of the index log_by_message."""

EVENTS = (
    "select seq, at_us, kind, version, message, account, data from log where seq > :after and seq <= :up_to"
    " and (:kind is null or kind = :kind)"
    " and (:accounts is null or account in (select value from json_each(:accounts)))"
    " order by seq limit :limit"
)
"""Facts of a kind and of some accounts within a stretch of the log."""

MESSAGE_EVENTS = (
    "select seq, at_us, kind, version, message, account, data from log where message = :message and seq > :after"
    " and (:kind is null or kind = :kind)"
    " and (:accounts is null or account in (select value from json_each(:accounts)))"
    " order by seq limit :limit"
)
"""Facts about one message, of a kind and of some accounts: a range of the index log_by_message."""

LAST_SEQ = "select coalesce(max(seq), 0) from log"
"""Where the log ends."""

RESULTS = f"select {columns(ResultRow, 'results')} from results where seq > ? order by seq limit ?"
"""Final results in the order of the log."""

RESULTS_ENDED = (
    "select r.seq, r.message, r.id, a.id, a.host, a.port, r.status, r.attempts, r.cause, r.recipients, r.at_us,"
    " case when m.created_us <= r.at_us then m.created_us end"
    " from results r left join messages m on m.number = r.message left join accounts a on a.number = r.account"
    " where r.seq >= :first and r.seq <= :last"
)
"""Results within a stretch of the log, with their accounts, and when their messages were taken."""

WITHDRAWN_ENDED = (
    "select m.final_seq, m.number, m.id, a.id, a.host, a.port, 'withdrawn', m.attempts, m.cause, m.recipients,"
    " m.final_us, m.created_us from messages m left join accounts a on a.number = m.account"
    " where m.final_seq >= :first and m.final_seq <= :last and m.state = 'withdrawn'"
)
"""Messages that were withdrawn within a stretch of the log: a range of the index messages_final."""

RELAY_OF_ACCOUNT = "select id, host, port from accounts where number = ?"
"""An account's name and relay."""

ACCOUNTS = f"select {columns(AccountRow, 'accounts')} from accounts order by number"
"""Every account there has been: some tens, seldom thousands."""

ACCOUNT = f"select {columns(AccountRow, 'accounts')} from accounts where id = ? and removed = 0"
"""The living account with an id."""

ACCOUNT_NUMBERS = "select number from accounts where id = ?"
"""Every account that ever had an id: one that is removed and made again has another number."""

VOLUMES = f"select {columns(VolumeRow, 'volumes')} from volumes order by name"
"""Every volume: some tens."""

VOLUME = f"select {columns(VolumeRow, 'volumes')} from volumes where name = ?"
"""The volume with a name."""

SECRETS = "select name, sealed from secrets where name in (select value from json_each(?))"
"""Sealed credentials by name."""

RELAYS = f"select {columns(RelayRow, 'relays')} from relays"
"""The relays that cannot be reached."""

DISPATCH = f"select {columns(DispatchRow, 'dispatch')} from dispatch"
"""The one row that says whether attempts may start."""

RULES = f"select {columns(RulesRow, 'rules')} from rules"
"""The one row of all rules."""

TOTALS = "select state, sum(n) from totals group by state"
"""How many messages are in each state: a row an account and state is read, not a row a message."""

WAITING_BY_ACCOUNT = "select account, n from totals where state = 'waiting' and n > 0"
"""How many messages of each account wait."""

_DUE_LATER = (
    "select t.account, sum(d.n) from totals t cross join due_{0}s d"
    " on d.account = t.account and d.{0} > :{0} and d.{0} < :end"
    " where t.state = 'waiting' and t.n > 0 group by t.account"
)

DUE_ON_LATER_DAYS = _DUE_LATER.format("day")
"""How many messages of each account are due after today: a range of due_days an account."""

DUE_IN_LATER_HOURS = _DUE_LATER.format("hour")
"""How many are due today, after the running hour."""

DUE_IN_LATER_MINUTES = _DUE_LATER.format("minute")
"""How many are due in the running hour, after the running minute."""

DUE_THIS_MINUTE = (
    "select t.account, count(*) from totals t"
    " cross join due_minutes d on d.account = t.account and d.minute = :minute"
    " cross join json_each('[0,1,2,3]') p"
    " cross join messages m indexed by messages_queue on m.state = 'waiting' and m.account = t.account"
    " and m.priority = p.value and m.due_us > :now and m.due_us < :end"
    " where t.state = 'waiting' and t.n > 0 group by t.account"
)
"""How many are due later within the running minute: at most a minute's messages, from the index messages_queue."""

OLDEST_DUE = (
    "select min((select m.due_us from messages m indexed by messages_queue where m.state = 'waiting'"
    " and m.account = t.account and m.priority = p.value order by m.due_us limit 1))"
    " from totals t cross join json_each('[0,1,2,3]') p where t.state = 'waiting' and t.n > 0"
)
"""The earliest due moment of all waiting mail: the head of each account's queues."""

ENVELOPES = (
    "select letter, envelope from letters where letter in (select value from json_each(?)) and length(envelope) > 0"
)
"""Letters' envelopes by the seqs of the facts that brought them; those erased are missing."""

CONTENT = "select content from letters where letter = ? and length(content) > 0"
"""One letter's content: contents are large, so they are read one by one until a page is full."""

ENVELOPE_AT = (
    "select envelope from letters where message = ? and letter <= ? and length(envelope) > 0"
    " order by letter desc limit 1"
)
"""A message's envelope as of a seq."""

REPLIES = "select ended, recipient, text from replies where ended in (select value from json_each(?)) and text <> x''"
"""What relays said in these ends of attempts."""

REPORTED_AT = "select at_us from reported where up_to >= ? order by up_to limit 1"
"""When the result with this seq was reported: the first report that reached it."""

REFUSED_UNTIL = "select settled_us from refused where seq = ?"
"""The same of a result that was refused at first: null while it is still offered."""
