//! The calls of the Session Manager API that clients use.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::error::Refusal;
use super::session::{Request, Session, resolve};
use crate::agent::{KmsKey, Plan};
use crate::fault::{ApiFault, Call};
use crate::state::State;

/// Nodes on one page of DescribeInstanceInformation, unless the client asks for fewer.
const PAGE: usize = 10;

/// Answers one call.
pub(crate) async fn answer(state: &Arc<State>, call: &str, body: &Bytes) -> Result<Value, Refusal> {
    let with_faults = match call {
        "StartSession" => Some(Call::Start),
        "ResumeSession" => Some(Call::Resume),
        "TerminateSession" => Some(Call::Terminate),
        "DescribeInstanceInformation" => Some(Call::DescribeNodes),
        "GetDocument" => Some(Call::GetDocument),
        _ => None,
    };
    if let Some(call) = with_faults {
        // A client that goes away meanwhile takes this future with it.
        let mut faults = state.faults.subscribe();
        let _ = faults.wait_for(|faults| faults.on(call) != Some(ApiFault::Silence)).await;
    }
    let result = process(state, call, body, with_faults).await;
    state.count(|status| {
        let calls = match with_faults {
            Some(Call::Start) => &mut status.start,
            Some(Call::Resume) => &mut status.resume,
            Some(Call::Terminate) => &mut status.terminate,
            _ => &mut status.other,
        };
        calls.processed += 1;
        calls.succeeded += u64::from(result.is_ok());
    });
    result
}

async fn process(
    state: &Arc<State>,
    call: &str,
    body: &Bytes,
    with_faults: Option<Call>,
) -> Result<Value, Refusal> {
    let input: Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::new("SerializationException", error.to_string()))?;
    let fault = with_faults.and_then(|call| state.faults.borrow().on(call));
    let denied = call == "StartSession" && state.world().denied_targets.contains(text(&input, "Target"));
    let fault = if denied { Some(ApiFault::Denied) } else { fault };
    if let Some(refusal) = fault.and_then(|fault| {
        let resource = format!("arn:aws:ec2:us-west-2:111122223333:instance/{}", text(&input, "Target"));
        Refusal::of(fault, &format!("ssm:{call}"), &resource)
    }) {
        return Err(refusal);
    }
    match call {
        "StartSession" => start(state, &input).await,
        "ResumeSession" => resume(state, &input, fault == Some(ApiFault::NoToken)),
        "TerminateSession" => {
            let session = known(state, &input)?;
            session.end(state, "", true);
            Ok(json!({ "SessionId": session.id }))
        }
        "DescribeInstanceInformation" => {
            state.count(|status| status.nodes_listed += 1);
            describe_nodes(state, &input)
        }
        "DescribeSessions" => Ok(describe_sessions(state, &input)),
        "GetDocument" => document(state, &input),
        _ => Err(Refusal::new("UnknownOperationException", "")),
    }
}

async fn start(state: &Arc<State>, input: &Value) -> Result<Value, Refusal> {
    let target = text(input, "Target").to_owned();
    let name = match text(input, "DocumentName") {
        "" => "SSM-SessionManagerRunShell",
        name => name,
    };
    let reason = text(input, "Reason").to_owned();
    if !["i-", "mi-", "ecs:"].iter().any(|prefix| target.starts_with(prefix)) || reason.len() > 256 {
        return Err(Refusal::new("ValidationException", "1 validation error detected"));
    }
    let (online, document) = {
        let world = state.world();
        let online = world.nodes.iter().find(|node| node.id == target).is_none_or(|node| node.online)
            && !world.refused_targets.contains(&target);
        (online, world.documents.get(name).cloned())
    };
    let document = document.ok_or_else(|| {
        Refusal::new("InvalidDocument", format!("Document with name {name} does not exist."))
    })?;
    if !online {
        return Err(Refusal::new("TargetNotConnected", format!("{target} is not connected.")));
    }
    let parameters: BTreeMap<String, Vec<String>> = match &input["Parameters"] {
        Value::Null => BTreeMap::new(),
        given => serde_json::from_value(given.clone())
            .map_err(|error| Refusal::new("SerializationException", error.to_string()))?,
    };
    let properties = document.fill(&parameters).map_err(|words| Refusal::new("InvalidParameters", words))?;
    let mut addresses = Vec::new();
    if document.session_type == "Port" {
        let port = text(&properties, "portNumber");
        let port = port.parse().map_err(|_| {
            let words = format!("Parameter \"portNumber\" has value \"{port}\" which is no port number.");
            Refusal::new("InvalidParameters", words)
        })?;
        addresses = resolve(state, properties["host"].as_str(), port).await;
    }
    let encryption = state.options.kms_key.clone().map(|id| KmsKey {
        id,
        target: target.clone(),
        challenge: BASE64_STANDARD.encode(rand::random::<[u8; 16]>()),
    });
    let plan = Plan { session_type: document.session_type, properties, addresses, encryption };
    let session = Session::start(state, Request { target, document: name.into(), reason, plan });
    let (token, url) = session.grant(&state.options.stream_host());
    Ok(json!({ "SessionId": session.id, "TokenValue": token, "StreamUrl": url }))
}

