//! A simulated Session Manager on loopback: the service, an agent, and faults on command.

pub mod standin;
pub mod wire;
