//! PURE. The stock plugin's command line: `RESPONSE REGION OPERATION PROFILE REQUEST ENDPOINT`.

use serde::Deserialize;
use serde_json::Value;

/// A first argument that begins so names an environment variable; any other is the response itself.
pub const RESPONSE_VARIABLE: &str = "AWS_SSM_START_SESSION_RESPONSE";
/// Printed without arguments.
pub const INSTALLED: &str =
    "\nThe Session Manager plugin was installed successfully. Use the AWS CLI to start a session.\n\n";

/// What the arguments ask for.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Print this and end with status 0.
    Print(String),
    /// End as a Go program that panicked does: this on stderr, status 2.
    Crash(&'static str),
    /// Run a session.
    Start(Start),
}

/// One session to run.
#[derive(Debug, PartialEq)]
pub struct Start {
    /// The response of StartSession.
    pub session: StartedSession,
    /// The target of the request.
    pub target: String,
    /// For signatures and the API's default address.
    pub region: String,
    /// The API's address; empty for the region's own.
    pub endpoint: String,
}

/// The response of StartSession. A missing field crashes the plugin.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StartedSession {
    /// The session.
    pub session_id: String,
    /// Good for one opening of the data channel.
    pub token_value: String,
    /// The data channel's address.
    pub stream_url: String,
}

/// Reads the arguments that follow the program's name. `variable` reads the environment.
pub fn parse(arguments: &[String], version: &str, variable: impl Fn(&str) -> Option<String>) -> Command {
    let argument = |at: usize| arguments.get(at).map(String::as_str).unwrap_or_default();
    match arguments {
        [] => return Command::Print(INSTALLED.into()),
        [only] if only == "--version" => return Command::Print(format!("{version}\n")),
        [first] | [first, _] => {
            return Command::Print(format!(
                "\nUnknown operation {first}. \nUse session-manager-plugin --version to check the version.\n\n"
            ));
        }
        _ => {}
    }
    let mut target = String::new();
    if arguments.len() > 4 {
        let request: Value = serde_json::from_str(argument(4)).unwrap_or_default();
        let Some(named) = request.get("Target").and_then(Value::as_str) else {
            return Command::Crash("panic: interface conversion: interface {} is nil, not string");
        };
        named.clone_into(&mut target);
    }
    if argument(2) != "StartSession" {
        return Command::Print("Invalid Operation".into());
    }
    let response = if argument(0).starts_with(RESPONSE_VARIABLE) {
        variable(argument(0)).unwrap_or_default()
    } else {
        argument(0).into()
    };
    let response: Value = match serde_json::from_str(&response) {
        Ok(response) => response,
        Err(error) => {
            return Command::Print(format!("Cannot perform start session: {}\n", words(&error, &response)));
        }
    };
    match serde_json::from_value(response) {
        Ok(session) => {
            let (region, endpoint) = (argument(1).into(), argument(5).into());
            Command::Start(Start { session, target, region, endpoint })
        }
        Err(_) => Command::Crash("panic: runtime error: invalid memory address or nil pointer dereference"),
    }
}

/// The error in the words of Go's JSON parser.
fn words(error: &serde_json::Error, text: &str) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
    let found = line.chars().nth(error.column().saturating_sub(1)).unwrap_or('?');
    format!("invalid character '{found}' looking for beginning of value")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESPONSE: &str = r#"{"SessionId":"s-1","TokenValue":"t","StreamUrl":"wss://ssmmessages.x/"}"#;

    fn command(arguments: &[&str]) -> Command {
        let arguments: Vec<_> = arguments.iter().map(|text| (*text).to_owned()).collect();
        parse(&arguments, "1.2.3.4", |name| {
            (name == "AWS_SSM_START_SESSION_RESPONSE_1").then(|| RESPONSE.into())
        })
    }

    #[test]
    fn a_session_is_started_from_the_environment_or_the_argument() {
        for response in ["AWS_SSM_START_SESSION_RESPONSE_1", RESPONSE] {
            let Command::Start(start) =
                command(&[response, "us-west-2", "StartSession", "", r#"{"Target":"i-1"}"#, "https://e"])
            else {
                panic!("no session")
            };
            assert_eq!((start.region.as_str(), start.endpoint.as_str()), ("us-west-2", "https://e"));
            assert_eq!(start.session.session_id, "s-1");
        }
    }

    #[test]
    fn words_without_a_session() {
        assert_eq!(command(&[]), Command::Print(INSTALLED.into()));
        assert_eq!(command(&["--version"]), Command::Print("1.2.3.4\n".into()));
        assert_eq!(
            command(&["help"]),
            Command::Print(
                "\nUnknown operation help. \nUse session-manager-plugin --version to check the version.\n\n"
                    .into()
            )
        );
        assert_eq!(command(&[RESPONSE, "r", "Other"]), Command::Print("Invalid Operation".into()));
    }

    #[test]
    fn what_is_missing_crashes_and_what_is_no_json_is_told() {
        assert!(matches!(command(&[RESPONSE, "r", "StartSession", "", "{}", "e"]), Command::Crash(_)));
        assert!(matches!(command(&["{}", "r", "StartSession"]), Command::Crash(_)));
        assert_eq!(
            command(&["AWS_SSM_START_SESSION_RESPONSE", "r", "StartSession"]),
            Command::Print("Cannot perform start session: unexpected end of JSON input\n".into())
        );
        assert_eq!(
            command(&["x", "r", "StartSession"]),
            Command::Print(
                "Cannot perform start session: invalid character 'x' looking for beginning of value\n".into()
            )
        );
    }
}
