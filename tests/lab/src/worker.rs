//! The process that has a session at its far end: the lab's own agent, which is only a few tasks, or a program beside the lab, so that the
//! real agent's code can take its place. Both reach the service by the agents' listener, and by nothing else.
//!
//! Such a program is started as `PROGRAM SESSION_ID ENDPOINT`, with what the session is for as JSON in `LAB_AGENT_PLAN`: `SessionId`, `ClientId`,
//! `InstanceId`, `Region`, `SessionType`, `KmsKeyId` and `Properties`. ENDPOINT is `http://127.0.0.1:PORT`. There it gets its token (a POST to
//! `/v1/data-channel/SESSION_ID`, answered with 201 and XML) and opens its WebSocket (`?role=publish_subscribe`). When it is done it writes one line
//! `{"Status":"Success","Output":""}` and ends; the output is what the client is told. One that ends without has died.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::{Agent, Plan};
use crate::options::AgentProgram;
use crate::service::relay::{Outcome, Relay};
use crate::state::State;

/// A worker has so long to end when its session is over.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What a supervisor says of a worker that has died.
pub(crate) const DIED: &str = "document process failed unexpectedly: ipc messaging received timeout signal , check \
                               [ssm-document-worker]/[ssm-session-worker] log for crash reason";

/// The worker of one session.
pub(crate) enum Worker {
    InProcess(Arc<Agent>),
    External(Arc<External>),
}

impl Worker {
    /// Which of them a session has. The real agent encrypts no port session.
    pub fn is_external(state: &State, plan: &Plan) -> bool {
        state.options.agent.is_external() && plan.session_type == "Port" && plan.encryption.is_none()
    }

    pub fn new(state: &Arc<State>, relay: &Arc<Relay>, target: &str, plan: Plan) -> Self {
        match &state.options.agent {
            AgentProgram::External(program) if Self::is_external(state, &plan) => {
                Self::External(Arc::new(External::new(state, relay, target, program, &plan)))
            }
            _ => Self::InProcess(Agent::new(state.clone(), relay.clone(), target.to_owned(), plan)),
        }
    }

    pub fn start(&self) {
        match self {
            Self::InProcess(agent) => agent.clone().start(),
            Self::External(external) => external.clone().start(),
        }
    }

    /// Lets it do nothing at all, or go on.
    pub fn hang(&self, hangs: bool) {
        match self {
            Self::InProcess(agent) => drop(agent.hangs.send_replace(hangs)),
            Self::External(external) => {
                external.signal(if hangs { Signal::SIGSTOP } else { Signal::SIGCONT });
            }
        }
    }

    /// It dies at once.
    pub fn kill(&self) {
        match self {
            Self::InProcess(agent) => agent.kill(),
            Self::External(external) => external.killed.cancel(),
        }
    }
}

/// A program beside the lab.
pub(crate) struct External {
    state: Arc<State>,
    relay: Arc<Relay>,
    command: Mutex<Option<Command>>,
    /// While it runs.
    pid: Mutex<Option<Pid>>,
    /// On command: nobody is told by its end.
    killed: CancellationToken,
}

/// What a worker says at its end.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Said {
    output: String,
}

impl External {
    fn new(state: &Arc<State>, relay: &Arc<Relay>, target: &str, program: &Path, plan: &Plan) -> Self {
        let mut properties = plan.properties.clone();
        // Names are the lab's to resolve.
        if let Some(address) = plan.addresses.first()
            && properties["host"].as_str().is_some_and(|host| !host.is_empty())
        {
            properties["host"] = json!(address.ip().to_string());
            properties["portNumber"] = json!(address.port().to_string());
        }
        let plan = json!({
            "SessionId": relay.session,
            "ClientId": Uuid::new_v4().to_string(),
            "InstanceId": target,
            "Region": state.options.region,
            "SessionType": plan.session_type,
            "KmsKeyId": "",
            "Properties": properties,
        });
        let mut command = Command::new(program);
        command
            .arg(&relay.session)
            .arg(format!("http://{}", state.agents()))
            .env("LAB_AGENT_PLAN", plan.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        Self {
            state: state.clone(),
            relay: relay.clone(),
            command: Mutex::new(Some(command)),
            pid: Mutex::default(),
            killed: CancellationToken::new(),
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = *self.pid.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = kill(pid, signal);
        }
    }

    fn start(self: Arc<Self>) {
        let command = self.command.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut command) = command else { return };
        match command.spawn() {
            Ok(child) => {
                let pid = child.id().map(|id| Pid::from_raw(id.cast_signed()));
                *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = pid;
                let state = self.state.clone();
                state.handle.spawn(self.attend(child));
            }
            Err(error) => {
                let words = format!("the agent's worker {:?} cannot be started: {error}", command.as_std());
                self.state.violation(&self.relay.session, words);
            }
        }
    }

    /// Until it has ended, by itself or with its session.
    async fn attend(self: Arc<Self>, mut child: Child) {
        let mut lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        let ends = async {
            let mut said = None;
            if let Some(lines) = &mut lines {
                while let Ok(Some(line)) = lines.next_line().await {
                    said = serde_json::from_str::<Said>(&line).ok().or(said);
                }
            }
            said
        };
        let over = async {
            self.relay.ended.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let said = tokio::select! {
            said = ends => Some(said),
            () = over => None,
            () = self.killed.cancelled() => None,
        };
        // Its number is good until it has been waited for.
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let _ = child.start_kill();
        let _ = child.wait().await;
        let outcome = match said {
            None => return,
            Some(Some(Said { output })) => Outcome { by_client: output.is_empty(), output },
            Some(None) => {
                let reported = tokio::time::sleep(self.state.options.dead_worker_reported);
                if self.relay.ended.run_until_cancelled(reported).await.is_none() {
                    return;
                }
                Outcome { output: DIED.into(), by_client: false }
            }
        };
        self.relay.outcome.send_replace(Some(outcome));
    }
}
