"""Where generations come from: one module per kind of server."""
