//! What a lab is started with.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

/// What a lab is started with; the defaults do for most tests.
#[derive(Clone, Debug)]
pub struct Options {
    /// The region in the host names of stream URLs.
    pub region: String,
    /// The host in stream URLs; `None` for `ssmmessages.REGION.amazonaws.com`.
    pub stream_host: Option<String>,
    /// Loopback port of the API, 0 for any.
    pub api_port: u16,
    /// Loopback port of the data channel without TLS, 0 for any.
    pub ws_port: u16,
    /// Loopback port of data channel and API with TLS, 0 for any.
    pub tls_port: u16,
    /// Where they listen instead; for tests that have a network of their own.
    pub tls_address: Option<SocketAddr>,
    /// Decides which messages are lost.
    pub seed: u64,
    /// What the agent calls itself in the handshake.
    pub agent_version: String,
    /// Managed nodes. A target that is not among them is taken to be online, with no tags.
    pub nodes: Vec<Node>,
    /// Session documents beside the ones that every account has.
    pub documents: BTreeMap<String, Document>,
    /// Addresses of remote hosts by name, each with the port that stands for every port of that host. A session keeps
    /// the addresses of its start. Other names are looked up; only loopback addresses are ever dialled.
    pub hosts: BTreeMap<String, Vec<SocketAddr>>,
    /// Whether the service tells the agent to pause while no client is connected. If not, the agent goes on, and what it
    /// sends is lost.
    pub pauses_agent: bool,
    /// Whether clients may read documents, the account's preferences among them.
    pub documents_are_readable: bool,
    /// Whether a stream URL is refused as soon as ResumeSession has returned a newer one.
    pub cells_expire: bool,
    /// The agent gives up if the client has not answered its handshake for so long after the session's start.
    pub handshake_timeout: Duration,
    /// From the handshake's end until the agent takes data. What comes before is neither taken nor acknowledged.
    pub set_up: Duration,
    /// The agent waits so long after each message, whatever is acknowledged.
    pub pace: Duration,
    /// How often the agent pings the service.
    pub agent_ping: Duration,
    /// The agent takes its connection for dead where no pong has come for so long; after its opening `agent_ping` is added.
    pub agent_pong_wait: Duration,
    /// How often an agent's mux sends a keep-alive. Only for clients up to 1.2.331.0.
    pub mux_keep_alive: Duration,
    /// The mux ends its session where nothing of the client's has come between two looks, which are so far apart.
    pub mux_keep_alive_timeout: Duration,
    /// When the service hears of a worker that has died by itself.
    pub dead_worker_reported: Duration,
    /// What the agent of a session is.
    pub agent: AgentProgram,
    /// How long the keys of an assumed role live. At AWS it is 15 min at least.
    pub role_lives: Duration,
    /// The account has its sessions encrypted with this KMS key.
    pub kms_key: Option<String>,
    /// A missing number in the client's stream that stays missing for so long, while everything works, is a violation.
    pub gap_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            region: "us-west-2".into(),
            stream_host: None,
            api_port: 0,
            ws_port: 0,
            tls_port: 0,
            tls_address: None,
            seed: 1,
            agent_version: "3.3.2299.0".into(),
            nodes: Vec::new(),
            documents: BTreeMap::new(),
            hosts: BTreeMap::new(),
            pauses_agent: true,
            documents_are_readable: true,
            cells_expire: false,
            handshake_timeout: Duration::from_secs(15),
            set_up: Duration::from_millis(5),
            // A millisecond asked for is a little more of the real agent's, so that it comes to 900 messages a second.
            pace: Duration::from_micros(1110),
            agent_ping: Duration::from_secs(54),
            agent_pong_wait: Duration::from_secs(60),
            mux_keep_alive: Duration::from_secs(10),
            mux_keep_alive_timeout: Duration::from_secs(30),
            dead_worker_reported: Duration::from_secs(60),
            agent: AgentProgram::of_environment(),
            role_lives: Duration::from_secs(3600),
            kms_key: None,
            gap_limit: Duration::from_secs(10),
        }
    }
}

impl Options {
    /// The host in stream URLs.
    pub fn stream_host(&self) -> String {
        self.stream_host.clone().unwrap_or_else(|| format!("ssmmessages.{}.amazonaws.com", self.region))
    }
}

