"""A federation over Flower (extra `federated`): one SuperLink, a SuperNode at each site.

The only file that imports flwr. `jaxqmix federate PRESET --flower FOLDER` writes the app that `flwr
run` takes; `server` and `client` are its components. The rules are those of the simulation:
`nodes.py`.
"""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Iterable
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from jaxqmix.compilation import enable_cache
from jaxqmix.config import ConfigError
from jaxqmix.federated.nodes import Arrays, Reply, ServerNode, SiteNode, as_text, from_text
from jaxqmix.folders import check_folder

ARRAYS, SETTINGS, METRICS = "arrays", "settings", "metrics"
WAIT = 2.0
"""Seconds between two looks for nodes."""

client = ClientApp()
server = ServerApp()


def to_record(arrays: Arrays) -> ArrayRecord:
    """Arrays by name as Flower carries them."""
    from flwr.app import Array

    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Arrays by name."""
    return {name: array.numpy() for name, array in record.items()}


@functools.cache
def site_node(settings: str, number: int, folder: str) -> SiteNode:
    """The site of this process; compiled once where the process stays."""
    enable_cache()
    return SiteNode(*from_text(settings), number, Path(folder))


@client.train()
def train(message: Message, context: Context) -> Message:
    """Trains this node's site; its number and folder are the node's `site` and `folder`."""
    if "site" not in context.node_config:
        raise ConfigError("site is missing: start the node with --node-config 'site=0'")
    given: dict[str, Any] = dict(message.content.config_records[SETTINGS])
    folder = str(context.node_config.get("folder", "site"))
    node = site_node(str(given["settings"]), int(context.node_config["site"]), folder)
    received = from_record(message.content.array_records[ARRAYS])
    arrays, metrics = node.train(received, int(given["rounds"]))
    content = RecordDict({ARRAYS: to_record(arrays), METRICS: MetricRecord({**metrics})})
    return Message(content=content, reply_to=message)


class AtTheDoor(Strategy):
    """Flower's side of `ServerNode`: whom to ask, and what to do with what comes."""

    def __init__(self, node: ServerNode, patience: float):
        """Binds the server; `patience` are seconds to wait for enough nodes."""
        self.node, self.patience = node, patience
        self.settings = as_text(node.config, node.federation)
        self.reports: list[dict[str, Any]] = []

    def summary(self) -> None:
        """Says what is about to happen."""
        federation = self.node.federation
        log(INFO, "%s, %s nodes per round", federation.aggregate, federation.per_round)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Asks as many nodes as take part in a round, or all that are there in time."""
        federation, until = self.node.federation, time.monotonic() + self.patience
        while len(found := sorted(grid.get_node_ids())) < federation.per_round:
            if time.monotonic() > until and len(found) >= federation.minimum:
                break
            time.sleep(WAIT)
        seeded = random.Random(f"{self.node.config.training.seed} {server_round}")
        chosen = seeded.sample(found, min(federation.per_round, len(found)))
        given = ConfigRecord({"settings": self.settings, "rounds": self.node.rounds})
        content = RecordDict({ARRAYS: arrays, SETTINGS: given})
        return [
            Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node)
            for node in chosen
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hands the replies to the server; broken ones are turned away there."""
        read: list[Reply] = []
        for reply in replies:
            node = str(reply.metadata.src_node_id)
            if reply.has_error():
                log(WARNING, "node %s failed: %s", node, reply.error.reason)
                continue
            read.append(read_reply(node, reply.content))
        report = self.node.aggregate(read)
        self.reports.append(report)
        for node, reason in report["refused"].items():
            log(WARNING, "node %s turned away: %s", node, reason)
        counts = {name: len(report[name]) for name in ("admitted", "refused")}
        return to_record(self.node.weights), MetricRecord({**counts})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nobody: `jaxqmix evaluate` flies the policy."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing."""
        return None


def read_reply(node: str, content: RecordDict) -> Reply:
    """A reply in our terms; whatever it lacks, the door will name."""
    try:
        arrays = from_record(content.array_records[ARRAYS])
        told: dict[str, Any] = dict(content.metric_records[METRICS])
        return Reply(node, arrays, float(told["env_steps"]), float(told.get("site", 0.0)))
    except Exception as error:  # Written by others: anything may be wrong with it.
        log(WARNING, "node %s sent what cannot be read: %s", node, error)
        return Reply(node, {}, 0.0)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Flies all rounds, and leaves the global policy as an ordinary run's folder."""
    enable_cache()
    given = context.run_config
    node = ServerNode(*from_text(str(given["settings"])))
    out = Path(str(given["out"]))
    check_folder(out, resume=False)
    strategy = AtTheDoor(node, float(given["patience"]))
    strategy.start(
        grid=grid,
        initial_arrays=to_record(node.weights),
        num_rounds=node.federation.rounds,
        timeout=float(given["timeout"]),
    )
    node.save(out)
    lines = "".join(json.dumps(report) + "\n" for report in strategy.reports)
    (out / "rounds.jsonl").write_text(lines, encoding="utf-8")
    log(INFO, "wrote %s", out)
