//! PURE. What travels between the plugin and the service: data channel messages, the handshake inside them, the
//! mux frames of port sessions, and their encryption.

pub mod cipher;
pub mod handshake;
pub mod message;
pub mod mux;
