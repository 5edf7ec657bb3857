//! The SDK behind the [`Api`] trait, and the clients that the tunnels share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_ssm::Client;
use aws_sdk_ssm::config::{IdentityCache, SharedHttpClient};
use aws_sdk_ssm::types::{DocumentFormat, InstanceInformation, InstanceInformationStringFilter, PingStatus};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use secrecy::SecretString;
use tokio::sync::OnceCell;

use super::api::{Api, HeldCredentials, Names, Node, Resumption, StartRequest, StartedSession};
use super::credentials::Source;
use super::errors::{self, Refusal};
use super::limit::StartLimit;
use super::nodes::Nodes;
use super::preferences::Preferences;
use super::{preferences, silent, transport};
use crate::config::Identity;
use crate::network::{Environment, Network};
use crate::tunnel::failure::{Class, Failure};
use crate::tunnel::rotation::Limit;

/// Until a TCP connection to the service is up.
const CONNECT: Duration = Duration::from_secs(5);
/// A whole call, the finding of credentials included.
const CALL: Duration = Duration::from_secs(20);
/// Between looks for other credentials because a call was refused for another reason than these.
const LOOK: Duration = Duration::from_secs(300);
/// Managed nodes looked at for a tag, in pages of 50.
const PAGES: usize = 20;

/// A client that is made once, by whoever needs it first.
type Shared = Arc<OnceCell<Arc<dyn Api>>>;

/// One API client for each distinct identity of the configuration, made when it is first asked for.
#[derive(Default)]
pub struct Clients {
    clients: Mutex<HashMap<Identity, Shared>>,
    /// By `ca_file`: identities that trust the same authorities share their connections and certificates.
    networks: Mutex<HashMap<Option<PathBuf>, (Network, SharedHttpClient)>>,
    environment: Environment,
    limit: Arc<StartLimit>,
}

impl Clients {
    /// No clients yet. They will go out as `environment` says.
    pub fn new(environment: Environment) -> Self {
        Self { environment, ..Self::default() }
    }

    /// The way out for those who trust `ca_file` (PEM) beside the system's authorities.
    ///
    /// # Errors
    /// The file is bad; it is read again the next time.
    pub fn network(&self, ca_file: Option<&Path>) -> Result<Network, Failure> {
        self.way_out(ca_file).map(|(network, _)| network)
    }

    /// The client of `identity`. Fails if its `ca_file` is bad, or if there is no region to be found; the next call
    /// tries again.
    pub async fn get(&self, identity: &Identity) -> Result<Arc<dyn Api>, Failure> {
        let cell = {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(clients.entry(identity.clone()).or_default())
        };
        cell.get_or_try_init(|| Box::pin(self.build(identity))).await.cloned()
    }

    /// The client of `identity`, if somebody has needed it yet.
    pub fn known(&self, identity: &Identity) -> Option<Arc<dyn Api>> {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.get(identity)?.get().cloned()
    }

    /// Forgets the clients of all identities but those that `wanted` has: nobody is to be warned of credentials that no
    /// tunnel uses any more. Sessions that still end keep theirs until then.
    pub fn retain(&self, wanted: &[&Identity]) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|identity, _| wanted.contains(&identity));
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        networks.retain(|ca_file, _| wanted.iter().any(|identity| identity.ca_file == *ca_file));
    }

    async fn build(&self, identity: &Identity) -> Result<Arc<dyn Api>, Failure> {
        let (_, transport) = self.way_out(identity.ca_file.as_deref())?;
        let config = tokio::time::timeout(CALL, Box::pin(silent(load(identity, transport))))
            .await
            .map_err(|_| errors::overdue("AWS configuration", CALL))?;
        let source = Source::new(identity.clone(), config.clone());
        source.look_after();
        let sdk =
            Sdk::new(&config, identity.endpoint_url.as_deref(), source, Arc::clone(&self.limit)).await?;
        tracing::debug!(
            region = sdk.region,
            profile = identity.profile,
            role = identity.role_arn,
            "API client made"
        );
        Ok(Arc::new(sdk))
    }

    /// Whom a plugin has to trust that goes to AWS by itself: the identity's `ca_file`, else `AWS_CA_BUNDLE`.
    pub fn ca_file<'a>(&'a self, identity: &'a Identity) -> Option<&'a Path> {
        identity.ca_file.as_deref().or(self.environment.ca_bundle())
    }

    fn way_out(&self, ca_file: Option<&Path>) -> Result<(Network, SharedHttpClient), Failure> {
        let key = ca_file.map(Path::to_owned);
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = networks.get(&key) {
            return Ok(known.clone());
        }
        let network = Network::new(&self.environment, ca_file)?;
        Ok(networks.entry(key).or_insert((network.clone(), transport::client(network))).clone())
    }
}

