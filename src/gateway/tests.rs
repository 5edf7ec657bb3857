//! The gateway as a whole, between a plugin and a service played by the test, over real sockets on loopback.

mod access;
mod bench;
mod freeze;
mod gap;
mod observe;
mod resume;
mod silence;
mod stream;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::message::View;
use super::*;
use bench::{
    Bench, HOST, PluginSocket, SESSION, ServiceSocket, TOKEN, binary, establish, input, output, stream_url,
};
