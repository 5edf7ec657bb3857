//! PURE. The least that a set of tunnels needs, as an IAM policy.
//!
//! The actions, their resources and conditions are those of AWS's Service Authorization Reference for Systems Manager and
//! for Message Gateway Service.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::arn::Place;
use crate::aws::target::start_request;
use crate::aws::{PREFERENCES, ROLE_SESSION};
use crate::config::{Rotate, Target, Tunnel};

/// A policy as IAM takes it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Policy {
    version: &'static str,
    pub statement: Vec<Statement>,
}

/// One of its statements.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Statement {
    pub sid: String,
    pub effect: &'static str,
    pub action: Vec<&'static str>,
    pub resource: BTreeSet<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub condition: BTreeMap<&'static str, BTreeMap<String, String>>,
}

/// Without it, whoever may start a session with a target may start a shell there: the document is not looked at.
fn with_document_check(mut statement: Statement) -> Statement {
    let check = BTreeMap::from([("ssm:SessionDocumentAccessCheck".to_owned(), "true".to_owned())]);
    statement.condition.insert("BoolIfExists", check);
    statement
}

fn allow(sid: impl Into<String>, action: &[&'static str], resource: BTreeSet<String>) -> Statement {
    Statement {
        sid: sid.into(),
        effect: "Allow",
        action: action.to_vec(),
        resource,
        condition: BTreeMap::new(),
    }
}

/// Nothing in it is a variable or stands for something else.
fn literal(text: &str) -> String {
    text.replace('$', "${$}")
}

impl Policy {
    /// Of one principal: `tunnels` are run with its credentials, and `roles` assumed with them.
    pub(super) fn new(tunnels: &[&Tunnel], account: Option<&str>, roles: &BTreeSet<&str>) -> Self {
        let mut statement = Vec::new();
        let (mut targets, mut documents, mut places) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut tags: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
        for tunnel in tunnels {
            let place = Place::of(tunnel, account);
            match &tunnel.target {
                Target::Ids(ids) => targets.extend(ids.iter().map(|id| place.target(id))),
                Target::Tag { key, value } => {
                    tags.entry((key, value))
                        .or_default()
                        .extend([place.instance("*"), place.managed_node("*")]);
                }
            }
            documents.insert(place.document(&start_request(tunnel, "", "").document));
            places.insert((place, tunnel.identity.role_arn.is_some()));
        }
        if !targets.is_empty() {
            statement.push(with_document_check(allow("Targets", &["ssm:StartSession"], targets)));
        }
        for (number, ((key, value), nodes)) in tags.iter().enumerate() {
            let sid = format!("TargetsByTag{}", number + 1);
            let mut one = with_document_check(allow(sid, &["ssm:StartSession"], nodes.clone()));
            let tag = BTreeMap::from([(format!("ssm:resourceTag/{key}"), literal(value))]);
            one.condition.insert("StringEquals", tag);
            statement.push(one);
        }
        if !tunnels.is_empty() {
            statement.push(with_document_check(allow("Documents", &["ssm:StartSession"], documents)));
            own_sessions(&places, &mut statement);
        }
        if !tags.is_empty() {
            let all = BTreeSet::from(["*".to_owned()]);
            statement.push(allow("FindTargets", &["ssm:DescribeInstanceInformation"], all));
        }
        // Where it may not be read, the maximum duration is learnt from the first session that the service ends.
        let automatic = tunnels.iter().filter(|tunnel| tunnel.rotate == Rotate::Auto);
        let preferences: BTreeSet<_> =
            automatic.map(|tunnel| Place::of(tunnel, account).document(PREFERENCES)).collect();
        if !preferences.is_empty() {
            statement.push(allow("MaximumDuration", &["ssm:GetDocument"], preferences));
        }
        if !roles.is_empty() {
            let roles = roles.iter().map(|role| (*role).to_owned()).collect();
            statement.push(allow("AssumeRoles", &["sts:AssumeRole"], roles));
        }
        Self { version: "2012-10-17", statement }
    }

    /// As it is pasted.
    pub(super) fn json(&self) -> String {
        // Texts, lists and maps by text: serialization cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// A session's id begins with the name of who started it: an IAM user's, or an assumed role's session's. What
/// `aws:userid` holds of the latter is `ROLE-ID:NAME`; AWS's own examples have it in the ARN all the same, and as the second
/// method, which works for every kind of caller, the tag that the service gives to each session.
/// (<https://docs.aws.amazon.com/systems-manager/latest/userguide/getting-started-restrict-access-examples.html>)
fn own_sessions(places: &BTreeSet<(Place, bool)>, statement: &mut Vec<Statement>) {
    let mut named = BTreeSet::new();
    for (place, assumes) in places {
        named.insert(place.sessions("${aws:userid}-"));
        // The name is autossm's own where it assumes the role.
        named.insert(place.sessions(if *assumes { ROLE_SESSION } else { "${aws:username}-" }));
    }
    let actions = ["ssm:ResumeSession", "ssm:TerminateSession", "ssmmessages:OpenDataChannel"];
    statement.push(allow("OwnSessions", &actions, named));
    let all = places.iter().map(|(place, _)| place.sessions("")).collect();
    let mut tagged = allow("OwnSessionsByTag", &["ssm:ResumeSession", "ssm:TerminateSession"], all);
    let tag = BTreeMap::from([(
        "ssm:resourceTag/aws:ssmmessages:session-id".to_owned(),
        "${aws:userid}".to_owned(),
    )]);
    tagged.condition.insert("StringLike", tag);
    statement.push(tagged);
}
