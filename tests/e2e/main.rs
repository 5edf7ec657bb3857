//! The whole program against the lab. `AUTOSSM_TEST_PLUGIN=/path/to/session-manager-plugin` runs all of it with the
//! stock plugin instead of the stand-in.

mod bytes;
mod daemon;
mod faults;
mod life;
