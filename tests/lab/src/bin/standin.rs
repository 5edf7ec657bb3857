//! The stand-in for the stock `session-manager-plugin`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    // One thread: an acknowledgement is never read before the message that it names is noted as sent.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let status = runtime.block_on(autossm_lab::standin::run(&program, &arguments));
    // A read of stdin that goes on forever does not hold the end up.
    runtime.shutdown_background();
    ExitCode::from(status)
}
