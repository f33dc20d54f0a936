"""The QMIX learner: networks, mixers, targets, replay and the update. It sees arrays only."""
