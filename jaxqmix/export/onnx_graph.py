"""A policy as an ONNX graph: a dozen plain nodes, read by any runtime of opset 17 or newer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxqmix.config import ConfigError
from jaxqmix.export.policy import PlainPolicy

OPSET, FILE_VERSION = 17, 8
"""The oldest with `LayerNormalization`, and the file format of its time (July 2022)."""


class Graph:
    """Nodes and constants, added one after the other."""

    def __init__(self, helper: Any, numpy_helper: Any):
        """Takes onnx's helpers, which are imported late."""
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._helper, self._numpy_helper = helper, numpy_helper

    def constant(self, name: str, array: Any) -> str:
        """An array of the graph."""
        self.constants[name] = self._numpy_helper.from_array(np.asarray(array), name)
        return name

    def add(self, operator: str, *inputs: str, name: str, outputs: int = 1, **attributes) -> Any:
        """A node; returns its output's name, or a list of several."""
        names = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(self._helper.make_node(operator, inputs, names, name=name, **attributes))
        return names[0] if outputs == 1 else names


def write_onnx(plain: PlainPolicy, out: Path) -> None:
    """Writes the graph, with the metadata as JSON under `groups`, `actions`, `config` and so on.

    Inputs: `observation` float32 [drones, D], `available` bool [drones, A], and `hidden_state`
    float32 [drones, M] of a recurrent network. Outputs: `action` int64 [drones], `values` float32
    [drones, A], and `new_hidden_state`.

    Raises:
      ConfigError: when onnx is not installed.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise ConfigError(
            'format = onnx is not allowed: it needs onnx; pip install ".[export]"'
        ) from None
    about, actions = plain.about, len(plain.about["actions"])
    graph = Graph(helper, numpy_helper)
    tensor, real = helper.make_tensor_value_info, TensorProto.FLOAT
    inputs = [tensor("observation", real, ["drones", about["features"]])]
    inputs += [tensor("available", TensorProto.BOOL, ["drones", actions])]
    outputs = [tensor("action", TensorProto.INT64, ["drones"])]
    outputs += [tensor("values", real, ["drones", actions])]
    if about["hidden_state"]:
        inputs += [tensor("hidden_state", real, ["drones", about["hidden_state"]])]
        outputs += [tensor("new_hidden_state", real, ["drones", about["hidden_state"]])]
    build(graph, plain)
    body = helper.make_graph(
        graph.nodes, "policy", inputs, outputs, initializer=list(graph.constants.values())
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        body, opset_imports=opset, ir_version=FILE_VERSION, producer_name="jaxqmix"
    )
    helper.set_model_props(
        model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(out))


def build(graph: Graph, plain: PlainPolicy) -> None:
    """The nodes, from `observation` to `action`; the views are rows [drones x G, H]."""
    about, weights = plain.about, plain.weights
    for name, array in weights.items():
        graph.constant(name, array)
    width, hidden = about["hidden"], "observation"
    rows, joined = "rows", "joined"
    if about["hidden_state"] or about["views"] > 1:
        graph.constant(rows, np.array([-1, width], np.int64))
        graph.constant(joined, np.array([-1, about["views"] * width], np.int64))
    for layer in range(about["layers"]):
        hidden = graph.add(
            "Gemm", hidden, f"kernel_{layer}", f"bias_{layer}", name=f"dense_{layer}"
        )
        if layer == 0 and about["views"] > 1:
            hidden = graph.add("Reshape", hidden, rows, name="views_as_rows")
        hidden = graph.add(
            "LayerNormalization",
            hidden,
            f"scale_{layer}",
            f"shift_{layer}",
            name=f"norm_{layer}",
            epsilon=1e-6,
        )
        hidden = graph.add("Relu", hidden, name=f"relu_{layer}")
    if about["hidden_state"]:
        hidden = recur(graph, hidden, rows)
        hidden = graph.add("Reshape", hidden, joined, name="new_hidden_state")
    elif about["views"] > 1:
        hidden = graph.add("Reshape", hidden, joined, name="views_joined")
    values = graph.add("Gemm", hidden, "head", "head_bias", name="values")
    nothing = graph.constant("nothing", np.float32(-np.inf))
    masked = graph.add("Where", "available", values, nothing, name="masked")
    graph.add("ArgMax", masked, name="action", axis=1, keepdims=0)


def recur(graph: Graph, hidden: str, rows: str) -> str:
    """A gated recurrent unit spelt out, as `flax.nnx.GRUCell` computes it."""
    old = graph.add("Reshape", "hidden_state", rows, name="old")
    entering = graph.add("Gemm", hidden, "gru_input", "gru_bias", name="entering")
    kept = graph.add("Gemm", old, "gru_hidden", name="kept")
    i_r, i_z, i_n = graph.add("Split", entering, name="entering_part", outputs=3, axis=1)
    h_r, h_z, h_n = graph.add("Split", kept, name="kept_part", outputs=3, axis=1)
    reset = graph.add("Sigmoid", graph.add("Add", i_r, h_r, name="r"), name="reset")
    update = graph.add("Sigmoid", graph.add("Add", i_z, h_z, name="z"), name="update")
    candidate = graph.add("Add", i_n, graph.add("Mul", reset, h_n, name="rn"), name="n")
    new = graph.add("Tanh", candidate, name="new")
    change = graph.add("Mul", update, graph.add("Sub", old, new, name="back"), name="change")
    return graph.add("Add", new, change, name="hidden")