fn resume(state: &Arc<State>, input: &Value, without_token: bool) -> Result<Value, Refusal> {
    let session = known(state, input)?;
    if without_token || !session.is_live() {
        return Ok(json!({ "SessionId": session.id, "TokenValue": null, "StreamUrl": null }));
    }
    let (token, url) = session.grant(&state.options.stream_host());
    Ok(json!({ "SessionId": session.id, "TokenValue": token, "StreamUrl": url }))
}

fn describe_nodes(state: &State, input: &Value) -> Result<Value, Refusal> {
    let filters = input["Filters"].as_array().cloned().unwrap_or_default();
    let mut matching = state.world().nodes.clone();
    for filter in &filters {
        let values: Vec<&str> =
            filter["Values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        match text(filter, "Key") {
            "PingStatus" => matching.retain(|node| values.contains(&ping_status(node.online))),
            "InstanceIds" => matching.retain(|node| values.contains(&node.id.as_str())),
            key => {
                let tag = key.strip_prefix("tag:").ok_or_else(|| {
                    Refusal::new("InvalidFilterKey", format!("The filter key {key} is not valid."))
                })?;
                matching
                    .retain(|node| node.tags.get(tag).is_some_and(|value| values.contains(&value.as_str())));
            }
        }
    }
    let from = match text(input, "NextToken") {
        "" => 0,
        token => token
            .parse()
            .map_err(|_| Refusal::new("InvalidNextToken", "The specified token is not valid."))?,
    };
    let size = input["MaxResults"].as_u64().map_or(PAGE, |most| PAGE.min(most as usize));
    let page: Vec<Value> = matching
        .iter()
        .skip(from)
        .take(size)
        .map(|node| json!({ "InstanceId": node.id, "PingStatus": ping_status(node.online), "AgentVersion": state.options.agent_version }))
        .collect();
    let next = (from + size < matching.len()).then(|| (from + size).to_string());
    Ok(json!({ "InstanceInformationList": page, "NextToken": next }))
}

fn ping_status(online: bool) -> &'static str {
    if online { "Online" } else { "ConnectionLost" }
}

fn describe_sessions(state: &State, input: &Value) -> Value {
    let active = text(input, "State") != "History";
    let sessions: Vec<Value> = state
        .world()
        .sessions
        .values()
        .filter(|session| session.is_live() == active)
        .map(|session| {
            json!({
                "SessionId": session.id,
                "Target": session.target,
                "DocumentName": session.document,
                "Reason": session.reason,
                "Status": if active { "Connected" } else { "Terminated" },
            })
        })
        .collect();
    json!({ "Sessions": sessions })
}

fn document(state: &State, input: &Value) -> Result<Value, Refusal> {
    let name = text(input, "Name");
    if !state.options.documents_are_readable {
        let words =
            format!("User is not authorized to perform: ssm:GetDocument on resource: document/{name}");
        return Err(Refusal::new("AccessDeniedException", words));
    }
    let document = state.world().documents.get(name).cloned();
    let document = document.ok_or_else(|| {
        Refusal::new("InvalidDocument", format!("Document with name {name} does not exist."))
    })?;
    let parameters: BTreeMap<&String, Value> = document
        .parameters
        .iter()
        .map(|(name, default)| (name, json!({ "type": "String", "default": default })))
        .collect();
    // In whole minutes, as the real one; a shorter limit of a test cannot be said.
    let maximum = state.faults.borrow().maximum_life.map_or(0, |limit| limit.as_secs() / 60);
    let maximum = if maximum > 0 { maximum.to_string() } else { String::new() };
    let idle = (state.faults.borrow().idle_timeout.as_secs() / 60).to_string();
    let content = json!({
        "schemaVersion": "1.0",
        "sessionType": document.session_type,
        "inputs": { "maxSessionDuration": maximum, "idleSessionTimeout": idle },
        "parameters": parameters,
        "properties": document.properties,
    });
    Ok(
        json!({ "Name": name, "Content": content.to_string(), "DocumentType": "Session", "DocumentFormat": "JSON" }),
    )
}

fn known(state: &State, input: &Value) -> Result<Arc<Session>, Refusal> {
    let id = text(input, "SessionId");
    let session = state.world().sessions.get(id).cloned();
    session.ok_or_else(|| Refusal::new("DoesNotExistException", format!("Session {id} does not exist.")))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}
