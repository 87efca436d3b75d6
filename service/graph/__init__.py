"""The engine: a network as a pure function of its noise; it does not know files or the wire."""
