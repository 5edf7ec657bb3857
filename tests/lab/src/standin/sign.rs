//! Credentials of the environment, and SigV4 signatures with them.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use bytes::Bytes;
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;

use super::dial;

/// What the container credentials endpoint answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerCredentials {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
}

/// The credentials of the environment: its access key, or those of the container credentials endpoint. Profiles and
/// instance metadata are not read.
///
/// # Errors
/// There are none; in words.
pub async fn credentials() -> Result<Credentials, String> {
    let variable = |name| std::env::var(name).ok().filter(|text: &String| !text.is_empty());
    if let (Some(id), Some(secret)) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
        return Ok(Credentials::new(id, secret, variable("AWS_SESSION_TOKEN"), None, "environment"));
    }
    let Some(address) = variable("AWS_CONTAINER_CREDENTIALS_FULL_URI") else {
        return Err("NoCredentialProviders: no valid providers in chain. Deprecated.\n\tFor verbose messaging see aws.Config.CredentialsChainVerboseErrors".into());
    };
    let failed = |error: &dyn std::fmt::Display| format!("CredentialsEndpointError: {error}");
    let uri: Uri = address.parse().map_err(|error| failed(&error))?;
    let mut request = Request::get(uri.path());
    if let Some(token) = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN") {
        request = request.header("Authorization", token);
    }
    let request = request.body(Full::new(Bytes::new())).map_err(|error| failed(&error))?;
    let link = dial::dial(uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80), None).await?;
    let answer = dial::exchange(link, &uri, request).await?;
    if !answer.status().is_success() {
        return Err(failed(&answer.status()));
    }
    let body = answer.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
    let found: ContainerCredentials = serde_json::from_slice(&body).map_err(|error| failed(&error))?;
    Ok(Credentials::new(found.access_key_id, found.secret_access_key, found.token, None, "container"))
}

/// Signs `request`, which goes to `host`, for `service` in `region`.
///
/// # Errors
/// It cannot be signed; in words.
pub fn apply<B>(
    request: &mut Request<B>,
    host: &str,
    body: &[u8],
    (service, region): (&str, &str),
    credentials: Credentials,
) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("failed to sign request: {error}");
    let identity = credentials.into();
    let parameters = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| failed(&error))?
        .into();
    let uri = format!("https://{host}{}", request.uri());
    let signable = SignableRequest::new(
        request.method().as_str(),
        uri,
        std::iter::once(("host", host)),
        SignableBody::Bytes(body),
    )
    .map_err(|error| failed(&error))?;
    let (instructions, _) = sign(signable, &parameters).map_err(|error| failed(&error))?.into_parts();
    let (headers, _) = instructions.into_parts();
    for header in headers {
        let value = HeaderValue::from_str(header.value()).map_err(|error| failed(&error))?;
        request.headers_mut().insert(header.name(), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_names_key_service_and_region() {
        let mut request = Request::get("/v1/data-channel/s-1?role=publish_subscribe").body(()).unwrap();
        let credentials = Credentials::new("AKID", "secret", Some("token".into()), None, "test");
        apply(
            &mut request,
            "ssmmessages.eu-west-1.amazonaws.com",
            b"",
            ("ssmmessages", "eu-west-1"),
            credentials,
        )
        .unwrap();
        let header = |name| request.headers()[name].to_str().unwrap();
        assert!(header("authorization").starts_with("AWS4-HMAC-SHA256 Credential=AKID/"));
        assert!(header("authorization").contains("/eu-west-1/ssmmessages/aws4_request"));
        assert_eq!(header("x-amz-security-token"), "token");
    }
}
