"""The way of a request, one module a step."""
