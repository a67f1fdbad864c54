"""What stands beside a fact, written in the same commit and erasable later: the log holds none of it."""

from msgspec import Struct


class LetterRow(Struct, frozen=True):
    """With MessageAccepted and MessageRevised: the content, under the seq of its fact.

    `envelope` is JSON of events.letter.Envelope, `content` JSON of events.letter.Letter; `salt` keys its digest.
    """

    envelope: bytes
    content: bytes
    salt: bytes

    @property
    def size(self) -> int:
        return len(self.envelope) + len(self.content)


class Replies(Struct, frozen=True):
    """With AttemptEnded: the relay's words about recipients that were not delivered, by recipient index."""

    texts: tuple[tuple[int, str], ...]

    @property
    def size(self) -> int:
        return sum(len(text) for _, text in self.texts)


class Sealed(Struct, frozen=True):
    """With AccountSaved: JSON of Credentials as `Secrets.seal` gave it; with VolumeSaved: JSON of its config."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


class Credentials(Struct, frozen=True):
    """What is sealed beside an account; its digest stands in the account's facts."""

    user: str | None = None
    password: str | None = None


Beside = LetterRow | Replies | Sealed


def secret_name(account: int) -> str:
    """Under which name an account's credentials stand in the table `secrets`."""
    return f"account:{account}"


def volume_secret_name(volume: str) -> str:
    """Under which name a volume's config stands there."""
    return f"volume:{volume}"