/// What the agent of a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentProgram {
    /// The lab's own.
    InProcess,
    /// A worker of its own for each session, `PROGRAM SESSION_ID ENDPOINT`, as `worker` has it.
    External(PathBuf),
}

impl AgentProgram {
    /// The one that `AUTOSSM_TEST_AGENT` names, or the lab's own.
    pub fn of_environment() -> Self {
        match std::env::var_os("AUTOSSM_TEST_AGENT").filter(|path| !path.is_empty()) {
            Some(path) => Self::External(path.into()),
            None => Self::InProcess,
        }
    }

    pub(crate) fn is_external(&self) -> bool {
        matches!(self, Self::External(_))
    }
}

/// A managed node.
#[derive(Clone, Debug)]
pub struct Node {
    /// `i-…` or `mi-…`.
    pub id: String,
    /// `Online` as opposed to `ConnectionLost`.
    pub online: bool,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Node {
    /// An online node with one tag.
    pub fn tagged(id: &str, tag: &str, value: &str) -> Self {
        Self { id: id.into(), online: true, tags: BTreeMap::from([(tag.into(), value.into())]) }
    }
}

/// A session document.
#[derive(Clone, Debug)]
pub struct Document {
    /// `Port`, `Standard_Stream`, `InteractiveCommands` …
    pub session_type: String,
    /// Parameters with their default values; `None` where one has to be given.
    pub parameters: BTreeMap<String, Option<String>>,
    /// Text values may name parameters: `{{ portNumber }}`.
    pub properties: Value,
}

impl Document {
    /// A document for a port of the target, or of a remote host if `host` is among the parameters.
    pub fn port<'a>(parameters: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> Self {
        let parameters: BTreeMap<String, Option<String>> = parameters
            .into_iter()
            .map(|(name, default)| (name.to_owned(), default.map(Into::into)))
            .collect();
        let mut properties = json!({ "type": "LocalPortForwarding" });
        for name in parameters.keys() {
            properties[name] = json!(format!("{{{{ {name} }}}}"));
        }
        Self { session_type: "Port".into(), parameters, properties }
    }

    /// The documents of every account.
    pub fn built_in() -> BTreeMap<String, Self> {
        let shell = |session_type: &str| Self {
            session_type: session_type.into(),
            parameters: BTreeMap::new(),
            properties: json!({}),
        };
        let port = [("portNumber", Some("80")), ("localPortNumber", Some("0"))];
        BTreeMap::from([
            ("AWS-StartPortForwardingSession".into(), Self::port(port)),
            (
                "AWS-StartPortForwardingSessionToRemoteHost".into(),
                Self::port(port.into_iter().chain([("host", None)])),
            ),
            ("SSM-SessionManagerRunShell".into(), shell("Standard_Stream")),
            ("AWS-StartInteractiveCommand".into(), shell("InteractiveCommands")),
        ])
    }

    /// The properties with parameters put in.
    ///
    /// # Errors
    /// An unknown parameter, or one without a value.
    pub fn fill(&self, given: &BTreeMap<String, Vec<String>>) -> Result<Value, String> {
        if let Some(unknown) = given.keys().find(|name| !self.parameters.contains_key(*name)) {
            return Err(format!("Parameters [{unknown}] are not defined in the document"));
        }
        let mut properties = self.properties.clone();
        let Value::Object(fields) = &mut properties else {
            return Ok(properties);
        };
        for (name, default) in &self.parameters {
            let value = given.get(name).and_then(|values| values.first()).or(default.as_ref());
            let value = value.ok_or_else(|| format!("Parameter \"{name}\" requires a value"))?;
            for text in fields.values_mut() {
                if let Value::String(text) = text {
                    *text = text.replace(&format!("{{{{ {name} }}}}"), value);
                }
            }
        }
        Ok(properties)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_put_into_properties() {
        let document = &Document::built_in()["AWS-StartPortForwardingSessionToRemoteHost"];
        let mut given = BTreeMap::from([("portNumber".to_owned(), vec!["5432".to_owned()])]);
        assert_eq!(document.fill(&given).unwrap_err(), "Parameter \"host\" requires a value");
        given.insert("host".into(), vec!["db".into()]);
        let filled =
            json!({"type":"LocalPortForwarding","host":"db","portNumber":"5432","localPortNumber":"0"});
        assert_eq!(document.fill(&given).unwrap(), filled);
        given.insert("hots".into(), vec![]);
        assert!(document.fill(&given).unwrap_err().contains("[hots]"));
    }
}
