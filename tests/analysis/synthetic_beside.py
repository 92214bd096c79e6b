"""What synthetic runs record beside their task: forgetting on chunks of text, and the routing of mixtures."""

from typing import Any, NamedTuple

import numpy as np

KL = {"lora": 0.08, "pissa": 0.25, "milora": 0.05, "molora_topk": 0.09, "goat": 0.12}
"""At the end of training at a learning rate of 1e-3, nats per token."""
FLOOR, BASE_LOSS, TOP_K = 2.3, 3.1, 2
KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")


class Recorded(NamedTuple):
    lines: list[dict[str, Any]]
    """Of metrics.jsonl."""
    items: list[dict[str, Any]]
    """Of the last evaluation."""


def forgetting(method: str, lr: float, seed: int, steps: int, num_chunks: int = 12) -> Recorded:
    """The chunks' own difficulty is shared by all runs; a seed moves the run's level by a few percent."""
    rng = np.random.default_rng([5, seed, *method.encode()])
    tokens = np.random.default_rng(3).integers(400, 511, num_chunks)
    spread = np.exp(np.random.default_rng(4).normal(0, 0.2, num_chunks))
    level = KL.get(method, 0.1) * (lr / 1e-3) * np.exp(0.06 * rng.normal())
    out, records = [], []
    for step in range(0, steps + 1, max(1, steps // 4)):
        kl = level * (1 - np.exp(-3 * step / steps)) * spread * (1 + 0.02 * rng.normal(size=num_chunks)) * tokens
        records = [
            {"item": f"held_out-{i:04d}", "step": step, "tokens": int(t), "forgetting_nats": float(FLOOR * t + k),
             "floor_nats": float(FLOOR * t), "kl_nats": float(k), "loss_nats": float(BASE_LOSS * t + 0.8 * k),
             "base_loss_nats": float(BASE_LOSS * t), "agree": int(t * (1 - min(0.9, k / t)))}
            for i, (t, k) in enumerate(zip(tokens, kl))
        ]  # fmt: skip
        out.append({"kind": "eval", "step": step, "task": "forgetting", "split": "text", "items": num_chunks,
                    "metrics": _means(records)})  # fmt: skip
    return Recorded(out, records)


def _means(records: list[dict[str, Any]]) -> dict[str, float]:
    names = {"forgetting_nats": "forgetting_nats", "forgetting_floor_nats": "floor_nats",
             "forgetting_kl_nats": "kl_nats", "text_loss_nats": "loss_nats", "base_text_loss_nats": "base_loss_nats",
             "top1_agreement": "agree"}  # fmt: skip
    tokens = sum(record["tokens"] for record in records)
    return {name: sum(record[column] for record in records) / tokens for name, column in names.items()}


def routing(method: str, seed: int, steps: int, experts: int, layers: int = 4) -> Recorded:
    """Loads that leave their balance as training goes on, the most in late layers; expert 0 is liked."""
    rng = np.random.default_rng([6, seed, *method.encode()])
    taste = rng.normal(0, 1, (layers, len(KINDS), experts))
    taste[..., 0] += 1.0
    out, records = [], []
    for step in range(0, steps + 1, max(1, steps // 4)):
        records = [
            {"item": f"model.layers.{layer}.{kind}", "step": step, "tokens": 900}
            | _module(taste[layer, k] * 0.2 * step / steps * (1 + layer / layers), rng)
            for layer in range(layers)
            for k, kind in enumerate(KINDS)
        ]
        mean = {name: float(np.mean([r[name] for r in records])) for name in ("balance", "entropy_nats", "top1_margin")}
        metrics = {f"routing_{name}": value for name, value in mean.items()}
        metrics["routing_max_load"] = max(max(record["load"]) for record in records)
        out.append({"kind": "eval", "step": step, "task": "routing", "split": "test", "items": len(records),
                    "metrics": metrics})  # fmt: skip
    return Recorded(out, records)


def _module(logits: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Statistics of 300 tokens routed by softmax(logits + noise)."""
    p = np.exp(logits + 0.5 * rng.normal(size=(300, logits.size)))
    p /= p.sum(1, keepdims=True)
    top = np.argsort(-p, axis=1)
    chosen = np.zeros_like(p)
    np.put_along_axis(chosen, top[:, : min(TOP_K, logits.size)], 1.0, axis=1)
    gate = p * chosen / (p * chosen).sum(1, keepdims=True)
    load, ordered = chosen.mean(0), np.take_along_axis(p, top, axis=1)
    return {
        "load": load.tolist(), "mean_gate": gate.mean(0).tolist(), "mean_probability": p.mean(0).tolist(),
        "balance": float(logits.size * (load / load.sum()) @ p.mean(0)),
        "entropy_nats": float(-(p * np.log(p)).sum(1).mean()),
        "top1_margin": float((ordered[:, 0] - ordered[:, 1]).mean()),
        "coactivation": (chosen.T @ chosen / 300).tolist(),
        "information_answer_nats": 0.01, "information_frequency_nats": 0.02,
    }  # fmt: skip
