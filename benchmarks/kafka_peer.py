"""Apache Kafka with its C client, as a peer: fetched by Maven, run as one node in KRaft mode.

Owns: starting, killing and ending it, and its tuning. Refuses: being a dependency of the product.
Tuned as its own users would: `TUNING` and `BROKER` say how, and stand in the file of results.
"""

import contextlib
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from machine import memory_of
from peers import BATCH_BYTES, END, LINGER_MS, TIMEOUT_S, Go

try:
    from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
    from confluent_kafka.admin import AdminClient, NewTopic
except ImportError:  # reported by `why_not`
    Producer = None

HERE = Path(__file__).parent
JARS = HERE / "kafka" / "lib"
READ_MANY = 10_000
POLL_S = 0.02
LOG4J = """rootLogger.level=WARN
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m%n
rootLogger.appenderRef.out.ref=out
"""
JAVA = ["-Xms1G", "-Xmx1G", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"]
BROKER = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "offsets.topic.replication.factor": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "group.initial.rebalance.delay.ms": 0,
    "log.segment.delete.delay.ms": 1_000,
}
PRODUCER = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": LINGER_MS,
    "batch.size": BATCH_BYTES,
    "batch.num.messages": 100_000,
    "queue.buffering.max.messages": 10_000_000,
    "queue.buffering.max.kbytes": 2_000_000,
    "partitioner": "murmur2_random",
    "socket.nagle.disable": True,
    "reconnect.backoff.ms": 20,
    "reconnect.backoff.max.ms": 100,
    "retry.backoff.ms": 20,
    "retry.backoff.max.ms": 200,
}
CONSUMER = {
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
    "check.crcs": True,
    "queued.min.messages": 1_000_000,
    "fetch.min.bytes": 1,
    "fetch.wait.max.ms": 500,
    "fetch.queue.backoff.ms": 1,
    "socket.nagle.disable": True,
}
TUNING = {
    "java": JAVA,
    "broker": BROKER,
    "producer": PRODUCER,
    "producer of single records": {"linger.ms": 0},
    "consumer": CONSUMER,
    "records a call of consume": READ_MANY,
    "topic that is fsynced": {"flush.messages": 1},
}


def why_not() -> str:
    """What is missing to measure it; empty when nothing is."""
    if Producer is None:
        return (
            "confluent-kafka is not installed: pip install confluent-kafka "
            "(`make bench` does it from benchmarks/requirements.lock)"
        )
    missing = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    if missing == ["mvn"] and JARS.is_dir():
        return ""
    return f"{' and '.join(missing)} not found" if missing else ""


