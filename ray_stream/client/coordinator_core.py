"""Reaching a group's coordinator, whichever actor it is: found, asked, found again.

Owns: requests under way to it and to the controller, their deadlines, when to try again. Refuses:
what requests mean (`membership_core`), clocks, transport, randomness.

The coordinator is the leader of the group's partition of the internal topic (`groups.routing`). A
request whose outcome is unknown is sent again as it is: each of them may be repeated.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ray_stream.client.membership_events import Effect, Request, Send
from ray_stream.client.topics import TopicDirectory
from ray_stream.config import CONSUMER_OFFSETS_TOPIC, COORDINATOR_PARTITIONS
from ray_stream.errors import (
    CoordinatorNotAvailableError,
    OutcomeUnknownError,
    RayStreamError,
)
from ray_stream.groups.routing import partition_of
from ray_stream.metadata.commands import CreateTopic
from ray_stream.rpc.messages import MetadataRequest, MetadataResponse

BACKOFF_MAX_MS = 1_000
ATTEMPT_MS = 3_000
"""How long an answer that should come at once is waited for."""
CREATE_MS = 30_000
_NO_ANSWER = OutcomeUnknownError("no answer came in time")


class Errand:
    """A request that has to reach the coordinator, until it is answered, dropped or given up."""

    __slots__ = (
        "attempts",
        "give_up_ms",
        "last_error",
        "purpose",
        "request",
        "request_id",
        "retry_at_ms",
        "sent_ms",
        "wait_ms",
        "was_sent",
    )

    def __init__(
        self, request: Request, purpose: object, give_up_ms: int | None, wait_ms: int
    ) -> None:
        self.request = request
        self.purpose = purpose
        """Whose answer this is."""
        self.give_up_ms = give_up_ms
        self.wait_ms = wait_ms
        """How long one attempt waits for its answer."""
        self.request_id: int | None = None
        """Of the attempt that is under way."""
        self.was_sent = False
        self.sent_ms = 0
        self.attempts = 0
        self.retry_at_ms = 0
        self.last_error: RayStreamError | None = None


class _Question(NamedTuple):
    """What the controller was asked."""

    request_id: int
    deadline_ms: int
    topics: tuple[str, ...] | None
    """None: to make the internal topic."""


class CoordinatorLink:
    """One client's way to one group's coordinator."""

    def __init__(
        self,
        group: str,
        topic_id: str,
        backoff_ms: int,
        directory: TopicDirectory,
        other_topics: Callable[[], Sequence[str]],
    ) -> None:
        """Know nothing yet.

        Args:
            group: whose coordinator.
            topic_id: for the internal topic, should this client be the one that makes it.
            backoff_ms: between attempts, doubled up to a second.
            directory: what is known of topics; kept up to date here.
            other_topics: more of them to ask about.
        """
        self._group = group
        self._partition = partition_of(group, COORDINATOR_PARTITIONS)
        self._topic_id = topic_id
        self._backoff_ms = backoff_ms
        self._directory = directory
        self._other_topics = other_topics
        self._errands: list[Errand] = []
        self._last_request_id = 0
        self._question: _Question | None = None
        self._makes_topic = False
        self._wanted = True
        self._not_before_ms = 0
        self._attempts = 0
        self.last_error: RayStreamError | None = None
        """What went wrong last on the way to the coordinator."""

    def new_request_id(self) -> int:
        """One for any request of this client."""
        self._last_request_id += 1
        return self._last_request_id

    def want_metadata(self) -> None:
        """What is known of topics seems to be out of date."""
        self._wanted = True

    def backoff_ms(self, attempts: int) -> int:
        """How long to wait after so many failures."""
        return min(self._backoff_ms << min(attempts, 10), BACKOFF_MAX_MS)

    # --- errands ---------------------------------------------------------------------------------

    def ask(
        self,
        request: Request,
        purpose: object,
        *,
        give_up_ms: int | None = None,
        wait_ms: int = ATTEMPT_MS,
    ) -> Errand:
        """Have the coordinator asked, with the next `plan`."""
        errand = Errand(request, purpose, give_up_ms, wait_ms)
        self._errands.append(errand)
        return errand

    def drop(self, errand: Errand) -> None:
        """Its answer is not wanted any more, if it has not come yet."""
        if errand in self._errands:
            self._errands.remove(errand)

    def answered(
        self, request_id: int, answer: object, now_ms: int
    ) -> tuple[Errand, object] | None:
        """Take an answer; returns the errand that it ends, with a result or a final error."""
        if self._question is not None and self._question.request_id == request_id:
            self._take_metadata(answer, now_ms)
            return None
        for errand in self._errands:
            if errand.request_id == request_id:
                return self._take(errand, answer, now_ms)
        return None

    def _take(self, errand: Errand, answer: object, now_ms: int) -> tuple[Errand, object] | None:
        errand.request_id = None
        if isinstance(answer, RayStreamError) and answer.retriable:
            self.last_error = errand.last_error = answer
            errand.retry_at_ms = now_ms + self.backoff_ms(errand.attempts)
            errand.attempts += 1
            self._wanted = True
            return None
        self._attempts = 0
        self.last_error = None
        self._errands.remove(errand)
        return errand, answer

    def expired(self, now_ms: int) -> list[Errand]:
        """Errands whose time is over; attempts without an answer are made again."""
        over = []
        for errand in list(self._errands):
            if errand.give_up_ms is not None and now_ms >= errand.give_up_ms:
                errand.last_error = errand.last_error or self.last_error
                self._errands.remove(errand)
                over.append(errand)
            elif errand.request_id is not None and now_ms >= errand.sent_ms + errand.wait_ms:
                self._take(errand, _NO_ANSWER, now_ms)
        if self._question is not None and now_ms >= self._question.deadline_ms:
            self._take_metadata(_NO_ANSWER, now_ms)
        return over

    # --- what to send ----------------------------------------------------------------------------

    def plan(self, now_ms: int) -> list[Effect]:
        """What to send now."""
        effects: list[Effect] = []
        host = self._host()
        for errand in self._errands:
            if errand.request_id is None and errand.retry_at_ms <= now_ms:
                if not host:
                    self._wanted = True
                    break
                errand.request_id = self.new_request_id()
                errand.sent_ms = now_ms
                errand.was_sent = True
                effects.append(Send(errand.request_id, host, errand.request))
        needed = self._errands or self._other_topics()
        if needed and self._wanted and self._question is None and now_ms >= self._not_before_ms:
            effects.append(self._ask_controller(now_ms))
        return effects

    def next_deadline_ms(self, now_ms: int) -> int | None:
        """When `plan` or `expired` has something to do though nothing arrives."""
        due = [one.give_up_ms for one in self._errands if one.give_up_ms is not None]
        for errand in self._errands:
            if errand.request_id is not None:
                due.append(errand.sent_ms + errand.wait_ms)
            elif errand.retry_at_ms > now_ms:
                due.append(errand.retry_at_ms)
        if self._question is not None:
            due.append(self._question.deadline_ms)
        elif self._wanted and (self._errands or self._other_topics()):
            due.append(self._not_before_ms)
        return min(due, default=None)

    def _host(self) -> str:
        address = self._directory.address(CONSUMER_OFFSETS_TOPIC, self._partition)
        return address.host if address is not None else ""

    def _ask_controller(self, now_ms: int) -> Send:
        self._wanted = False
        request_id = self.new_request_id()
        if self._makes_topic:
            self._makes_topic = False
            self._question = _Question(request_id, now_ms + CREATE_MS + ATTEMPT_MS, None)
            # The server makes the internal topic as it always is, whatever is asked for.
            create = CreateTopic(
                name=CONSUMER_OFFSETS_TOPIC,
                topic_id=self._topic_id,
                partitions=COORDINATOR_PARTITIONS,
                replication_factor=1,
                exist_ok=True,
                dedicated=True,
                options={},
                timeout_ms=CREATE_MS,
            )
            return Send(request_id, "", create)
        topics = (CONSUMER_OFFSETS_TOPIC, *self._other_topics())
        self._question = _Question(request_id, now_ms + ATTEMPT_MS, topics)
        return Send(request_id, "", MetadataRequest(list(topics)))

    def _take_metadata(self, answer: object, now_ms: int) -> None:
        question, self._question = self._question, None
        assert question is not None, "only answers to a question come here"
        before = self._host()
        at_once = False
        if isinstance(answer, RayStreamError):
            self.last_error = answer
        elif question.topics is None:
            at_once = True  # made, or there: look where it is
        elif isinstance(answer, MetadataResponse):
            self._directory.update(answer, question.topics)
            at_once = self._makes_topic = self._directory.is_missing(CONSUMER_OFFSETS_TOPIC)
        self._attempts = 0 if at_once else self._attempts + 1
        self._not_before_ms = now_ms + (0 if at_once else self.backoff_ms(self._attempts))
        host = self._host()
        if host and host != before:
            self._begin_anew()
        elif not host:
            self._wanted = True
            if not at_once and not isinstance(answer, RayStreamError):
                self.last_error = self._nobody_leads()

    def _begin_anew(self) -> None:
        """There is another actor; whoever was asked before coordinates no more."""
        for errand in self._errands:
            errand.retry_at_ms = 0
            errand.request_id = None

    def _nobody_leads(self) -> CoordinatorNotAvailableError:
        return CoordinatorNotAvailableError(
            f"nothing leads {CONSUMER_OFFSETS_TOPIC}-{self._partition}, which keeps group "
            f"{self._group!r}: its actor or node is down, and is being replaced"
        )
