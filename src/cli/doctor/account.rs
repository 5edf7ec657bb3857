//! One identity: the way to AWS, its credentials, what they are allowed, and the account's timeouts.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures_util::future::{join_all, join3};

use super::finding::{Finding, Section, Verdict};
use super::permissions::Permissions;
use super::reach_out::{self, Host};
use super::{PATIENCE, Running};
use crate::aws::PREFERENCES;
use crate::aws::errors::Refusal;
use crate::aws::sdk::{Caller, Clients, Inquiry, SeenDocument};
use crate::cli::paint::age;
use crate::config::{Identity, Tunnel};
use crate::network::Network;
use crate::tunnel::failure::{Class, Failure};

/// Credentials that cannot be renewed and have less than this left are worth a word.
const EXPIRING: Duration = Duration::from_secs(600);

/// What was found, for those who look at its tunnels.
pub(super) struct Account {
    pub section: Section,
    pub inquiry: Option<Inquiry>,
    /// Why nothing can be asked.
    pub blocked: Option<&'static str>,
    /// The account's Session Manager preferences.
    pub preferences: Option<Result<Option<SeenDocument>, Refusal>>,
}

/// Looks at one identity.
pub(super) async fn examine(
    clients: &Clients,
    identity: &Identity,
    tunnels: &[&Tunnel],
    running: &Running,
) -> Account {
    let names: Vec<&str> = tunnels.iter().map(|tunnel| tunnel.name.as_str()).collect();
    let begun = async {
        let network = clients.network(identity.ca_file.as_deref())?;
        Ok::<_, Failure>((network, clients.inquiry(identity, PATIENCE).await?))
    };
    let (network, inquiry) = match begun.await {
        Ok(begun) => begun,
        Err(failure) => {
            let mut section = Section::new("AWS", &names);
            section.add(Finding::failure_of("aws", &failure.text, "set `region`, or mend `ca_file`"));
            return Account {
                section,
                inquiry: None,
                blocked: Some("it is not known where and how"),
                preferences: None,
            };
        }
    };
    let section = Section::new(&title(identity, &inquiry, &names), &names);
    let mut account = Account { section, inquiry: None, blocked: None, preferences: None };
    account.ask(inquiry, &network, identity, tunnels, running).await;
    account
}

/// Where, as whom, for which tunnels.
fn title(identity: &Identity, inquiry: &Inquiry, names: &[&str]) -> String {
    let mut title = format!("AWS {}", inquiry.region());
    if let Some(profile) = &identity.profile {
        title += &format!(", profile {profile}");
    }
    if let Some(role) = &identity.role_arn {
        title += &format!(", {role}");
    }
    match names {
        [.., last] if names.len() > 3 => format!("{title} ({} … {last})", names.first().unwrap_or(last)),
        names => format!("{title} ({})", names.join(", ")),
    }
}

impl Account {
    async fn ask(
        &mut self,
        inquiry: Inquiry,
        network: &Network,
        identity: &Identity,
        tunnels: &[&Tunnel],
        running: &Running,
    ) {
        let api = async {
            match Host::of_url(inquiry.url()) {
                Some(host) => reach_out::reach("api", "the API at", &host, network).await,
                None => (Finding::failure("api", "its URL cannot be read", "mend `endpoint_url`"), None),
            }
        };
        let channels: BTreeSet<Host> = tunnels.iter().map(|tunnel| channel(tunnel, &inquiry)).collect();
        let channels = channels
            .iter()
            .map(|host| reach_out::reach("data-channel", "the data channels' host", host, network));
        let (api, credentials, channels) = join3(api, inquiry.credentials(), join_all(channels)).await;

        let (api, ahead) = api;
        self.section.add(api);
        self.section.extend(channels.into_iter().map(|(finding, _)| finding));
        let clock = ahead.map(reach_out::clock);
        let wrong_clock = clock.as_ref().is_some_and(|clock| clock.verdict == Verdict::Failure);
        self.section.extend(clock);
        let has_credentials = credentials.is_ok();
        // Providers that AWS has to be asked for are silent for the same reason as the API.
        let silent = ahead.is_none() && credentials.as_ref().is_err_and(|e| e.class == Class::Network);
        self.section.add(match credentials {
            Err(failure) if silent => {
                Finding::skipped("credentials", format!("not known as long as the API is away: {failure}"))
            }
            credentials => told(credentials, identity),
        });
        self.blocked = match (ahead, wrong_clock, has_credentials) {
            (None, ..) => Some("the API cannot be reached"),
            (_, true, _) => Some("this host's clock is wrong"),
            (.., false) => Some("there are no credentials"),
            _ => None,
        };
        if self.blocked.is_none() {
            self.ask_as(&inquiry, identity, tunnels, running).await;
        }
        if let Some(why) = self.blocked {
            self.section.add(Finding::skipped("permission", format!("not tried: {why}")));
        }
        self.inquiry = Some(inquiry);
    }

