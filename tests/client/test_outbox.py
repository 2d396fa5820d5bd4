"""Replies that outlive kills, full disks and restarts, and are the same bytes when asked again."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common.serde import recorddict_to_proto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import client.state
from client.gate import Passed, pass_reply
from client.outbox import Outbox, open_outbox
from client.policy import Key
from client.state import lock_state, write_private
from common.config import Metric
from common.errors import BadInput, RefusalCode, SiteRefusal
from common.messages import EVALUATE, TRAIN, Reply
from common.models import Layout

RELEASED: tuple[Metric, ...] = ("loss", "accuracy")
KEY = Key("5" * 64, TRAIN, 0, 3, "a" * 64, "d" * 64)
REPLY = Reply(np.linspace(-1, 1, 100, dtype=np.float32), {"loss": 0.1, "accuracy": 0.7})


def passed(reply: Reply = REPLY) -> Passed:
    """The reply after the gate."""
    layout = None if reply.weights is None else Layout(("w",), (reply.weights.shape,))
    return pass_reply(reply, layout=layout, released=RELEASED, max_bytes=10**6)


def wire(reply: Reply | None) -> bytes:
    """The bytes that leave."""
    assert reply is not None
    found: bytes = recorddict_to_proto(passed(reply).content).SerializeToString()
    return found


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    """An empty one."""
    return open_outbox(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.none() | arrays(np.float32, st.integers(1, 50), elements=st.floats(-1000, 1000, width=32)),
    st.dictionaries(st.sampled_from(RELEASED), st.floats(0, 1), max_size=2),
)
def test_asked_again_the_bytes_are_the_same(outbox: Outbox, flat: Any, metrics: Any) -> None:
    """What was stored, read by another process, passes the gate as the very same bytes."""
    reply = Reply(flat, metrics)
    outbox.store(KEY, passed(reply))
    again = open_outbox(outbox.folder.parent).find(KEY)
    assert wire(again) == wire(reply)
    assert passed(again or REPLY).sha256 == passed(reply).sha256


def test_a_reply_of_an_earlier_version_is_found(tmp_path: Path) -> None:
    """The form of the files stays: what was stored before an update is answered after it."""
    path = tmp_path / "outbox" / KEY.study_sha256 / f"0-3-train-{'a' * 64}-{'d' * 64}.reply"
    path.parent.mkdir(parents=True)
    path.write_bytes(
        b'{"format":1,"name":"%b","metrics":{"accuracy":"0x1.8000000000000p-1",'
        b'"loss":"0x1.0000000000000p-1"},"weights":true,"sha256":'
        b'"24f3a877db2bde58edff2b0d6a0ae33c174a3be5b6ed2b1435a2fae51c384d76"}\n'
        b"\x00\x00\x80?\x00\x00\x00\xc0" % path.name.encode()
    )
    reply = Reply(np.array([1, -2], dtype=np.float32), {"loss": 0.5, "accuracy": 0.75})
    assert wire(open_outbox(tmp_path).find(KEY)) == wire(reply)


OTHERS = [
    replace(KEY, study_sha256="6" * 64),
    replace(KEY, kind=EVALUATE),
    replace(KEY, fold=1),
    replace(KEY, round_number=4),
    replace(KEY, weights_sha256="b" * 64),
    replace(KEY, data_fingerprint="e" * 64),
]


@pytest.mark.parametrize("other", OTHERS)
def test_another_instruction_has_no_reply(outbox: Outbox, other: Key) -> None:
    """Each part of the key decides."""
    outbox.store(KEY, passed())
    assert outbox.find(other) is None
    outbox.store(other, passed(Reply(None, {"loss": 0.2})))
    assert wire(outbox.find(KEY)) == wire(REPLY)
    assert wire(outbox.find(other)) == wire(Reply(None, {"loss": 0.2}))


def test_what_was_answered_is_known_by_study_and_fold(outbox: Outbox) -> None:
    """`earlier` gives the keys as they were stored, of one study and fold."""
    for key in (KEY, *OTHERS):
        outbox.store(key, passed())
    same = {key for key in (KEY, *OTHERS) if (key.study_sha256, key.fold) == ("5" * 64, 0)}
    assert set(outbox.earlier("5" * 64, 0)) == same
    assert outbox.earlier("5" * 64, 1) == (OTHERS[2],)
    assert outbox.earlier("7" * 64, 0) == ()


def test_what_is_forgotten_was_still_answered(outbox: Outbox) -> None:
    """After a fold's end its replies are gone, no others are, and no round comes back."""
    for key in (KEY, OTHERS[0], OTHERS[2]):
        outbox.store(key, passed())
    outbox.forget(KEY.study_sha256, KEY.fold)
    assert outbox.find(KEY) is None
    assert outbox.earlier(KEY.study_sha256, 0) == (KEY,)
    assert stored(outbox, KEY).stat().st_size == 0
    assert wire(outbox.find(OTHERS[0])) == wire(outbox.find(OTHERS[2])) == wire(REPLY)


