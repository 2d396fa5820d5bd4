"""The rounds of a study on a Grid whose sites misbehave in every way that the server must stand."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.supercore.task_identity import TaskIdentity

from client.statement import sign
from common.chain import Head
from common.config import Study, Wire, load_study, parse
from common.errors import REFUSAL_SENTENCES, RefusalCode, RunFailed
from common.messages import (
    QUERY,
    UNREACHABLE,
    Reply,
    decode_instruction,
    decode_question,
    encode_refusal,
    encode_reply,
    encode_statement,
    with_head,
)
from common.models import Layout
from common.signed import public_hex
from common.statement import ReceiptsHead, Statement, read_statement
from server import rounds
from server.checkpoint import Checkpoint, last_checkpoint, read_history
from server.exchange import Federation
from server.legs import legs_of
from server.presence import Waiting, tell, told
from server.rounds import run_rounds

SIZE = 3
NODES = {11: "east", 12: "north", 13: "west"}
PATIENT = "Mustermann^Erika"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))

Site = Callable[[Message], Message | None]


@pytest.fixture(autouse=True)
def _in_a_flower_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages can only be made by somebody."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class FakeGrid:
    """Sites that answer at once, in any order, as Flower's Grid hands their answers on."""

    def __init__(self, sites: dict[int, Site], stating: dict[int, Site]) -> None:
        self.sites = sites
        self.stating = stating
        self.sent: list[Message] = []
        self._replies: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Give each message its id and let its site answer."""
        ids = []
        for message in messages:
            self.sent.append(message)
            message.metadata.__dict__["_message_id"] = str(len(self.sent))
            ids.append(message.metadata.message_id)
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            if kind == QUERY:
                reply = self.stating.get(node, states)(message)
            else:
                reply = self.sites[node](message)
            if reply is not None:
                self._replies[message.metadata.message_id] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies to these messages that are there, the youngest message's first."""
        for message_id in sorted(message_ids, key=int, reverse=True):
            if message_id in self._replies:
                yield self._replies.pop(message_id)


def honest(message: Message) -> Message:
    """Half of the incoming weights, plus the site's own number."""
    return answer(message, decode_instruction(message.content).weights / 2)


def answer(message: Message, change: object) -> Message:
    """A reply with these weights, and the loss of a well-behaved site."""
    node = message.metadata.dst_node_id
    weights = np.asarray(change, dtype=np.float32) + np.float32(node)
    return Message(encode_reply(Reply(weights, {"loss": 0.5})), reply_to=message)


def states(message: Message, site: str | None = None) -> Message:
    """The site's signed statement on what was asked; or another site's."""
    question = decode_question(message.content)
    statement = Statement(
        site=site or NODES[message.metadata.dst_node_id],
        key=public_hex(KEY),
        study=question.study_sha256,
        fold=question.fold,
        rounds_joined=2,
        privacy=None,
        receipts=ReceiptsHead(count=0, sha256="0" * 64),
        patients=None,
        images=None,
        not_covered=(),
        fedward="1.0",
    )
    return Message(encode_statement(sign(statement, KEY)), reply_to=message)


def states_for_another(message: Message) -> Message:
    """A whole statement of a site that wasn't asked."""
    return states(message, "somewhere")


def states_nothing(message: Message) -> Message:
    """Bytes that are no statement, with a name in them."""
    return Message(encode_statement(PATIENT.encode()), reply_to=message)


def fails(message: Message) -> Message:
    """What Flower sends for a ClientApp that raised: its text holds whatever it likes."""
    return Message(Error(4, f"KeyError: {PATIENT}"), reply_to=message)


def fails_with_our_number(message: Message) -> Message:
    """A refusal code with a text that no fedward site writes."""
    code = encode_refusal(RefusalCode.DIVERGED).code
    return Message(Error(code, PATIENT), reply_to=message)


