//! Which address of the API is called: AWS's own, under the name that is asked for, or one that is given.
//!
//! Never both. An address that is given stands for itself, and AWS's SDKs, this one and the plugin's since 1.2.804.0, refuse
//! every call where FIPS or dual-stack names are asked for as well.

use std::fmt;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ssm::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_types::service_config::ServiceConfigKey;

use crate::aws::silent;
use crate::config::Identity;
use crate::tunnel::failure::{Class, Failure};

/// Two settings of which each alone would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exclusion {
    address: Address,
    name: Name,
    /// The name is asked for by a variable, and not by the profile.
    by_variable: bool,
}

/// Where an address is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    /// By the tunnel's key.
    Key,
    /// By what AWS's own tools read.
    Aws,
}

/// Another of AWS's names than the usual one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Fips,
    DualStack,
}

impl Name {
    fn variable(self) -> &'static str {
        match self {
            Self::Fips => "AWS_USE_FIPS_ENDPOINT",
            Self::DualStack => "AWS_USE_DUALSTACK_ENDPOINT",
        }
    }

    /// As the profile has it.
    fn setting(self) -> &'static str {
        match self {
            Self::Fips => "use_fips_endpoint",
            Self::DualStack => "use_dualstack_endpoint",
        }
    }
}

impl Exclusion {
    /// Tells the operator what to do about it.
    pub fn remedy(self) -> String {
        let leave = match self.address {
            Address::Key => "`endpoint_url`",
            Address::Aws => "the address",
        };
        let other = if self.by_variable { self.name.variable() } else { self.name.setting() };
        format!(
            "leave out {leave} to call AWS's own name, or {other} where the address is such a name itself"
        )
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = match self.address {
            Address::Key => "`endpoint_url`",
            Address::Aws => {
                "an address of the API (AWS_ENDPOINT_URL_SSM, AWS_ENDPOINT_URL, or endpoint_url in the profile)"
            }
        };
        let name = match self.name {
            Name::Fips => "FIPS",
            Name::DualStack => "dual-stack",
        };
        let by = match self.by_variable {
            true => format!("{} in the environment", self.name.variable()),
            false => format!("{} in the profile", self.name.setting()),
        };
        write!(f, "{address} and {name} names ({by}) exclude each other: AWS's SDKs refuse every call")
    }
}

/// Finds what in `config` excludes the address that is given, by `endpoint_url` or by one of AWS's own settings.
pub(super) fn exclusion(config: &SdkConfig, endpoint_url: Option<&str>) -> Option<Exclusion> {
    let name = if config.use_fips() == Some(true) {
        Name::Fips
    } else if config.use_dual_stack() == Some(true) {
        Name::DualStack
    } else {
        return None;
    };
    let address = if endpoint_url.is_some() {
        Address::Key
    } else if given_to_aws(config) {
        Address::Aws
    } else {
        return None;
    };
    let by_variable = std::env::var_os(name.variable()).is_some_and(|value| !value.is_empty());
    Some(Exclusion { address, name, by_variable })
}

/// Whether the SDK finds an address of the API by itself.
fn given_to_aws(config: &SdkConfig) -> bool {
    let key =
        ServiceConfigKey::builder().service_id("SSM").env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    let of_service =
        config.service_config().zip(key.ok()).and_then(|(settings, key)| settings.load_config(key));
    of_service.or_else(|| config.endpoint_url().map(str::to_owned)).is_some()
}

/// Finds what excludes the address that `identity`'s calls would go to, as far as this process's environment and this user's
/// profiles say. Makes no request.
pub async fn excluded(identity: &Identity) -> Option<Exclusion> {
    // Without a region it would be looked for at the instance's metadata service.
    let region = identity.region.clone().unwrap_or_else(|| "us-east-1".to_owned());
    let offline = http_client_fn(|_, _| SharedHttpConnector::new(Offline));
    let mut loader =
        aws_config::defaults(BehaviorVersion::latest()).http_client(offline).region(Region::new(region));
    if let Some(profile) = &identity.profile {
        loader = loader.profile_name(profile);
    }
    let config = Box::pin(silent(loader.load())).await;
    exclusion(&config, identity.endpoint_url.as_deref())
}

/// Fails every request.
#[derive(Debug)]
struct Offline;

impl HttpConnector for Offline {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::ready(Err(ConnectorError::user("no request is made".into())))
    }
}

/// AWS's own address of the API.
pub(super) async fn own(config: &SdkConfig, region: &str) -> Result<String, Failure> {
    let wrong = |error: &dyn fmt::Display| {
        Failure::new(Class::NeedsChange, format!("there is no SSM endpoint for region {region}: {error}"))
    };
    let params = Params::builder()
        .region(region)
        .set_use_fips(config.use_fips())
        .set_use_dual_stack(config.use_dual_stack())
        .build()
        .map_err(|e| wrong(&e))?;
    let endpoint = DefaultResolver::new().resolve_endpoint(&params).await.map_err(|e| wrong(&e))?;
    Ok(endpoint.url().to_owned())
}
