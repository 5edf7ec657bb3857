//! What `autossm doctor` asks beyond what tunnels need. Nothing of it changes anything at the service.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sdk_ssm::config::IdentityCache;
use aws_sdk_ssm::types::{DocumentFormat, InstanceInformation, InstanceInformationStringFilter, PingStatus};

use super::{Clients, Sdk, load};
use crate::aws::credentials::Source;
use crate::aws::errors::{self, Refusal};
use crate::aws::{preferences, silent};
use crate::config::{Identity, Target};
use crate::tunnel::failure::{Class, Failure};

/// One identity's questions. Each is asked once and ends within the patience that it was made with.
pub struct Inquiry {
    sdk: Sdk,
    sts: aws_sdk_sts::Client,
    url: String,
}

/// Whom the service takes us for.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The account's 12 digits.
    pub account: String,
    /// Of the user, or of the assumed role's session.
    pub arn: String,
}

/// A managed node as the service lists it.
#[derive(Clone, Debug)]
pub struct SeenNode {
    /// `i-…` or `mi-…`.
    pub id: String,
    /// Whether its agent is connected.
    pub online: bool,
    /// For example `3.3.2299.0`.
    pub agent_version: Option<String>,
}

/// A document that there is.
#[derive(Clone, Debug)]
pub struct SeenDocument {
    /// `Session`, `Command`, …
    pub kind: String,
    /// The account's idle timeout, where this is its Session Manager preferences.
    pub idle: Option<Duration>,
    /// Its maximum session duration, likewise.
    pub maximum: Option<Duration>,
}

impl Clients {
    /// The questions of `identity`. Fails as [`Clients::get`] does.
    pub async fn inquiry(&self, identity: &Identity, patience: Duration) -> Result<Inquiry, Failure> {
        let (_, transport) = self.way_out(identity.ca_file.as_deref())?;
        let config = tokio::time::timeout(patience, Box::pin(silent(load(identity, transport))))
            .await
            .map_err(|_| errors::overdue("AWS configuration", patience))?;
        let source = Source::new(identity.clone(), config.clone());
        let endpoint_url = identity.endpoint_url.as_deref();
        let mut sdk = Sdk::new(&config, endpoint_url, source.clone(), self.limit.clone()).await?;
        sdk.patience = patience;
        let mut sts = aws_sdk_sts::config::Builder::from(&config)
            .credentials_provider(source)
            .identity_cache(IdentityCache::no_cache());
        // An API on this host stands in for AWS as a whole: whom AWS itself takes these credentials for is not the question.
        if let Some(url) = endpoint_url.filter(|url| url.starts_with("http://")) {
            sts = sts.endpoint_url(url);
        }
        let url = endpoint_url.map_or_else(|| sdk.endpoint.clone(), str::to_owned);
        Ok(Inquiry { sdk, sts: aws_sdk_sts::Client::from_conf(sts.build()), url })
    }
}

impl Inquiry {
    /// Where the API's calls go.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The region that they are for.
    pub fn region(&self) -> &str {
        &self.sdk.region
    }

    /// The data channels' host: what AWS's own address of the API says, with the other service's name.
    pub fn stream_host(&self) -> String {
        let host = self.sdk.endpoint.split("://").last().unwrap_or_default();
        host.trim_end_matches('/').replacen("ssm", "ssmmessages", 1)
    }

    /// The credentials, and when they expire.
    ///
    /// # Errors
    /// There are none.
    pub async fn credentials(&self) -> Result<(Credentials, Option<SystemTime>), Failure> {
        match tokio::time::timeout(self.sdk.patience, self.sdk.source.get()).await {
            Ok(credentials) => Ok((credentials?, self.sdk.source.expiry())),
            Err(_) => Err(errors::overdue("credentials", self.sdk.patience)),
        }
    }

