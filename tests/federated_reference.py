"""Slow plain NumPy versions of the federated rules, which the fast ones must equal."""

from __future__ import annotations

import numpy as np


def mean(updates, weight, arrived):
    """Weighted mean of flat updates [M, P]."""
    total, weights = np.zeros(updates.shape[1]), 0.0
    for update, w, here in zip(updates, weight, arrived, strict=True):
        if here:
            total, weights = total + w * update, weights + w
    return total / weights if weights else total


def trimmed_mean(updates, arrived, trim):
    """Mean of each coordinate without the `trim` lowest and highest."""
    there = updates[arrived]
    result = np.zeros(updates.shape[1])
    if not len(there):
        return result
    trim = min(trim, (len(there) - 1) // 2)
    for place in range(updates.shape[1]):
        column = sorted(there[:, place])
        result[place] = np.mean(column[trim : len(column) - trim])
    return result


def median(updates, arrived):
    """Median of each coordinate."""
    there = updates[arrived]
    return np.median(there, axis=0) if len(there) else np.zeros(updates.shape[1])


def krum_scores(updates, arrived, hostile):
    """Sums of squared distances to the nearest others; infinite for the absent."""
    here = np.flatnonzero(arrived)
    scores = np.full(len(updates), np.inf)
    for i in here:
        others = sorted(np.sum((updates[i] - updates[j]) ** 2) for j in here if j != i)
        scores[i] = sum(others[: max(len(here) - hostile - 2, 1)])
    return scores


def multi_krum(updates, arrived, hostile, keep):
    """Mean of the updates with the best scores."""
    if not arrived.any():
        return np.zeros(updates.shape[1])
    order = np.argsort(krum_scores(updates, arrived, hostile), kind="stable")
    return updates[order[: min(keep, arrived.sum())]].mean(axis=0)


def mix_async(server, weights, arrived, share):
    """The server after the sites' weights came in, one after the other."""
    for theirs, here, s in zip(weights, arrived, share, strict=True):
        if here:
            server = (1 - s) * server + s * theirs
    return server


def admit(updates, weight, arrived, weight_cap, norm_cap):
    """Updates, weights and who is in; NaN-safe, one site after the other."""
    updates, weight = updates.copy(), weight.copy()
    good = [
        bool(a) and bool(np.isfinite(u).all()) and bool(np.isfinite(w)) and w > 0
        for u, w, a in zip(updates, weight, arrived, strict=True)
    ]
    norms = [np.sqrt(np.sum(updates[i] ** 2)) for i, g in enumerate(good) if g]
    weights = [weight[i] for i, g in enumerate(good) if g]
    for i in range(len(updates)):
        if not good[i]:
            updates[i], weight[i] = 0.0, 0.0
            continue
        norm = np.sqrt(np.sum(updates[i] ** 2))
        if norm > norm_cap * np.median(norms):
            updates[i] *= norm_cap * np.median(norms) / norm
        weight[i] = min(weight[i], weight_cap * np.median(weights))
    return updates, weight, np.array(good)