/// The settings of every call of `identity`: its own, and what the environment and the shared configuration files say
/// of region, FIPS and dual-stack endpoints.
async fn load(identity: &Identity, transport: SharedHttpClient) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(transport)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build());
    if let Some(region) = &identity.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &identity.profile {
        loader = loader.profile_name(profile);
    }
    if let Ok(name) = AppName::new("autossm") {
        loader = loader.app_name(name);
    }
    loader.load().await
}

/// One identity's calls.
struct Sdk {
    client: Client,
    source: Source,
    region: String,
    endpoint: String,
    names: Names,
    nodes: Nodes,
    limit: Arc<StartLimit>,
    preferences: Preferences,
    /// For a whole call: [`CALL`], but in tests.
    patience: Duration,
}

impl Sdk {
    async fn new(
        config: &SdkConfig,
        endpoint_url: Option<&str>,
        source: Source,
        limit: Arc<StartLimit>,
    ) -> Result<Self, Failure> {
        let region = config.region().map(ToString::to_string).ok_or_else(|| {
            Failure::new(
                Class::NeedsChange,
                "no AWS region: set `region` in the tunnel or in [defaults], or AWS_REGION in the daemon's environment",
            )
        })?;
        if let Some(exclusion) = endpoint::exclusion(config, endpoint_url) {
            let text = format!("{exclusion}; {}", exclusion.remedy());
            return Err(Failure::new(Class::NeedsChange, text));
        }
        let endpoint = endpoint::own(config, &region).await?;
        let names = Names {
            fips: config.use_fips().unwrap_or_default(),
            dual_stack: config.use_dual_stack().unwrap_or_default(),
        };
        let mut builder = aws_sdk_ssm::config::Builder::from(config)
            .credentials_provider(source.clone())
            // `source` keeps them already, and is asked for them by the gateway too.
            .identity_cache(IdentityCache::no_cache());
        if let Some(url) = endpoint_url {
            builder = builder.endpoint_url(url);
        }
        let client = Client::from_conf(builder.build());
        let (nodes, preferences) = (Nodes::default(), Preferences::default());
        Ok(Self { client, source, region, endpoint, names, nodes, preferences, limit, patience: CALL })
    }

