"""The parts of `tests/bench/peer`: the systems that are compared, the work that they do, what is measured, and how it is
told."""
