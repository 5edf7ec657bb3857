//! PURE. What travels between the plugin and the service: data channel messages, the handshake inside them, and the
//! mux frames of port sessions.

pub mod handshake;
pub mod message;
pub mod mux;