def test_replies_are_forgotten_up_to_a_round(outbox: Outbox) -> None:
    """Those of the rounds before it, however many were forgotten earlier and lie between them."""
    numbers = range(1, 9)
    keys = [replace(KEY, fold=fold, round_number=n) for fold in (0, 1) for n in numbers]
    for key in keys[:8] + keys[:7:-1]:  # a folder lists its files in one order or another
        outbox.store(key, passed())
    for before in numbers:
        for fold in (0, 1):
            outbox.forget(KEY.study_sha256, fold, before_round=before)
        assert [outbox.find(key) is not None for key in keys] == [
            key.round_number >= before for key in keys
        ]


def test_replies_of_other_data_are_those_of_patients_who_are_still_there(outbox: Outbox) -> None:
    """A reply of unchanged data is always given again; of others, if nobody in them has gone."""
    outbox.store(KEY, passed())
    today = OTHERS[5]
    assert outbox.recall(today, patients=["ann", "bob"]) is None  # nobody knows whose it is
    outbox.list_patients(KEY, ["bob", "ann"])
    assert outbox.recall(today, patients=["ann", "cat"]) is None
    for patients in (["ann", "bob"], ["ann", "bob", "cat"]):
        found = outbox.recall(today, patients=patients)
        assert found is not None
        assert found[0] == KEY
        assert wire(found[1]) == wire(REPLY)
    assert outbox.recall(KEY, patients=["ann"]) is not None


def test_the_patients_are_forgotten_with_the_last_reply(outbox: Outbox) -> None:
    """Their list goes once no reply of their data is left, in any fold."""
    for key in (KEY, OTHERS[2], OTHERS[5]):
        outbox.list_patients(key, ["ann"])
        outbox.store(key, passed())
    listed = outbox.folder / KEY.study_sha256
    outbox.forget(KEY.study_sha256, KEY.fold)
    assert [path.stem for path in listed.glob("*.patients")] == [KEY.data_fingerprint]
    outbox.forget(KEY.study_sha256, OTHERS[2].fold)
    assert list(listed.glob("*.patients")) == []


def test_a_patient_s_key_is_compared_whole(outbox: Outbox) -> None:
    """A key with a space is one key: half of it is nobody's."""
    outbox.list_patients(KEY, ["ann lee", "bob"])
    outbox.store(KEY, passed())
    assert outbox.recall(OTHERS[5], patients=["ann lee", "bob"]) is not None
    assert outbox.recall(OTHERS[5], patients=["ann", "lee", "bob"]) is None


def test_of_several_replies_that_of_today_s_data_is_given(outbox: Outbox) -> None:
    """Each data's own reply is found first, whichever of them was stored before."""
    keys = [replace(KEY, data_fingerprint=digit * 64) for digit in "0123456789"]
    for number, key in enumerate(keys):
        outbox.list_patients(key, ["ann"])
        outbox.store(key, passed(Reply(None, {"loss": float(number)})))
    for number, key in enumerate(keys):
        found = outbox.recall(key, patients=["ann"])
        assert found == (key, Reply(None, {"loss": float(number)}))


