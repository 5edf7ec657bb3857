//! The control socket of each tunnel: what others can see of it and ask of it.

pub mod protocol;
pub mod time;
