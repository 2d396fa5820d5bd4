"""What waits for each site, and what comes back: one instruction and one reply at a time.

An instruction stays until it is answered, replaced or withdrawn. So a site that was killed, or did
not get the server's answer, simply asks again and gets the same. A reply comes in as objects of
known names; they wait in a file that vanishes with it, and the reply is there when all of them are.
What was withdrawn or taken is remembered by its names for a while, to tell who is late from who
attacks. A server that was started again remembers nothing: there a site that hasn't asked it for
anything yet may be late with a reply to the one before, a few times, unless it names what another
site was asked.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from common.objects import MOST_CHUNK_BYTES, check_object

_OTHER_OBJECTS = 32  # in a reply, besides its chunks
_REMEMBERED = 4  # messages of a site that is late


class Deflates(Protocol):
    """An object that is only made into bytes when somebody asks for it."""

    def deflate(self) -> bytes:
        """Its bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Posted:
    """An instruction on its way to a site; the objects may be shared with other sites'."""

    message_id: str
    message: Any  # as the transport sends it
    tree: Any  # the same
    objects: Mapping[str, bytes | Deflates]
    most_reply_bytes: int

    def read(self, object_id: str) -> bytes:
        """One of its objects; raises KeyError for any other."""
        found = self.objects[object_id]
        return found if isinstance(found, bytes) else found.deflate()


def most_objects(most_bytes: int) -> int:
    """How many objects a reply of at most so many bytes can have."""
    return most_bytes // MOST_CHUNK_BYTES + _OTHER_OBJECTS


class Upload:
    """A reply as it comes in."""

    def __init__(
        self, reply_id: str, tree: Mapping[str, tuple[str, ...]], *, most_bytes: int, folder: Path
    ) -> None:
        """Expect the objects of `tree` (name: names of its children), `most_bytes` in all.

        Raises:
            ValueError: there are more of them than such a reply can have.
        """
        if len(tree) > most_objects(most_bytes):
            raise ValueError("a reply of more objects than it may have")
        self.reply_id = reply_id
        self._tree = tree
        self._most_bytes = most_bytes
        self._places: dict[str, tuple[int, int]] = {}
        self._size = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 # open as long as this is
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that have come."""
        return self._size

    @property
    def names(self) -> frozenset[str]:
        """Names of all its objects."""
        return frozenset(self._tree)

    @property
    def missing(self) -> list[str]:
        """Names of the objects that are still to come."""
        return [object_id for object_id in self._tree if object_id not in self._places]

    def add(self, object_id: str, content: bytes) -> None:
        """Take an object in.

        Raises:
            KeyError: the reply is no longer wanted.
            ValueError: the object is none of this reply's.
        """
        if object_id not in self._tree:
            raise ValueError("an object that is no part of the reply")
        if check_object(object_id, content) != self._tree[object_id]:
            raise ValueError("an object with other children than announced")
        with self._lock:
            if self._file.closed:  # withdrawn while the object came
                raise KeyError(self.reply_id)
            if object_id in self._places:
                return  # sent again, since our answer got lost
            if self._size + len(content) > self._most_bytes:
                raise ValueError("a reply larger than it may be")
            self._file.seek(self._size)
            self._file.write(content)
            self._places[object_id] = self._size, len(content)
            self._size += len(content)

    def read(self, object_id: str) -> bytes:
        """An object that has come; raises KeyError for any other."""
        start, length = self._places[object_id]
        with self._lock:
            self._file.seek(start)
            return self._file.read(length)

    def close(self) -> None:
        """Give the disk space back."""
        with self._lock:
            self._file.close()


@dataclass(frozen=True, slots=True)
class _Past:
    """Names of an instruction and its objects, and of those of its reply, which the site chose."""

    asked: frozenset[str]
    answered: frozenset[str]


@dataclass(slots=True)
class _Box:
    """One site's."""

    heard_s: float
    posted: Posted | None = None
    upload: Upload | None = None
    pulls: int = 0  # asked so far; of two that wait, the younger is answered
    here: bool = False  # has called since the server began, and not said that it leaves
    past: deque[_Past] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    from_before: int = 0  # calls that may have been about what an earlier server asked

    @property
    def waits(self) -> Posted | None:
        """The instruction that is still to be answered."""
        answered = self.upload is not None and not self.upload.missing
        return None if answered else self.posted

    def was_asked(self, name: str) -> bool:
        """Whether an instruction of this box, now or before, has that name or such an object."""
        posted = self.posted
        now = posted is not None and (name == posted.message_id or name in posted.objects)
        return now or any(name in past.asked for past in self.past)