def test_patients_that_can_t_be_listed_are_a_refusal(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the list nobody could tell later whose the reply is; the site's log says why."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(client.state.os, "open", full)
    with pytest.raises(SiteRefusal) as refusal:
        outbox.list_patients(KEY, ["ann"])
    assert refusal.value.code is RefusalCode.RECORDS_DAMAGED
    (said,) = caplog.messages
    assert said.startswith("outbox: ")
    assert "No space left" in said


def stored(outbox: Outbox, key: Key) -> Path:
    """The file of a stored reply."""
    (path,) = (outbox.folder / key.study_sha256).glob(f"{key.fold}-{key.round_number}-*.reply")
    return path


def test_only_the_owner_reads_replies(outbox: Outbox) -> None:
    """Folders are 0700 and files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        outbox.store(KEY, passed())
    finally:
        os.umask(before)
    path = stored(outbox, KEY)
    modes = [p.stat().st_mode & 0o777 for p in (path, path.parent, outbox.folder)]
    assert modes == [0o600, 0o700, 0o700]


@pytest.mark.parametrize(
    "reply", [Reply(np.ones(5, dtype=np.float32), {}), Reply(None, {"loss": 0.5})]
)
def test_a_damaged_reply_is_as_good_as_none(outbox: Outbox, reply: Reply) -> None:
    """Any byte that changes, any cut and any addition is found; nothing is answered with it."""
    outbox.store(KEY, passed(reply))
    path = stored(outbox, KEY)
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]
        for damaged in (changed, whole[:place]):
            path.write_bytes(damaged)
            found = outbox.find(KEY)
            # Without its newline the line is still whole.
            assert found is None or (wire(found) == wire(reply) and place == len(whole) - 1)
    for more in (b"\0\0\0\0", b"\0"):
        path.write_bytes(whole + more)
        assert outbox.find(KEY) is None
    assert outbox.earlier(KEY.study_sha256, 0) == (KEY,)


def test_the_log_says_which_reply_is_damaged_and_why(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for content that isn't what was stored, once for what the disk doesn't give."""
    outbox.store(KEY, passed())
    path = stored(outbox, KEY)
    path.write_bytes(path.read_bytes()[:-1])
    assert outbox.find(KEY) is None
    path.unlink()
    path.mkdir()
    assert outbox.find(KEY) is None
    damaged, unread = caplog.messages
    assert "round 3 " in damaged
    assert unread.endswith(os.strerror(errno.EISDIR))


def test_a_reply_under_another_name_is_none(outbox: Outbox) -> None:
    """A file that was renamed or copied doesn't answer another instruction."""
    outbox.store(KEY, passed())
    path = stored(outbox, KEY)
    path.rename(path.with_name(path.name.replace("0-3-", "0-4-")))
    assert outbox.find(OTHERS[3]) is None


@pytest.mark.parametrize(
    "key",
    [
        replace(KEY, study_sha256="../../etc"),
        replace(KEY, kind="../x"),
        replace(KEY, kind="query"),
        replace(KEY, weights_sha256="A" * 64),
        replace(KEY, data_fingerprint=""),
        replace(KEY, fold=-1),
    ],
)
def test_a_key_is_no_path(outbox: Outbox, key: Key) -> None:
    """What is no hash or number never becomes a file's name."""
    with pytest.raises(ValueError, match="file's name"):
        outbox.find(key)
    with pytest.raises(ValueError, match="file's name"):
        outbox.store(key, passed())


def test_the_oldest_replies_make_room(outbox: Outbox) -> None:
    """Beyond the bound the oldest are emptied, but never a fold's last round."""
    size = 700  # a little less than a reply's file
    small = replace(outbox, most_bytes=3 * size + size // 2)
    other_fold = replace(KEY, fold=1, round_number=1)
    small.store(other_fold, passed())
    os.utime(stored(small, other_fold), ns=(0, 0))
    keys = [replace(KEY, round_number=number) for number in range(1, 6)]
    for number, key in enumerate(keys):
        small.store(key, passed())
        os.utime(stored(small, key), ns=(number + 1, number + 1))
    found = [key.round_number for key in keys if small.find(key) is not None]
    assert found == [4, 5]
    assert small.find(other_fold) is not None
    assert len(small.earlier(KEY.study_sha256, 0)) == 5


@pytest.mark.parametrize(("spare", "left"), [(0, [1, 3]), (1, [1, 3]), (-1, [1])])
def test_no_more_replies_are_emptied_than_are_too_many(
    outbox: Outbox, spare: int, left: list[int]
) -> None:
    """The oldest go first, to the byte; of what goes nothing is left but its name."""
    keys = [replace(KEY, round_number=number) for number in range(1, 5)]
    for key, stored_ns in zip(keys, (3, 1, 2), strict=False):
        outbox.store(key, passed())
        os.utime(stored(outbox, key), ns=(stored_ns, stored_ns))
    size = stored(outbox, KEY).stat().st_size
    replace(outbox, most_bytes=3 * size + spare).store(keys[3], passed())
    sizes = [stored(outbox, key).stat().st_size for key in keys]
    assert sizes == [size if number in [*left, 4] else 0 for number in range(1, 5)]


def test_the_room_is_used_to_the_byte(outbox: Outbox) -> None:
    """A single reply may fill it; with one byte less it is refused."""
    outbox.store(KEY, passed())
    size = stored(outbox, KEY).stat().st_size
    stored(outbox, KEY).unlink()
    with pytest.raises(SiteRefusal):
        replace(outbox, most_bytes=size - 1).store(KEY, passed())
    assert outbox.find(KEY) is None
    replace(outbox, most_bytes=size).store(KEY, passed())
    assert wire(outbox.find(KEY)) == wire(REPLY)


def test_a_bound_that_running_studies_reach_is_a_refusal(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    """What can't be stored is not sent; the site's log names the bound."""
    small = replace(outbox, most_bytes=100)
    with pytest.raises(SiteRefusal) as refusal:
        small.store(KEY, passed())
    assert refusal.value.code is RefusalCode.RECORDS_DAMAGED
    (said,) = caplog.messages
    assert "100 bytes" in said
    assert small.find(KEY) is None
    assert small.earlier(KEY.study_sha256, 0) == ()


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_full_disk_leaves_nothing_half_written(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    """A disk that is full at any step is a refusal; with room again the reply is stored."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(client.state.os, call, full)
        with pytest.raises(SiteRefusal) as refusal:
            outbox.store(KEY, passed())
    assert refusal.value.code is RefusalCode.RECORDS_DAMAGED
    (said,) = caplog.messages
    assert said.startswith("outbox: ")
    assert "No space left" in said
    assert outbox.find(KEY) is None
    assert [path for path in outbox.folder.rglob("*") if path.is_file()] == []
    outbox.store(KEY, passed())
    assert wire(outbox.find(KEY)) == wire(REPLY)


def test_a_file_is_synced_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure can't leave a name without its content, nor lose a name that was said."""
    done: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(opened: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{opened}")).name)
        sync(opened)

    def replace_(before: Path, after: Path) -> None:
        done.append(f"{before.name} -> {after.name}")
        rename(before, after)

    monkeypatch.setattr(client.state.os, "fsync", fsync)
    monkeypatch.setattr(client.state.os, "replace", replace_)
    write_private(tmp_path / "x", [b"one ", b"two"])
    assert done == [".x.partial", ".x.partial -> x", tmp_path.name]
    assert (tmp_path / "x").read_bytes() == b"one two"


CALLS = ("mkdir", "open", "write", "fsync", "replace", "close", "unlink")


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Run `work` in a process that is killed before its call `number`; whether it was."""
    child = os.fork()
    if child == 0:
        left = iter(range(number))

        def dying(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **named: Any) -> Any:
                if next(left, None) is None:
                    os.kill(os.getpid(), 9)
                return call(*args, **named)

            return counted

        for name in CALLS:
            setattr(os, name, dying(getattr(os, name)))
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, 9)
    return status == 9


def kills(work: Callable[[], None]) -> Iterator[int]:
    """Kill `work` before its first call, its second, and so on, until it lives to its end."""
    number = 0
    while killed_at(number, work):
        yield number
        number += 1


def test_a_kill_at_any_step_leaves_all_or_nothing(tmp_path: Path) -> None:
    """Killed before any of its calls, a store has happened or not; done again, it has."""
    found = []
    folders = [tmp_path / "0"]
    for number in kills(lambda: open_outbox(folders[-1]).store(KEY, passed())):
        outbox = open_outbox(folders[-1])
        left = outbox.find(KEY)
        assert left is None or wire(left) == wire(REPLY)
        assert list(outbox.folder.rglob("*.partial")) == []
        found.append(left is not None)
        outbox.store(KEY, passed())
        assert wire(outbox.find(KEY)) == wire(REPLY)
        folders.append(tmp_path / str(number + 1))
    assert len(found) >= 10
    assert found == sorted(found)  # nothing first, all later
    assert found[0] is False
    assert found[-1] is True


def test_a_kill_while_storing_again_keeps_the_first(tmp_path: Path) -> None:
    """A reply that is there is never lost while it is written once more."""
    outbox = open_outbox(tmp_path)
    outbox.store(KEY, passed())
    for _ in kills(lambda: outbox.store(KEY, passed())):
        assert wire(outbox.find(KEY)) == wire(REPLY)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second process is told so; once the first ends, even by a kill, the next one may work."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with lock_state(tmp_path):
            os.write(tell, b"1")
            signal.pause()
    try:
        os.read(told, 1)
        with pytest.raises(BadInput, match="another process"), lock_state(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for _ in range(2):
        with lock_state(tmp_path):
            pass
