"""The site of the documentation, as `make site` builds it."""
