"""Federated swarms: sites that never share their flights train one policy."""