    /// Makes a call under the limit of time, and turns its error into ours. One that is refused for its credentials is
    /// made once more if there are others meanwhile.
    async fn call<T, E, C>(&self, operation: &'static str, call: impl Fn() -> C + Send) -> Result<T, Refusal>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        C: Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
    {
        let begun = Instant::now();
        // The SDK asks for the credentials too, in silence; what there is to say of them is said here.
        let attempts = async {
            let used = self.source.get().await?;
            let refusal = match silent(call()).await.map_err(|error| errors::refusal(operation, &error)) {
                Err(refusal) if refusal.failure.class == Class::Access => refusal,
                other => return other,
            };
            // Where it is not they that are refused (a policy, a firewall on the way), others may yet be let through: a role
            // that was put in another's place. But nothing says that there are any.
            let seldom = if refusal.is_of_credentials() { Duration::ZERO } else { LOOK };
            let newer = self.source.others_than(&used, seldom).await;
            if !newer {
                return Err(refusal);
            }
            tracing::debug!(operation, error = %refusal.failure, "API call refused; again with newer credentials");
            silent(call()).await.map_err(|error| errors::refusal(operation, &error))
        };
        let result = match tokio::time::timeout(self.patience, Box::pin(attempts)).await {
            Ok(result) => result,
            Err(_) => Err(errors::overdue(operation, self.patience).into()),
        };
        let took = begun.elapsed().as_millis();
        match &result {
            Ok(_) => tracing::debug!(operation, took_ms = took, "API call"),
            Err(refusal) => {
                tracing::debug!(operation, took_ms = took, class = %refusal.failure.class, error = %refusal.failure, "API call refused");
            }
        }
        result
    }

    async fn start(&self, request: &StartRequest) -> Result<StartedSession, Failure> {
        self.limit.wait().await;
        let parameters = request.parameters.clone().into_iter().collect();
        let call = self
            .client
            .start_session()
            .target(&request.target)
            .document_name(&request.document)
            .set_parameters(Some(parameters))
            .reason(&request.reason);
        let output =
            self.call("StartSession", || call.clone().send()).await.map_err(|refusal| refusal.failure)?;
        match (output.session_id, output.token_value, output.stream_url) {
            (Some(session_id), Some(token), Some(stream_url)) => {
                Ok(StartedSession { session_id, token: SecretString::from(token), stream_url })
            }
            (session_id, ..) => {
                // Nobody else knows of this session, and nothing can be done with it.
                if let Some(id) = session_id {
                    self.terminate(&id).await?;
                }
                Err(Failure::new(
                    Class::Network,
                    "StartSession: the answer lacks a session id, token or stream URL",
                ))
            }
        }
    }

    async fn resume(&self, session_id: &str) -> Result<Resumption, Failure> {
        let call = self.client.resume_session().session_id(session_id);
        match self.call("ResumeSession", || call.clone().send()).await {
            Ok(output) => match (output.token_value.filter(|token| !token.is_empty()), output.stream_url) {
                (Some(token), Some(stream_url)) => {
                    Ok(Resumption::Resumed { token: SecretString::from(token), stream_url })
                }
                (Some(_), None) => {
                    Err(Failure::new(Class::Network, "ResumeSession: the answer lacks a stream URL"))
                }
                // "Connections can be resumed for disconnected sessions, but not terminated sessions": the service
                // says so by leaving the token out.
                (None, _) => Ok(Resumption::Gone),
            },
            Err(refusal) if is_unknown(&refusal) => Ok(Resumption::Gone),
            Err(refusal) => Err(refusal.failure),
        }
    }

    async fn terminate(&self, session_id: &str) -> Result<(), Failure> {
        let call = self.client.terminate_session().session_id(session_id);
        match self.call("TerminateSession", || call.clone().send()).await {
            Ok(_) => Ok(()),
            Err(refusal) if is_unknown(&refusal) => Ok(()),
            Err(refusal) => Err(refusal.failure),
        }
    }

    /// The content of the account's Session Manager preferences; `None` where there are none.
    async fn preferences(&self) -> Result<Option<String>, Failure> {
        let call =
            self.client.get_document().name(preferences::DOCUMENT).document_format(DocumentFormat::Json);
        match self.call("GetDocument", || call.clone().send()).await {
            Ok(output) => Ok(output.content),
            Err(refusal) if refusal.code.as_deref() == Some("InvalidDocument") => Ok(None),
            Err(refusal) => Err(refusal.failure),
        }
    }

    async fn online(&self, tag: &str, value: &str) -> Result<Vec<Node>, Failure> {
        let filter = |key: String, value: &str| {
            InstanceInformationStringFilter::builder()
                .key(key)
                .values(value)
                .build()
                .map_err(|e| Failure::new(Class::NeedsChange, format!("tag {tag}={value}: {e}")))
        };
        let filters = vec![filter(format!("tag:{tag}"), value)?, filter("PingStatus".to_owned(), "Online")?];
        let mut nodes = Vec::new();
        let mut next = None;
        for _ in 0..PAGES {
            let call = self
                .client
                .describe_instance_information()
                .set_filters(Some(filters.clone()))
                .max_results(50)
                .set_next_token(next.take());
            let output = self
                .call("DescribeInstanceInformation", || call.clone().send())
                .await
                .map_err(|refusal| refusal.failure)?;
            let online = output.instance_information_list.into_iter().flatten().filter(is_online);
            nodes.extend(
                online.filter_map(|node| {
                    Some(Node { id: node.instance_id?, agent_version: node.agent_version })
                }),
            );
            next = output.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                break;
            }
        }
        // The service's order changes from call to call; a tunnel is to have the same node as long as it is there.
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(nodes)
    }
}

impl Api for Sdk {
    fn start_session<'a>(
        &'a self,
        request: &'a StartRequest,
    ) -> BoxFuture<'a, Result<StartedSession, Failure>> {
        self.start(request).boxed()
    }

    fn resume_session<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Resumption, Failure>> {
        self.resume(session_id).boxed()
    }

    fn terminate_session<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        self.terminate(session_id).boxed()
    }

    fn online_nodes<'a>(
        &'a self,
        tag: &'a str,
        value: &'a str,
        max_age: Duration,
    ) -> BoxFuture<'a, Result<Vec<Node>, Failure>> {
        self.nodes.get(tag, value, max_age, self.online(tag, value)).boxed()
    }

    fn last_nodes(&self, tag: &str, value: &str) -> Vec<Node> {
        self.nodes.last(tag, value)
    }

    fn maximum_session_duration(&self) -> BoxFuture<'_, Limit> {
        self.preferences.maximum_session_duration(|| self.preferences()).boxed()
    }

    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, Failure>> {
        async {
            match tokio::time::timeout(CALL, self.source.get()).await {
                Ok(result) => result,
                Err(_) => Err(errors::overdue("credentials", CALL)),
            }
        }
        .boxed()
    }

    fn held_credentials(&self) -> Option<HeldCredentials> {
        self.source.held()
    }

    fn region(&self) -> &str {
        &self.region
    }

    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn names(&self) -> Names {
        self.names
    }
}

/// The session is not known, or not any more.
fn is_unknown(refusal: &Refusal) -> bool {
    refusal.code.as_deref() == Some("DoesNotExistException")
}

fn is_online(node: &InstanceInformation) -> bool {
    node.ping_status == Some(PingStatus::Online)
}

mod endpoint;
mod inquiry;
#[cfg(test)]
mod tests;

pub use endpoint::{Exclusion, excluded};
pub use inquiry::{Caller, Inquiry, SeenDocument, SeenNode};
