"""The commands of `jaxqmix`: their settings, and what they do with them."""
