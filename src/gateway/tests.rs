//! The gateway as a whole, between a plugin and a service played by the test, over real sockets on loopback.

mod access;
mod bench;
mod observe;
mod resume;
mod silence;
mod stream;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::message::View;
use super::*;
use bench::{Bench, HOST, SESSION, TOKEN, binary, establish, input, output, stream_url};
