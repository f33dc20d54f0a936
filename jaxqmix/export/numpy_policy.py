"""A trained policy in NumPy alone: copy this file, it imports nothing of jaxqmix."""

import json

import numpy as np


class NumpyPolicy:
    """Acts for one drone: `action, hidden_state = policy(observation, available, hidden_state)`."""

    def __init__(self, path):
        """Reads a file of `jaxqmix export --format npz`; `about` says what the numbers mean."""
        with np.load(path) as file:
            self.weights = dict(file)
        self.about = json.loads(str(self.weights.pop("about")))

    def initial_hidden_state(self):
        """What the policy remembers at the start of a flight, float32 [M]."""
        return np.zeros(self.about["hidden_state"], np.float32)

    def __call__(self, observation, available, hidden_state):
        """The best available action, and the new hidden state.

        `observation` is float32 [D], `available` bool [A], `hidden_state` float32 [M].
        """
        values, hidden_state = self.values(observation, hidden_state)
        return int(np.argmax(np.where(available, values, -np.inf))), hidden_state

    def values(self, observation, hidden_state):
        """Action values [A] and the new hidden state [M]; the ensemble's views are rows [G, H]."""
        w, width, hidden = self.weights, self.about["hidden"], observation
        for layer in range(self.about["layers"]):
            hidden = (hidden @ w[f"kernel_{layer}"] + w[f"bias_{layer}"]).reshape(-1, width)
            hidden = hidden - hidden.mean(axis=1, keepdims=True)
            hidden = hidden / np.sqrt(np.square(hidden).mean(axis=1, keepdims=True) + 1e-6)
            hidden = np.maximum(hidden * w[f"scale_{layer}"] + w[f"shift_{layer}"], 0)
        if self.about["hidden_state"]:
            old = hidden_state.reshape(-1, width)
            i_r, i_z, i_n = np.split(hidden @ w["gru_input"] + w["gru_bias"], 3, axis=1)
            h_r, h_z, h_n = np.split(old @ w["gru_hidden"], 3, axis=1)
            reset, update = 1 / (1 + np.exp(-i_r - h_r)), 1 / (1 + np.exp(-i_z - h_z))
            new = np.tanh(i_n + reset * h_n)
            hidden = new + update * (old - new)
            hidden_state = hidden.reshape(-1)
        return hidden.reshape(-1) @ w["head"] + w["head_bias"], hidden_state