    /// What only somebody can ask who has credentials.
    async fn ask_as(
        &mut self,
        inquiry: &Inquiry,
        identity: &Identity,
        tunnels: &[&Tunnel],
        running: &Running,
    ) {
        let caller = match inquiry.caller().await {
            Ok(caller) => {
                self.section
                    .add(Finding::ok("identity", format!("{}, account {}", caller.arn, caller.account)));
                Some(caller)
            }
            Err(refusal) if refusal.failure.class == Class::Access => {
                let remedy = "renew the credentials, or take others";
                self.section.add(Finding::failure_of("identity", &refusal.failure.text, remedy));
                self.blocked = Some("the credentials are refused");
                return;
            }
            // Tunnels do without it.
            Err(refusal) => {
                self.section.add(Finding::skipped("identity", format!("not known: {}", refusal.failure)));
                None
            }
        };
        let session = session_of(caller.as_ref(), identity);
        let (permissions, preferences) =
            futures_util::future::join(Permissions::of(inquiry, &session), inquiry.document(PREFERENCES))
                .await;
        self.section.extend(permissions.findings(&preferences, tunnels, running));
        self.preferences = Some(preferences);
    }
}

/// A session that there is not, with a name that this caller's own sessions have: policies go by it.
fn session_of(caller: Option<&Caller>, identity: &Identity) -> String {
    let own = if identity.role_arn.is_some() { crate::aws::ROLE_SESSION } else { "autossm" };
    let name = caller.and_then(|caller| caller.arn.rsplit('/').next()).filter(|name| !name.contains(':'));
    format!("{}-00000000000000000", name.unwrap_or(own.trim_end_matches('-')))
}

/// Where the tunnel's data channels go.
fn channel(tunnel: &Tunnel, inquiry: &Inquiry) -> Host {
    match &tunnel.stream_endpoint {
        Some(endpoint) => Host { tls: endpoint.tls, name: endpoint.host.clone(), port: endpoint.port },
        None => Host { tls: true, name: inquiry.stream_host(), port: 443 },
    }
}

fn told(
    credentials: Result<(aws_credential_types::Credentials, Option<SystemTime>), Failure>,
    identity: &Identity,
) -> Finding {
    const CHECK: &str = "credentials";
    let (credentials, expiry) = match credentials {
        Ok(credentials) => credentials,
        Err(failure) => {
            return Finding::failure_of(CHECK, &failure.text, "look at profile and role in ~/.aws/config");
        }
    };
    let message = format!("access key {}", credentials.access_key_id());
    let Some(expiry) = expiry else {
        return match credentials.session_token() {
            None => Finding::ok(CHECK, format!("{message}, which does not expire")),
            Some(_) => Finding::ok(CHECK, format!("{message}, of which it is not known when it expires")),
        };
    };
    let left = expiry.duration_since(SystemTime::now()).unwrap_or_default();
    let message = format!("{message}, good for {}", age(left));
    if left > EXPIRING {
        return Finding::ok(CHECK, message);
    }
    let remedy = match &identity.profile {
        Some(profile) => format!("renew the credentials of profile {profile}: the next call uses them"),
        None => "renew them where they come from: the next call uses the new ones".to_owned(),
    };
    Finding::warning(CHECK, message, remedy)
}
