//! What IAM allows, as far as it can be tried without harm: calls about a session that there is not, and calls that only
//! read.

use futures_util::future::join3;

use super::finding::Finding;
use super::{Running, status};
use crate::aws::errors::Refusal;
use crate::aws::sdk::{Inquiry, SeenDocument};
use crate::config::{Rotate, Target, Tunnel};

const CHECK: &str = "permission";
const POLICY: &str = "autossm policy prints what has to be allowed";

/// The answers.
pub(super) struct Permissions {
    resume: Result<(), Refusal>,
    terminate: Result<(), Refusal>,
    list: Result<(), Refusal>,
}

impl Permissions {
    /// Tries all at once.
    pub async fn of(inquiry: &Inquiry, session: &str) -> Self {
        let calls =
            join3(inquiry.may_resume(session), inquiry.may_terminate(session), inquiry.may_list_nodes());
        let (resume, terminate, list) = calls.await;
        Self { resume, terminate, list }
    }

    /// What they mean for these tunnels.
    pub fn findings(
        self,
        preferences: &Result<Option<SeenDocument>, Refusal>,
        tunnels: &[&Tunnel],
        running: &Running,
    ) -> Vec<Finding> {
        let by_tag = tunnels.iter().any(|tunnel| matches!(tunnel.target, Target::Tag { .. }));
        let automatic = tunnels.iter().any(|tunnel| tunnel.rotate == Rotate::Auto);
        let resumed = tunnels.iter().filter_map(|tunnel| status(running, &tunnel.name));
        let resumed = resumed.map(|status| status.resumes.total).sum::<u64>();
        let mut found = vec![start(tunnels, running)];
        found.push(match self.resume {
            Err(refusal) if resumed > 0 && refusal.is_denied() => Finding::ok(
                CHECK,
                format!("ssm:ResumeSession: allowed; the daemon has resumed data channels: {resumed}"),
            ),
            answer => own_session("ssm:ResumeSession", answer),
        });
        found.push(own_session("ssm:TerminateSession", self.terminate));
        let list = "ssm:DescribeInstanceInformation";
        found.push(match self.list {
            Err(refusal) if refusal.is_denied() && by_tag => Finding::failure(
                CHECK,
                format!("{list}: {}", refusal.failure),
                format!("allow {list}; {POLICY}"),
            ),
            Err(refusal) if refusal.is_denied() => {
                Finding::skipped(CHECK, format!("{list}: not allowed; only targets by tag need it"))
            }
            answer => other(list, answer),
        });
        let read = "ssm:GetDocument";
        found.push(match preferences {
            Err(refusal) if refusal.is_denied() && automatic => Finding::warning(
                CHECK,
                format!(
                    "{read}: {}; `rotate = \"auto\"` learns the account's limit from the sessions that end by it",
                    refusal.failure
                ),
                format!("allow {read}; {POLICY}"),
            ),
            Err(refusal) if refusal.is_denied() => {
                Finding::skipped(CHECK, format!("{read}: not allowed; only `rotate = \"auto\"` wants it"))
            }
            answer => other(read, answer.as_ref().map(|_| ()).map_err(Clone::clone)),
        });
        found
    }
}

/// StartSession cannot be tried, but a daemon may have done so.
fn start(tunnels: &[&Tunnel], running: &Running) -> Finding {
    let calls = "ssm:StartSession, ssmmessages:OpenDataChannel";
    let statuses = || tunnels.iter().filter_map(|tunnel| status(running, &tunnel.name));
    let denied = statuses()
        .filter_map(|status| Some((status, status.failure.as_ref()?)))
        .find(|(_, failure)| failure.text.starts_with("StartSession: AccessDenied"));
    if let Some((status, failure)) = denied {
        let message =
            format!("ssm:StartSession: the daemon of {} was refused: {}", status.name, failure.text);
        return Finding::failure(CHECK, message, format!("allow ssm:StartSession; {POLICY}"));
    }
    match statuses().find(|status| status.state.serves()) {
        Some(status) => Finding::ok(CHECK, format!("{calls}: allowed; {} has a session", status.name)),
        None => {
            Finding::skipped(CHECK, format!("{calls}: cannot be tried without starting a session; {POLICY}"))
        }
    }
}

/// Of a call about a session that there is not. A policy that goes by the sessions' tags cannot allow it, so that a refusal
/// may be right.
fn own_session(action: &str, answer: Result<(), Refusal>) -> Finding {
    match answer {
        Err(refusal) if refusal.is_denied() => Finding::warning(
            CHECK,
            format!("{action}: refused for a session that there is not: {}", refusal.failure),
            format!(
                "allow {action} on one's own sessions; {POLICY}. If your policy does so by the sessions' tag, it cannot be \
                 tried: all is well"
            ),
        ),
        answer => other(action, answer),
    }
}

fn other(action: &str, answer: Result<(), Refusal>) -> Finding {
    match answer {
        Ok(()) => Finding::ok(CHECK, format!("{action}: allowed")),
        Err(refusal) if refusal.is_denied() => Finding::failure(
            CHECK,
            format!("{action}: {}", refusal.failure),
            format!("allow {action}; {POLICY}"),
        ),
        Err(refusal) => Finding::warning(
            CHECK,
            format!("{action}: could not be tried: {}", refusal.failure),
            "run autossm doctor again; if it stays so, look at the AWS Health Dashboard",
        ),
    }
}
