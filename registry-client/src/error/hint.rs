//! What to do about an error.

use super::{ErrorKind, FailedProxy, Reason, RegistryError, Violation};
use crate::settings::SetBy;

impl RegistryError {
    /// The fix, when we know one: one or two sentences for a person at a terminal.
    pub fn hint(&self) -> Option<String> {
        let host = self.target().map_or("the registry", |target| target.host.as_str());
        let repository = self.target().map_or("", |target| target.repository.as_str());
        Some(match self {
            Self::NotFound { existing, .. } if !existing.is_empty() => {
                format!("tags that exist: {}", existing.join(", "))
            }
            Self::NotFound { reply, .. } if reply.has_code("NAME_UNKNOWN") && crate::auth::is_ecr(host) => format!(
                "ECR does not create repositories by itself: aws ecr create-repository --repository-name {repository}"
            ),
            Self::NotFound { .. } => {
                format!(
                    "check the spelling of the image name and tag, and that `{repository}` exists on {host}"
                )
            }
            Self::Unauthorized { had_credentials: false, .. } if crate::auth::is_ecr(host) => {
                "no AWS credentials were found: set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned()
            }
            Self::Unauthorized { had_credentials: false, .. } => {
                format!("run `rbuild login {host}`, or check that `{repository}` exists and is public")
            }
            Self::Unauthorized { had_credentials: true, .. } => {
                format!("the stored credentials may have expired: run `rbuild login {host}` again")
            }
            Self::NotStreamed { .. } => return None,
            Self::Refused { reply, .. } | Self::Denied { reply, .. } if reply.is_about_immutable_tags() => {
                "the registry lets nobody move this tag: push under another tag, or delete it there first".to_owned()
            }
            Self::Denied { reply, .. } | Self::Refused { reply, .. } if reply.is_about_a_quota() => format!(
                "the storage quota of its project is used up: remove images at {host}, or have the quota raised"
            ),
            Self::Denied { .. } => {
                format!(
                    "the account used for {host} needs permission for `{repository}`, and the repository may have to be created first"
                )
            }
            Self::RateLimited { .. } if host == "docker.io" => {
                "log in with `rbuild login` for a higher limit, or set a mirror in registries.conf".to_owned()
            }
            Self::RateLimited { .. } => format!("wait, or log in to {host} for a higher limit"),
            Self::Unreachable { reason, proxy: Some(proxy), .. } => proxy.hint(*reason, host),
            Self::Unreachable { reason, .. } => match reason {
                Reason::Name => format!("check the name `{host}` and this machine's DNS and proxy settings"),
                Reason::Tls => format!(
                    "if `{host}` uses its own CA, put it into /etc/containers/certs.d/{host}/ca.crt; if it speaks no TLS, list it as insecure"
                ),
                Reason::TrustStore => "install the ca-certificates package or set SSL_CERT_FILE".to_owned(),
                _ => format!("check that `{host}` is up and that no proxy or firewall stands between"),
            },
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => {
                format!(
                    "the data from {host} is damaged or was tampered with: a proxy or mirror in between is the usual cause"
                )
            }
            Self::NoPlatform { available, .. } => {
                let list = available.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                format!("choose one of the available platforms with --platform: {list}")
            }
            Self::Protocol { violation: Violation::InternalAddress(_), .. } => {
                "if this internal server is meant, list it among the allowed internal hosts".to_owned()
            }
            Self::Protocol { violation: Violation::Downgrade(_), .. } => format!(
                "the registry's external URL is misconfigured, or `{host}` must be listed as insecure to allow clear text"
            ),
            Self::Blocked { .. } => "remove `blocked = true` from registries.conf to use it".to_owned(),
            Self::AfterMirrors { mirrors, upstream } => {
                let tried = mirrors
                    .iter()
                    .map(|error| format!("mirror failed: {error}"))
                    .collect::<Vec<_>>()
                    .join("\n");
                match upstream.hint() {
                    Some(hint) => format!("{hint}\n{tried}"),
                    None => tried,
                }
            }
            Self::Credentials { source, .. } => source.hint()?,
            _ if self.kind() == ErrorKind::TooLarge => {
                "this does not look like an image rbuild can use".to_owned()
            }
            _ => return None,
        })
    }
}

impl FailedProxy {
    fn hint(&self, reason: Reason, host: &str) -> String {
        let check = match reason {
            Reason::Name => "check the name of the proxy",
            Reason::Tunnel => "check that the proxy lets you through, and knows that host",
            _ => "check that the proxy is up and its address right",
        };
        match &self.set_by {
            SetBy::Variable(name) => {
                format!("{check}: correct or unset {name}, or list `{host}` in NO_PROXY to go without it")
            }
            file @ SetBy::File { .. } => format!("{check}: correct or remove {file}"),
        }
    }
}
