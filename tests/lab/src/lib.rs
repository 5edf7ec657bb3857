//! A simulated Session Manager on loopback: the service, an agent, and faults on command.
//!
//! It speaks the real protocol and is written apart from autossm's own code, so that the two check each other. It is
//! also a judge: every breach of the protocol is counted and kept in words ([`status::Status::violations`]), so that a
//! test that sees none has shown that the numbering is right.
//!
//! [`Lab::start`] runs all of it on threads of its own. Stream URLs carry real AWS host names, which nobody dials: a
//! client is given [`Lab::stream_endpoint_ws`] or is led to the TLS listener by a proxy.
//!
//! | part | what it is |
//! |---|---|
//! | [`fault`] | what can be made to go wrong |
//! | [`options`], [`status`] | what a lab is started with, what it has seen |
//! | `line` | the network: resets, black hole, freeze, slow link; one way for clients, one for agents |
//! | `service` | the API, sessions and their tokens, and what is between a client and an agent |
//! | `channel` | one WebSocket of a data channel, a client's or an agent's |
//! | `worker` | the process that has the far end of a session: the lab's own agent, or a program beside it |
//! | `agent` | the lab's own: its WebSocket, numbering, handshake, mux streams |
//! | [`metadata`] | an instance's metadata service |
//! | [`proxy`] | a corporate network's proxy before it |
//! | [`destination`] | servers for the far end of tunnels |
//! | [`control`] | commands as text, for the foreground program |
//! | [`standin`] | the plugin's stand-in |
//! | [`load`], [`bulk`] | clients, and what they saw |
//! | [`wire`] | the codec |

mod agent;
pub mod bulk;
mod channel;
pub mod control;
pub mod destination;
pub mod fault;
mod lab;
mod line;
pub mod load;
pub mod metadata;
pub mod options;
pub mod proxy;
mod service;
pub mod standin;
mod state;
pub mod status;
mod tls;
pub mod wire;
mod worker;

pub use lab::{Addresses, Lab};
