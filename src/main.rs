//! The `autossm` command.

fn main() {}
