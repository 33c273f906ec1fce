"""Apache Kafka with its C client, as a peer: fetched by Maven, run as one node in KRaft mode.

Owns: starting and ending it, and its tuning. Refuses: being a dependency of the product. Tuned as
its own users would for throughput: `linger.ms` and batch bytes as on our side, the client's local
queue large enough never to block, records consumed by the thousand.
"""

import contextlib
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from peers import BATCH_BYTES, LINGER_MS

try:
    from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
    from confluent_kafka.admin import AdminClient, NewTopic
except ImportError:  # reported by `why_not`
    Producer = None

HERE = Path(__file__).parent
JARS = HERE / "kafka" / "lib"
READ_MANY = 10_000
LOG4J = """rootLogger.level=WARN
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m%n
rootLogger.appenderRef.out.ref=out
"""


def why_not() -> str:
    """What is missing to measure it; empty when nothing is."""
    if Producer is None:
        return "confluent-kafka is not installed: pip install confluent-kafka"
    missing = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} not found" if missing else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Kafka:
    """One node on loopback."""

    name = "kafka"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""
        self._runs = 0

    def start(self, data_dir: Path) -> float:
        """Start it; seconds until it acknowledged a record."""
        if not JARS.is_dir():
            subprocess.run(
                [
                    "mvn",
                    "-q",
                    "-f",
                    str(HERE / "kafka" / "pom.xml"),
                    "dependency:copy-dependencies",
                    f"-DoutputDirectory={JARS}",
                ],
                check=True,
            )
        data_dir.mkdir(parents=True)
        port, quorum = _free_port(), _free_port()
        self._address = f"127.0.0.1:{port}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{quorum}",
            "listeners": f"PLAINTEXT://{self._address},CONTROLLER://127.0.0.1:{quorum}",
            "advertised.listeners": f"PLAINTEXT://{self._address}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": data_dir / "data",
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
        }
        properties = data_dir / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        (data_dir / "log4j2.properties").write_text(LOG4J)
        java = ["java", f"-Dlog4j2.configurationFile={data_dir / 'log4j2.properties'}"]
        classes = ["-cp", f"{JARS}/*"]
        cluster_id = uuid.uuid4().hex[:22]
        subprocess.run(
            [
                *java,
                *classes,
                "kafka.tools.StorageTool",
                "format",
                "-t",
                cluster_id,
                "-c",
                str(properties),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        memory = ["-Xms1G", "-Xmx1G", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"]
        begun = time.perf_counter()
        with (data_dir / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*java, *memory, *classes, "kafka.Kafka", str(properties)], stdout=log, stderr=log
            )
        while True:
            with contextlib.suppress(KafkaException):
                AdminClient({"bootstrap.servers": self._address}).list_topics(timeout=1)
                break
        self.make_topic("warm", partitions=1, fsync=True)
        self.send_each("warm", b"first", 1, None)
        return time.perf_counter() - begun

    def stop(self) -> None:
        """End it by its process id."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)

    def make_topic(self, topic: str, *, partitions: int, fsync: bool) -> None:
        """With `flush.messages=1` where each batch is to be on the disk before its answer."""
        config = {"flush.messages": "1"} if fsync else {}
        admin = AdminClient({"bootstrap.servers": self._address})
        wanted = NewTopic(topic, partitions, 1, config=config)
        admin.create_topics([wanted])[topic].result(60)

    def _producer(self, **settings: object) -> "Producer":
        return Producer(
            {
                "bootstrap.servers": self._address,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": LINGER_MS,
                "batch.size": BATCH_BYTES,
                "batch.num.messages": 100_000,
                "queue.buffering.max.messages": 10_000_000,
                "queue.buffering.max.kbytes": 2_000_000,
                "partitioner": "murmur2_random",
                **settings,
            }
        )

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
        assert producer.flush(120) == 0
        return time.perf_counter() - begun

    def send_all(self, topic: str, value: bytes, count: int) -> float:
        """`produce_batch` where the client has it, else the same loop."""
        producer = self._producer()
        if not hasattr(producer, "produce_batch"):
            return self.send_each(topic, value, count, None)
        producer.list_topics(topic)
        many = [{"value": value}] * READ_MANY
        begun = time.perf_counter()
        for number in range(count // READ_MANY):
            producer.produce_batch(topic, many, partition=number % 6)
            producer.poll(0)
        assert producer.flush(120) == 0
        return time.perf_counter() - begun

    def _consumer(self, topic: str) -> "Consumer":
        self._runs += 1
        consumer = Consumer(
            {
                "bootstrap.servers": self._address,
                "group.id": f"bench-{self._runs}",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "queued.min.messages": 1_000_000,
                "fetch.min.bytes": 1,
                "fetch.wait.max.ms": 500,
                "fetch.queue.backoff.ms": 1,
            }
        )
        found = consumer.list_topics(topic).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in found])
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
        consumer = Consumer(
            {
                "bootstrap.servers": self._address,
                "group.id": "latency",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 500,
                "fetch.min.bytes": 1,
            }
        )
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
        consumer.assign([TopicPartition(topic, 0, end)])
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