def fetch_jars() -> None:
    """Kafka's class path, from Maven Central, unless it is there."""
    if JARS.is_dir():
        return
    pom = str(HERE / "kafka" / "pom.xml")
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={JARS}"]
    subprocess.run(["mvn", "-q", "-f", pom, *goal], check=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Kafka:
    """One node on loopback."""

    name = "kafka"

    def __init__(self, address: str = "") -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._address = address
        self._runs = 0
        self._data_dir = Path()

    @classmethod
    def at(cls, where: dict[str, str]) -> "Kafka":
        """In another process, what `where` told."""
        return cls(where["address"])

    def where(self) -> dict[str, str]:
        """Its listener."""
        return {"address": self._address}

    def prepare(self, data_dir: Path) -> None:
        """Format a directory: what is done once in a node's life, and not timed."""
        data_dir.mkdir(parents=True)
        self._data_dir = data_dir
        port, quorum = _free_port(), _free_port()
        self._address = f"127.0.0.1:{port}"
        settings = {
            **BROKER,
            "controller.quorum.voters": f"1@127.0.0.1:{quorum}",
            "listeners": f"PLAINTEXT://{self._address},CONTROLLER://127.0.0.1:{quorum}",
            "advertised.listeners": f"PLAINTEXT://{self._address}",
            "log.dirs": data_dir / "data",
        }
        properties = data_dir / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        (data_dir / "log4j2.properties").write_text(LOG4J)
        formatting = ["format", "-t", uuid.uuid4().hex[:22], "-c", str(properties)]
        subprocess.run(
            [*self._java(), "kafka.tools.StorageTool", *formatting],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def boot(self) -> None:
        """Start the node, and wait until it answers."""
        self._launch()
        self._wait_until_it_answers()

    def _java(self, *options: str) -> list[str]:
        log4j = f"-Dlog4j2.configurationFile={self._data_dir / 'log4j2.properties'}"
        return ["java", log4j, *options, "-cp", f"{JARS}/*"]

    def _launch(self) -> None:
        properties = str(self._data_dir / "server.properties")
        with (self._data_dir / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java(*JAVA), "kafka.Kafka", properties], stdout=log, stderr=log
            )

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            with contextlib.suppress(KafkaException):
                self._admin().list_topics(timeout=1)
                return
        raise RuntimeError(f"Kafka did not start:\n{(self._data_dir / 'log').read_text()[-4000:]}")

    def _admin(self) -> "AdminClient":
        quick = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100}
        nothing = {"log_level": 0, "error_cb": lambda _: None}
        return AdminClient({"bootstrap.servers": self._address, **quick, **nothing})

    def first_record(self) -> None:
        """To a topic of one partition."""
        self.make_topic("warm", partitions=1, fsync=True)
        self.send_each("warm", b"first", 1, None)

    def stop(self) -> None:
        """End it by its process id."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def close(self) -> None:
        """Nothing is held."""

    def make_topic(self, topic: str, *, partitions: int, fsync: bool) -> None:
        """With `flush.messages=1` where each batch is to be on the disk before its answer."""
        config = {"flush.messages": "1"} if fsync else {}
        wanted = NewTopic(topic, partitions, 1, config=config)
        admin = self._admin()  # it has to outlive the answer
        admin.create_topics([wanted], request_timeout=TIMEOUT_S)[topic].result(TIMEOUT_S)
        # It answers before the broker has made the logs.
        data, deadline = self._data_dir / "data", time.monotonic() + TIMEOUT_S
        while sum(1 for _ in data.glob(f"{topic}-[0-9]*")) < partitions:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Kafka has not made the logs of {topic}")
            time.sleep(POLL_S)

    def drop_topic(self, topic: str) -> None:
        """Delete it; its files go a second later."""
        admin = self._admin()
        admin.delete_topics([topic])[topic].result(TIMEOUT_S)

    def _producer(self, **settings: object) -> "Producer":
        return Producer({"bootstrap.servers": self._address, **PRODUCER, **settings})

    def send_each(
        self, topic: str, value: bytes, count: int, keys: Sequence[bytes] | None
    ) -> float:
        """`produce` in a loop, polled now and then, then `flush`."""
        producer = self._producer()
        producer.list_topics(topic)
        produce, poll = producer.produce, producer.poll
        begun = time.perf_counter()
        if keys is None:
            for number in range(count):
                produce(topic, value)
                if number % READ_MANY == 0:
                    poll(0)
        else:
            for number, key in enumerate(keys):
                produce(topic, value, key)
                if number % READ_MANY == 0:
                    poll(0)
        assert producer.flush(TIMEOUT_S) == 0
        return time.perf_counter() - begun

    def send_all(self, topic: str, value: bytes, count: int) -> float:
        """`produce_batch` where the client has it, else the same loop."""
        producer = self._producer()
        if not hasattr(producer, "produce_batch"):
            return self.send_each(topic, value, count, None)
        partitions = len(producer.list_topics(topic).topics[topic].partitions)
        rows = min(READ_MANY, max(1, count // partitions))
        many = [{"value": value}] * rows
        begun = time.perf_counter()
        for number, start in enumerate(range(0, count, rows)):
            producer.produce_batch(topic, many[: count - start], partition=number % partitions)
            producer.poll(0)
        assert producer.flush(TIMEOUT_S) == 0
        return time.perf_counter() - begun

    def _consumer(
        self, topic: str, partitions: Sequence[int] | None = None, **settings: object
    ) -> "Consumer":
        self._runs += 1
        group = {"group.id": f"bench-{uuid.uuid4().hex[:8]}-{self._runs}"}
        options = {"bootstrap.servers": self._address, **group, **CONSUMER, **settings}
        consumer = Consumer(options)
        if partitions is None:
            partitions = sorted(consumer.list_topics(topic).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        return consumer

    def read_each(self, topic: str, count: int) -> float:
        """`consume` by the thousand, each message touched."""
        consumer = self._consumer(topic)
        seen = 0
        begun = time.perf_counter()
        while seen < count:
            for message in consumer.consume(READ_MANY, 1.0):
                message.offset()
                message.key()
                message.value()
                seen += 1
        took = time.perf_counter() - begun
        consumer.close()
        return took

    def read_all(self, topic: str, count: int) -> float:
        """The same without touching the messages: it has no faster way."""
        consumer = self._consumer(topic)
        seen = 0
        begun = time.perf_counter()
        while seen < count:
            seen += len(consumer.consume(READ_MANY, 1.0))
        took = time.perf_counter() - begun
        consumer.close()
        return took

    def round_trips(self, topic: str, count: int) -> list[float]:
        """A producer and a consumer in this process."""
        producer = self._producer(**{"linger.ms": 0})
        consumer = self._consumer(topic, [0])
        consumer.poll(0.1)
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            producer.produce(topic, b"x" * 100, partition=0)
            producer.poll(0)
            while consumer.poll(10) is None:
                pass
            times.append(time.perf_counter() - begun)
        producer.flush(10)
        consumer.close()
        return times

    def send_until_end(self, topic: str, value: bytes, count: int, go: Go) -> None:
        """`produce` in a loop."""
        producer = self._producer()
        partitions = producer.list_topics(topic).topics[topic].partitions
        produce, poll = producer.produce, producer.poll
        go()
        for number in range(count):
            produce(topic, value)
            if number % READ_MANY == 0:
                poll(0)
        assert producer.flush(TIMEOUT_S) == 0
        for partition in partitions:
            produce(topic, END, partition=partition)
        assert producer.flush(TIMEOUT_S) == 0

    def read_until_end(self, topic: str, partitions: list[int], ends: int, go: Go) -> int:
        """`consume` by the thousand."""
        wanted, seen = ends * len(partitions), 0
        consumer = self._consumer(topic, partitions)
        go()
        while wanted:
            for message in consumer.consume(READ_MANY, 0.1):
                if message.value() == END:
                    wanted -= 1
                else:
                    seen += 1
        consumer.close()
        return seen

    def opened(self, topic: str) -> tuple[Callable[[bytes], None], Callable[[], None]]:
        """A producer without lingering."""
        producer = self._producer(**{"linger.ms": 0})
        producer.list_topics(topic)

        def send(value: bytes) -> None:
            producer.produce(topic, value, partition=0)
            producer.poll(0)

        return send, lambda: producer.flush(TIMEOUT_S)

    def values(self, topic: str) -> tuple[Callable[[], list[bytes]], Callable[[], None]]:
        """A consumer of one partition."""
        consumer = self._consumer(topic, [0])
        consumer.poll(0.1)

        def take() -> list[bytes]:
            message = consumer.poll(1.0)
            return [] if message is None else [message.value()]

        return take, consumer.close

    def memory(self) -> dict[str, float]:
        """The Java process."""
        assert self._process is not None
        return memory_of([self._process.pid])

    def pid(self) -> int:
        """The Java process."""
        assert self._process is not None
        return self._process.pid

    def first_to_each(self, topic: str, count: int) -> float:
        """From a new producer."""
        begun = time.perf_counter()
        producer = self._producer()
        for number in range(count):
            producer.produce(topic, b"first", partition=number)
        assert producer.flush(TIMEOUT_S) == 0
        return time.perf_counter() - begun

    def again_after_kill(self, topic: str, count: int) -> float:
        """`kill -9` of the broker, which is started again at once; the producer lives."""
        failed: list[object] = []
        producer = self._producer(error_cb=lambda _: None, log_level=0)
        producer.list_topics(topic)
        assert self._process is not None
        begun = time.perf_counter()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._launch()
        for number in range(count):
            producer.produce(
                topic,
                b"again",
                partition=number,
                on_delivery=lambda error, _: failed.append(error) if error else None,
            )
        assert producer.flush(TIMEOUT_S) == 0
        assert not failed, failed[0]
        return time.perf_counter() - begun
