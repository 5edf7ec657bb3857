//! Log lines: what an operator wants to know, once, at the right level.
