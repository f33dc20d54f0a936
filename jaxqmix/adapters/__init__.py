"""The world in the shape of other libraries' environments."""