    /// `sts:GetCallerIdentity`, which every valid key may call.
    ///
    /// # Errors
    /// The credentials are refused, or STS cannot be reached.
    pub async fn caller(&self) -> Result<Caller, Refusal> {
        let call = self.sts.get_caller_identity();
        let said = self.sdk.call("sts:GetCallerIdentity", || call.clone().send()).await?;
        Ok(Caller { account: said.account.unwrap_or_default(), arn: said.arn.unwrap_or_default() })
    }

    /// The managed nodes of `target`, online or not, as far as the first page of 50 has them. Containers are not listed.
    ///
    /// # Errors
    /// The call is refused.
    pub async fn nodes(&self, target: &Target) -> Result<Vec<SeenNode>, Refusal> {
        let filter = InstanceInformationStringFilter::builder();
        let filter = match target {
            Target::Tag { key, value } => filter.key(format!("tag:{key}")).values(value),
            Target::Ids(ids) => {
                let nodes: Vec<_> = ids.iter().filter(|id| !id.starts_with("ecs:")).cloned().collect();
                if nodes.is_empty() {
                    return Ok(Vec::new());
                }
                filter.key("InstanceIds").set_values(Some(nodes))
            }
        };
        let filter = filter.build().map_err(|e| Failure::new(Class::NeedsChange, e.to_string()))?;
        self.describe(Some(filter), 50).await
    }

    /// Lists managed nodes, to see whether that is allowed.
    ///
    /// # Errors
    /// The call is refused.
    pub async fn may_list_nodes(&self) -> Result<(), Refusal> {
        self.describe(None, 5).await.map(drop)
    }

    async fn describe(
        &self,
        filter: Option<InstanceInformationStringFilter>,
        most: i32,
    ) -> Result<Vec<SeenNode>, Refusal> {
        let call = self.sdk.client.describe_instance_information().set_filters(filter.map(|f| vec![f]));
        let call = call.max_results(most);
        let listed = self.sdk.call("DescribeInstanceInformation", || call.clone().send()).await;
        let nodes = match listed {
            Ok(output) => output.instance_information_list.unwrap_or_default(),
            // An id that is no node's here.
            Err(refusal) if refusal.code.as_deref() == Some("InvalidInstanceId") => Vec::new(),
            Err(refusal) => return Err(refusal),
        };
        let seen = |node: InstanceInformation| {
            let online = node.ping_status == Some(PingStatus::Online);
            Some(SeenNode { id: node.instance_id?, online, agent_version: node.agent_version })
        };
        Ok(nodes.into_iter().filter_map(seen).collect())
    }

    /// A document, or that there is none.
    ///
    /// # Errors
    /// The call is refused.
    pub async fn document(&self, name: &str) -> Result<Option<SeenDocument>, Refusal> {
        let call = self.sdk.client.get_document().name(name).document_format(DocumentFormat::Json);
        match self.sdk.call("GetDocument", || call.clone().send()).await {
            Ok(output) => {
                let content = output.content.unwrap_or_default();
                Ok(Some(SeenDocument {
                    kind: output.document_type.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
                    idle: preferences::idle(&content),
                    maximum: preferences::maximum(&content),
                }))
            }
            Err(refusal) if refusal.code.as_deref() == Some("InvalidDocument") => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Tries ResumeSession with a session that there is not.
    ///
    /// # Errors
    /// The call is refused for another reason than that.
    pub async fn may_resume(&self, session_id: &str) -> Result<(), Refusal> {
        let call = self.sdk.client.resume_session().session_id(session_id);
        unknown(self.sdk.call("ResumeSession", || call.clone().send()).await)
    }

    /// Tries TerminateSession likewise. The service takes the end of a session that there is not for a success.
    ///
    /// # Errors
    /// As [`Self::may_resume`].
    pub async fn may_terminate(&self, session_id: &str) -> Result<(), Refusal> {
        let call = self.sdk.client.terminate_session().session_id(session_id);
        unknown(self.sdk.call("TerminateSession", || call.clone().send()).await)
    }
}

fn unknown<T>(answer: Result<T, Refusal>) -> Result<(), Refusal> {
    match answer {
        Err(refusal) if !super::is_unknown(&refusal) => Err(refusal),
        _ => Ok(()),
    }
}