@dataclass
class Mailboxes:
    """All sites' boxes; safe to use from many threads."""

    folder: Path  # where replies wait
    _boxes: dict[str, _Box] = field(default_factory=dict)
    _news: threading.Condition = field(default_factory=threading.Condition)
    _began_s: float = field(default_factory=time.monotonic)
    _closed: bool = False
    bytes_up: int = 0  # of replies that came whole
    replies: int = 0
    bytes_down: int = 0

    def post(self, site: str, posted: Posted) -> None:
        """Put an instruction into a site's box; what was in it is withdrawn."""
        with self._news:
            self._empty(self._box(site))
            self._box(site).posted = posted
            self._news.notify_all()

    def withdraw(self, site: str) -> None:
        """Take back what was asked of a site; an answer would come too late."""
        with self._news:
            self._empty(self._box(site))

    def wait_for_post(self, site: str, *, timeout_s: float) -> Posted | None:
        """The instruction that a site is to answer, as soon as there is one."""
        box, end = self._box(site), time.monotonic() + timeout_s
        with self._news:
            box.pulls += 1
            turn = box.pulls
            self._news.notify_all()  # an older call of this site gives way
            self._news.wait_for(
                lambda: box.waits is not None or box.pulls != turn or self._closed,
                timeout=max(0.0, end - time.monotonic()),
            )
            return box.waits if box.pulls == turn and not self._closed else None

    def posted(self, site: str, message_id: str | None = None) -> Posted:
        """What was asked of a site; raises KeyError where it is not, or no longer, that."""
        posted = self._box(site).posted
        if posted is None or message_id not in (None, posted.message_id):
            raise KeyError(site)
        return posted

    def count_down(self, n_bytes: int) -> None:
        """So many bytes go to a site."""
        with self._news:
            self.bytes_down += n_bytes

    def begin_reply(
        self, site: str, message_id: str, reply_id: str, tree: Mapping[str, tuple[str, ...]]
    ) -> list[str]:
        """Expect a reply to what was asked of a site; returns the objects that are missing.

        Raises:
            KeyError: that was not, or is no longer, asked of it.
            ValueError: it has answered already, or the reply has too many objects.
        """
        with self._news:
            box, posted = self._box(site), self.posted(site, message_id)
            if box.upload is None or box.upload.reply_id != reply_id:
                if box.upload is not None and not box.upload.missing:
                    raise ValueError("a second reply")
                upload = Upload(
                    reply_id, tree, most_bytes=posted.most_reply_bytes, folder=self.folder
                )
                self._drop_upload(box)
                box.upload = upload
            return box.upload.missing

    def add(self, site: str, object_id: str, content: bytes) -> None:
        """An object of a site's reply.

        Raises:
            KeyError: no reply of this site is expected.
            ValueError: the object is none of the reply's.
        """
        upload = self._box(site).upload
        if upload is None:
            raise KeyError(site)
        upload.add(object_id, content)
        if not upload.missing:
            with self._news:
                self._news.notify_all()

    def take(
        self, message_ids: Collection[str], *, timeout_s: float
    ) -> tuple[str, Posted, Upload] | None:
        """A site, what it was asked, and its whole reply, to be closed then; None: not yet."""

        def found() -> str | None:
            return next(
                (site for site in sorted(self._boxes) if self._answered(site, message_ids)), None
            )

        with self._news:
            site = self._news.wait_for(found, timeout=timeout_s)
            if site is None:
                return None
            box = self._box(site)
            posted, upload = box.posted, box.upload
            assert posted is not None
            assert upload is not None
            self._remember(box)
            box.posted = box.upload = None
            self.replies += 1
            self.bytes_up += upload.size
            return site, posted, upload

    def is_late(self, site: str, *, asked: str) -> bool:
        """Whether a message or object of this name was for the site, and no longer is.

        Else the site was never asked that, as far as this server can know.
        """
        box = self._box(site)
        with self._news:
            return box.was_asked(asked) or self._is_from_before(box, asked)

    def is_late_reply(self, site: str, object_id: str) -> bool:
        """Whether an object of this name was of a reply of the site's that is no longer wanted."""
        box = self._box(site)
        with self._news:
            known = any(object_id in past.answered for past in box.past)
            return known or self._is_from_before(box, object_id)

    def _is_from_before(self, box: _Box, name: str) -> bool:
        """Whether an earlier server may have asked that, of a site that has asked this for nothing.

        It holds one reply, so it can be late with it only a few times.
        """
        others = [other for other in list(self._boxes.values()) if other is not box]
        if box.pulls or any(other.was_asked(name) for other in others):
            return False
        box.from_before += 1
        return box.from_before <= _REMEMBERED

    def hear(self, site: str) -> bool:
        """A site has called; returns whether it is new, or had left."""
        box = self._box(site)
        first, box.here, box.heard_s = not box.here, True, time.monotonic()
        return first

    def leave(self, site: str) -> None:
        """A site says that it stops; what it was asked waits for its return."""
        self._box(site).here = False

    def silent_s(self, site: str) -> float:
        """Seconds since a site called last, or since the server began."""
        return time.monotonic() - self._box(site).heard_s

    def here(self) -> tuple[str, ...]:
        """The sites that have called since the server began and haven't left, by name."""
        return tuple(sorted(site for site, box in list(self._boxes.items()) if box.here))

    def waiting(self) -> int:
        """How many sites have an instruction that isn't answered."""
        return sum(box.waits is not None for box in list(self._boxes.values()))

    def close(self) -> None:
        """Let every call that waits go, and forget what is in the boxes."""
        with self._news:
            self._closed = True
            for box in self._boxes.values():
                self._empty(box)
            self._news.notify_all()

    def _box(self, site: str) -> _Box:
        return self._boxes.setdefault(site, _Box(heard_s=self._began_s))

    def _answered(self, site: str, message_ids: Collection[str]) -> bool:
        box = self._box(site)
        return (
            box.posted is not None
            and box.posted.message_id in message_ids
            and box.upload is not None
            and not box.upload.missing
        )

    def _remember(self, box: _Box) -> None:
        """Keep the names of what the site was asked, and of what it answered."""
        if box.posted is not None:  # without, there is no reply either
            answered = frozenset() if box.upload is None else box.upload.names
            asked = frozenset({box.posted.message_id, *box.posted.objects})
            box.past.append(_Past(asked, answered))

    def _empty(self, box: _Box) -> None:
        self._remember(box)
        box.posted = None
        self._drop_upload(box)

    def _drop_upload(self, box: _Box) -> None:
        if box.upload is not None:
            box.upload.close()
        box.upload = None
