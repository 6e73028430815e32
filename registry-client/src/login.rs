//! Whether a registry takes a name and password, before anybody stores them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::auth::keychain::Keychain;
use crate::auth::server::Server;
use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Target};
use crate::settings::Settings;
use crate::transport::retry::Patience;
use crate::transport::{Address, Call, Transport};

impl Client {
    /// Asks the registry's `/v2/` with this name and password alone; what files and helpers hold plays no part.
    ///
    /// [`RegistryError::Unauthorized`] when they are refused, by the registry or its token server. A registry that
    /// asks nobody for a password accepts any.
    pub async fn verify(&self, server: &Server, user: &str, password: &str) -> Result<(), RegistryError> {
        let auth = STANDARD.encode(format!("{user}:{password}"));
        let settings = Settings {
            docker_config: None,
            docker_auth_config: Some(json!({"auths": {server.key(): {"auth": auth}}}).to_string()),
            registry_auth_file: None,
            buildx_config: None,
            containers_auth_files: Vec::new(),
            ..self.settings().clone()
        };
        ask(settings, server).await
    }

    /// Asks it with what files and helpers hold for it; `false` when they hold nothing.
    ///
    /// [`RegistryError::Unauthorized`] when that is refused.
    pub async fn verify_kept(&self, server: &Server) -> Result<bool, RegistryError> {
        let settings = self.settings();
        let kept = Keychain::new(settings).find(settings, server.host(), "", "").await;
        let kept =
            kept.map_err(|source| RegistryError::Credentials { target: Box::new(target(server)), source })?;
        if kept.is_some() {
            ask(settings.clone(), server).await?;
        }
        Ok(kept.is_some())
    }
}

async fn ask(settings: Settings, server: &Server) -> Result<(), RegistryError> {
    // Tokens and challenges of other credentials must not answer for these.
    let transport = Transport::new(settings);
    let endpoint = Endpoint {
        host: server.host().to_owned(),
        repository: String::new(),
        security: transport.config().await?.security_of(server.host()),
    };
    let target = target(server);
    let call = Call {
        method: Method::GET,
        address: Address::Path("/v2/".to_owned()),
        scopes: Vec::new(),
        headers: HeaderMap::new(),
        body: None,
        target: target.clone(),
        patience: Patience::Full,
    };
    let host = transport.host(&endpoint);
    let (answer, authorization) = transport.send(&host, &call).await?;
    transport.expect(answer, &[StatusCode::OK], &target, &authorization).await?;
    Ok(())
}

fn target(server: &Server) -> Target {
    Target { host: server.host().to_owned(), repository: String::new(), action: "log in".to_owned() }
}