def gone(message: Message) -> Message:
    """What Flower's server itself answers for a site that is offline."""
    reply = Message(Error(3, "node unavailable"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


def silent(_message: Message) -> None:
    """A site that never answers."""


def refuses(message: Message) -> Message:
    """A fedward site that has nobody to train on."""
    return Message(encode_refusal(RefusalCode.NO_TRAINING_PATIENTS), reply_to=message)


def not_a_number(message: Message) -> Message:
    """One value of many isn't finite."""
    return answer(message, [0, np.nan, 0])


def too_long(message: Message) -> Message:
    """Weights of another model."""
    return answer(message, np.zeros(SIZE + 1))


def column(message: Message) -> Message:
    """The right number of values in another shape."""
    reply = honest(message)
    array = Array(np.zeros((SIZE, 1), dtype=np.float32))
    reply.content["weights"] = ArrayRecord({"packed": array})
    return reply


def doubles(message: Message) -> Message:
    """The right shape in another dtype."""
    reply = honest(message)
    reply.content["weights"] = ArrayRecord({"packed": Array(np.zeros(SIZE))})
    return reply


def talkative(message: Message) -> Message:
    """A record that nobody asked for."""
    reply = honest(message)
    reply.content["notes"] = ConfigRecord({"patient": PATIENT})
    return reply


def names_in_metrics(message: Message) -> Message:
    """A metric that is no metric."""
    reply = honest(message)
    reply.content["metrics"] = MetricRecord({PATIENT: 1.0})
    return reply


def no_weights(message: Message) -> Message:
    """Metrics alone."""
    return Message(encode_reply(Reply(None, {"loss": 0.5})), reply_to=message)


def study(rounds: int = 2, **federation: object) -> Study:
    """A study of so many rounds."""
    content = {
        "classes": ["dark", "bright"],
        "data": {"kind": "manifest"},
        "training": {"rounds": rounds},
        "federation": federation,
    }
    return parse(Study, content, where="test")


def run(
    out: Path,
    sites: dict[int, Site],
    wanted: Study | None = None,
    stating: dict[int, Site] | None = None,
    receipts_keys: dict[str, str] | None = None,
    approval_timeout_s: float = 0.0,
) -> Checkpoint:
    """All rounds, from zeros."""
    names = {node: NODES[node] for node in sites}
    layout = Layout(("w",), ((SIZE,),))
    federation = Federation(
        wanted or study(), 0, names, layout, out, receipts_keys or {}, approval_timeout_s
    )
    grid = FakeGrid(sites, stating or {})
    return run_rounds(grid, federation, np.zeros(SIZE, dtype=np.float32))  # type: ignore[arg-type]


BAD = {
    "a value that is not finite": (not_a_number, "not finite"),
    "too many values": (too_long, "4 values; the model has 3"),
    "another shape": (column, "one flat float32 array"),
    "another dtype": (doubles, "one flat float32 array"),
    "an extra record": (talkative, "nothing else"),
    "an unknown metric": (names_in_metrics, "must be among"),
    "no weights": (no_weights, "no weights"),
    "an exception": (fails, "the site's process failed"),
    "a code with foreign text": (fails_with_our_number, "diverged"),
    "a site that is offline": (gone, "the site's process failed"),
    "a refusal": (refuses, "no-training-patients"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_reply_is_left_out_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    """The result is that of the sites that took part, and the history says who didn't and why.

    What a site's error or record says besides reaches neither the history nor the server's log.
    """
    misbehaves, reason = BAD[bad]
    with caplog.at_level(logging.DEBUG):
        found = run(tmp_path / "a", {11: honest, 12: misbehaves, 13: honest})
    others = run(tmp_path / "b", {11: honest, 13: honest})
    assert found.weights.tobytes() == others.weights.tobytes()
    training = read_history(tmp_path / "a" / "history.jsonl")[:2]
    for line in training:
        assert line["joined"] == ["east", "west"]
        assert list(line["left_out"]) == ["north"]
        assert reason in line["left_out"]["north"]
    assert PATIENT not in (tmp_path / "a" / "history.jsonl").read_text() + caplog.text
    assert "without north" in caplog.text


def test_every_refusal_is_told_in_our_own_words(tmp_path: Path) -> None:
    """Each code of the closed list arrives as the code and its fixed sentence."""
    for code in RefusalCode:

        def refuse(message: Message, code: RefusalCode = code) -> Message:
            return Message(encode_refusal(code), reply_to=message)

        out = tmp_path / code.value
        run(out, {11: honest, 12: refuse})
        left_out = read_history(out / "history.jsonl")[0]["left_out"]
        assert left_out == {"north": f"{code.value}: {REFUSAL_SENTENCES[code]}"}


def test_a_site_that_never_answers_does_not_hold_the_others(tmp_path: Path) -> None:
    """A round closes at its deadline without the missing."""
    found = run(tmp_path / "a", {11: honest, 12: silent, 13: honest}, study(round_timeout_s=0.1))
    others = run(tmp_path / "b", {11: honest, 13: honest})
    assert found.weights.tobytes() == others.weights.tobytes()
    line = read_history(tmp_path / "a" / "history.jsonl")[0]
    assert line["left_out"] == {"north": "no reply before the round's deadline"}


def test_too_few_replies_stop_the_study(tmp_path: Path) -> None:
    """Fewer accepted replies than the minimum: it says who and why, and writes no round."""
    sites: dict[int, Site] = {11: honest, 12: refuses, 13: not_a_number}
    with pytest.raises(RunFailed) as failure:
        run(tmp_path, sites, study(min_sites=2))
    text = str(failure.value)
    for expected in (
        "round 1",
        "1 accepted",
        "needs 2",
        "north: no-training-patients",
        "west: bad",
    ):
        assert expected in text
    assert last_checkpoint(tmp_path / "checkpoints", study_sha256=study(min_sites=2).sha256) is None


def approves_when_asked(times: int, asked: list[int]) -> Site:
    """A site whose steward needs so many askings; writes down each."""

    def answer(message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        asked.append(node)
        if asked.count(node) < times:
            return Message(encode_refusal(RefusalCode.NOT_APPROVED), reply_to=message)
        return honest(message)

    return answer


def away(message: Message) -> Message:
    """What the link answers for a site that isn't there."""
    return Message(Error(UNREACHABLE, ""), reply_to=message)


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long before asking again."""
    monkeypatch.setattr(rounds, "_ASK_AGAIN_S", (0.01, 0.01))


@pytest.mark.usefixtures("_at_once")
def test_stewards_are_waited_for(tmp_path: Path) -> None:
    """Asked again are those who may still join; the result is as if all had at once."""
    asked: list[int] = []
    watched: list[Waiting | None] = []  # when west is asked

    def away_at_first(message: Message) -> Message:
        asked.append(13)
        watched.append(told(tmp_path / "a"))
        return away(message) if asked.count(13) == 1 else honest(message)

    sites = {
        11: approves_when_asked(1, asked),
        12: approves_when_asked(4, asked),
        13: away_at_first,
    }
    wanted = study(min_sites=3, rounds=1)
    began = time.time()
    (tmp_path / "a").mkdir()
    tell(tmp_path / "a", Waiting(9, {}, until=began + 1000))  # by a server that was killed
    found = run(tmp_path / "a", sites, wanted, approval_timeout_s=60)
    assert watched[0] is watched[-1] is None
    assert watched[1] is not None
    assert watched[1].missing == 2
    assert watched[1].sites == {"north": "has not approved the study", "west": "not reachable"}
    assert 0 < watched[1].until - began - 60 < 30
    in_the_round = asked[:-3]  # the rest is the closing evaluation
    assert [in_the_round.count(node) for node in (11, 12, 13)] == [1, 4, 2]
    at_once = run(tmp_path / "b", dict.fromkeys(sites, honest), wanted)
    assert found.weights.tobytes() == at_once.weights.tobytes()
    (line, _) = read_history(tmp_path / "a" / "history.jsonl")
    assert (line["joined"], line["left_out"]) == (["east", "north", "west"], {})


@pytest.mark.parametrize("folds", ["null", "2"])
def test_a_legs_run_directory_is_that_of_all(tmp_path: Path, tiny: Path, folds: str) -> None:
    """Whom a fold waits for is told where the run is watched."""
    wanted = load_study(tiny / "study.yaml", [f"data.folds={folds}"])
    for fold, out in legs_of(wanted, tmp_path).items():
        assert Federation(wanted, fold, {}, Layout((), ()), out).run_dir == tmp_path


@pytest.mark.usefixtures("_at_once")
def test_training_is_no_waiting(tmp_path: Path) -> None:
    """A round of which others take longer than the bound still asks who has approved since."""

    def slow(message: Message) -> Message:
        time.sleep(0.2)
        return honest(message)

    sites = {11: slow, 12: approves_when_asked(3, [])}
    run(tmp_path, sites, study(min_sites=2, rounds=1), approval_timeout_s=0.1)
    (line, _) = read_history(tmp_path / "history.jsonl")
    assert line["joined"] == ["east", "north"]


def test_waiting_is_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round's seconds are those of its work, by which a watcher tells when the study ends."""
    monkeypatch.setattr(rounds, "_ASK_AGAIN_S", (0.5, 0.5))
    run(tmp_path, {11: approves_when_asked(3, [])}, study(rounds=1), approval_timeout_s=60)
    (line, _) = read_history(tmp_path / "history.jsonl")
    assert line["seconds"] < 0.5


@pytest.mark.usefixtures("_at_once")
def test_who_is_away_when_the_last_steward_approves_is_waited_for(tmp_path: Path) -> None:
    """A reboot in that moment doesn't end the study."""
    asked: list[int] = []

    def away_once(message: Message) -> Message:
        asked.append(13)
        if asked.count(13) == 1:
            return Message(encode_refusal(RefusalCode.NOT_APPROVED), reply_to=message)
        return away(message) if asked.count(13) < 4 else honest(message)

    sites = {11: honest, 13: away_once}
    run(tmp_path, sites, study(min_sites=2, rounds=1), approval_timeout_s=60)
    assert asked.count(13) == 5  # the last is the closing evaluation


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize(
    ("others", "min_sites", "timeout_s"),
    [
        ({}, 2, 0.0),  # as in a simulation
        ({}, 2, 0.05),  # they never decide
        ({12: refuses, 13: refuses}, 2, 60.0),  # with everybody's approval there are still too few
        ({11: refuses, 12: refuses, 13: away}, 1, 60.0),  # all whose stewards were asked said no
    ],
)
def test_nobody_is_waited_for_in_vain(
    tmp_path: Path, others: dict[int, Site], min_sites: int, timeout_s: float
) -> None:
    """The round fails where approval can't come in time, or wouldn't be enough."""
    never = approves_when_asked(10**6, [])
    sites: dict[int, Site] = dict.fromkeys((11, 12, 13), never) | others
    begun = time.monotonic()
    with pytest.raises(RunFailed, match="0 accepted"):
        run(tmp_path, sites, study(min_sites=min_sites), approval_timeout_s=timeout_s)
    assert time.monotonic() - begun < 30


def test_a_study_that_diverged_is_not_told_to_resume(tmp_path: Path) -> None:
    """It would come to the same weights; what helps is another learning rate."""

    def diverges(message: Message) -> Message:
        return Message(encode_refusal(RefusalCode.DIVERGED), reply_to=message)

    with pytest.raises(RunFailed, match="learning rate") as failure:
        run(tmp_path, {11: diverges})
    assert "--resume" not in str(failure.value)


def test_nobody_at_all_stops_the_study(tmp_path: Path) -> None:
    """A round without a single accepted reply fails even where one would do."""
    with pytest.raises(RunFailed, match="0 accepted"):
        run(tmp_path, {11: refuses, 12: fails})


@pytest.mark.parametrize("wire", ["bfloat16", "int8"])
def test_a_short_wire_brings_the_difference(tmp_path: Path, wire: Wire) -> None:
    """Sites send what they have added, exactly; in fewer bytes, and in no other form."""

    def adds(message: Message) -> Message:
        update = np.full(SIZE, 0.5, dtype=np.float32)
        reply = Reply(update, {})
        return Message(encode_reply(reply, wire=wire), reply_to=message)

    found = run(tmp_path, {11: adds, 12: honest, 13: adds}, study(3, wire=wire))
    assert found.weights.tolist() == [1.5] * SIZE
    line = read_history(tmp_path / "history.jsonl")[0]
    assert line["joined"] == ["east", "west"]
    assert "one flat" in line["left_out"]["north"]


def test_average_uses_the_agreed_weights(tmp_path: Path) -> None:
    """The study's weights decide how much each site counts; the sites have no say in it."""
    found = run(tmp_path, {11: honest, 12: honest}, study(1, weights={"north": 3.0}))
    assert found.weights.tolist() == [pytest.approx((11 + 3 * 12) / 4)] * SIZE


def test_history_has_one_line_a_round_and_a_closing_one(tmp_path: Path) -> None:
    """Rounds are counted from 1, the closing line scores the last weights, bytes are counted."""
    final = run(tmp_path, {11: honest, 12: honest}, study(3))
    lines = read_history(tmp_path / "history.jsonl")
    assert [line["round"] for line in lines] == [1, 2, 3, 3]
    assert [line.get("closing", False) for line in lines] == [False, False, False, True]
    assert final.round_number == 3
    for line in lines:
        assert line["metrics"] == {"east": {"loss": 0.5}, "north": {"loss": 0.5}}
        assert line["bytes_down"] > 2 * 4 * SIZE
        assert line["bytes_up"] >= 2 * 4 * SIZE


def test_a_pause_is_no_part_of_a_rounds_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the grid waited before it asked anybody is not counted."""
    push = FakeGrid.push_messages

    def paused(self: Any, messages: Iterable[Message]) -> list[str]:
        time.sleep(0.4)
        self.paused_s += 0.4
        return push(self, messages)

    monkeypatch.setattr(FakeGrid, "paused_s", 0.0, raising=False)
    monkeypatch.setattr(FakeGrid, "push_messages", paused)
    run(tmp_path, {11: honest, 12: honest}, study(1))
    assert 0 <= read_history(tmp_path / "history.jsonl")[0]["seconds"] < 0.3


def test_each_site_hears_the_last_head_that_it_has_shown(tmp_path: Path) -> None:
    """A site's receipts go on from what the server remembers, after a restart of the server too."""
    heard: list[tuple[int, Head | None]] = []

    def shows(message: Message) -> Message:
        instruction = decode_instruction(message.content)
        heard.append((instruction.round_number, instruction.known_head))
        reply = honest(message)
        shown = Head(instruction.round_number, f"{instruction.round_number:064x}")
        return Message(with_head(reply.content, shown), reply_to=message)

    def dies(message: Message) -> Message:
        if decode_instruction(message.content).round_number == 2:
            raise Killed
        return honest(message)

    with pytest.raises(Killed):
        run(tmp_path, {11: shows, 12: dies})
    run(tmp_path, {11: shows, 12: honest})
    first, second = Head(1, f"{1:064x}"), Head(2, f"{2:064x}")
    assert heard == [(1, None), (2, first), (2, first), (3, second)]


STATEMENTS = {
    "another site's": (states_for_another, "something else"),
    "no statement": (states_nothing, "bad reply"),
    "a refusal": (refuses, "no-training-patients"),
    "no answer": (silent, "no reply"),
}


@pytest.mark.parametrize("bad", STATEMENTS)
def test_statements_are_kept_as_they_were_signed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    """Each site's statement lies in its folder; the history says who gave none, and why."""
    misbehaves, reason = STATEMENTS[bad]
    sites: dict[int, Site] = {11: honest, 12: honest}
    wanted = study(round_timeout_s=0.1)
    run(tmp_path, sites, wanted, stating={12: misbehaves})
    kept = read_statement((tmp_path / "sites" / "east" / "statement.json").read_bytes())
    assert (kept.site, kept.study, kept.fold) == ("east", wanted.sha256, 0)
    assert not (tmp_path / "sites" / "north").exists()
    missing = read_history(tmp_path / "history.jsonl")[-1]["without_statement"]
    assert list(missing) == ["north"]
    assert reason in missing["north"]
    assert PATIENT not in caplog.text


class Killed(BaseException):
    """The process ends in the middle of something."""


def killed_in_round(number: int) -> Site:
    """A grid that dies when it instructs its site in this round."""

    def site(message: Message) -> Message:
        if decode_instruction(message.content).round_number == number:
            raise Killed
        return honest(message)

    return site


def facts(folder: Path) -> list[dict[str, object]]:
    """The history without its times."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_killed_study_goes_on_to_the_same_weights(tmp_path: Path, number: int) -> None:
    """Killed in any round, or in the closing evaluation (5), it resumes to the same bits."""
    wanted = study(4)
    with pytest.raises(Killed):
        run(tmp_path / "a", {11: honest, 12: killed_in_round(number)}, wanted)
    assert len(read_history(tmp_path / "a" / "history.jsonl")) == number - 1
    resumed = run(tmp_path / "a", {11: honest, 12: honest}, wanted)
    undisturbed = run(tmp_path / "b", {11: honest, 12: honest}, wanted)
    assert resumed.weights.tobytes() == undisturbed.weights.tobytes()
    assert facts(tmp_path / "a") == facts(tmp_path / "b")


def test_a_round_is_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the history's line and its checkpoint, the round is run and told once."""
    write = rounds.write_checkpoint

    def dies(folder: Path, checkpoint: Checkpoint, *, study_sha256: str) -> None:
        if checkpoint.round_number == 2:
            raise Killed
        write(folder, checkpoint, study_sha256=study_sha256)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "write_checkpoint", dies)
        with pytest.raises(Killed):
            run(tmp_path / "a", {11: honest, 12: honest}, study(3))
    assert len(facts(tmp_path / "a")) == 2
    resumed = run(tmp_path / "a", {11: honest, 12: honest}, study(3))
    undisturbed = run(tmp_path / "b", {11: honest, 12: honest}, study(3))
    assert resumed.weights.tobytes() == undisturbed.weights.tobytes()
    assert facts(tmp_path / "a") == facts(tmp_path / "b")


def test_a_finished_study_asks_nobody(tmp_path: Path) -> None:
    """Resuming what is done changes neither weights nor history, and needs no site."""
    first = run(tmp_path, {11: honest, 12: honest})
    before = facts(tmp_path)
    again = run(tmp_path, {11: killed_in_round(3), 12: killed_in_round(3)})
    assert again.weights.tobytes() == first.weights.tobytes()
    assert facts(tmp_path) == before


def test_a_study_killed_among_its_statements_only_asks_for_them(tmp_path: Path) -> None:
    """Sites that have stated forget their replies: the closing evaluation isn't asked for again."""

    def dies(message: Message) -> Message:
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "a", {11: honest, 12: honest}, stating={12: dies})
    assert "without_statement" not in read_history(tmp_path / "a" / "history.jsonl")[-1]
    run(tmp_path / "a", {11: killed_in_round(3), 12: killed_in_round(3)})
    run(tmp_path / "b", {11: honest, 12: honest})
    assert facts(tmp_path / "a") == facts(tmp_path / "b")
    assert facts(tmp_path / "a")[-1]["without_statement"] == {}


def test_a_statement_is_by_the_registered_key(tmp_path: Path) -> None:
    """Signed by another key than the site's registered one it is no statement of the site's."""
    keys = {"east": public_hex(KEY), "north": "f" * 64}
    run(tmp_path, {11: honest, 12: honest}, receipts_keys=keys)
    missing = read_history(tmp_path / "history.jsonl")[-1]["without_statement"]
    assert list(missing) == ["north"]
    assert "another key" in missing["north"]
    assert (tmp_path / "sites" / "east" / "statement.json").is_file()
    assert not (tmp_path / "sites" / "north").exists()
