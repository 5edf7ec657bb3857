//! The control socket of each tunnel: what others can see of it and ask of it.
//!
//! [`protocol`] is what goes over it, [`server`] the daemon's side, [`client`] the other one; [`place`] says where the
//! sockets are, and [`access`] who may use them.

pub mod access;
pub mod client;
pub mod place;
pub mod protocol;
pub mod server;
pub mod time;
