//! `rbuild login` and `rbuild logout`. No store is opened.

use std::io::{IsTerminal as _, Write as _};

use rbuild_registry::{Client, Kept, RegistryError, Server, erase_credentials, store_credentials};

use super::{ImageError, password};
use crate::cli::{LoginRequest, PasswordSource};
use crate::error::BuildError;
use crate::settings::Settings;

/// Checks name and password with the registry, then keeps them.
pub(super) fn run(request: &LoginRequest, settings: &Settings) -> Result<(), BuildError> {
    let server = server(request.server.as_deref())?;
    let can_ask = std::io::stdin().is_terminal();
    if matches!(request.password, PasswordSource::Argument(_)) {
        warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    }
    let asks = request.user.is_none() || request.password == PasswordSource::Terminal;
    if request.user.is_none() && asks && is_kept(&server, settings)? {
        return super::print("Login Succeeded\n");
    }
    if asks && !can_ask {
        return Err(ImageError::NotATerminal.into());
    }
    let user = match &request.user {
        Some(user) => user.clone(),
        None => password::ask_name()?,
    };
    // The file keeps `name:password` in one.
    if user.contains(':') {
        return Err(ImageError::Unusable { what: "user name", problem: "must not contain a colon" }.into());
    }
    let secret = match &request.password {
        PasswordSource::Argument(text) => password::checked(text.clone())?,
        PasswordSource::Stdin => password::from_stdin()?,
        PasswordSource::Terminal => password::ask_password()?,
    };
    let kept = super::with_signals(async |cancel| {
        super::unless_canceled(&cancel, async {
            let client = Client::new(settings.registry.clone())?;
            let verified = client.verify(&server, &user, &secret).await;
            verified.map_err(|source| ImageError::Login {
                server: server.to_string(),
                source: Box::new(source),
            })?;
            let kept = store_credentials(&settings.registry, &server, &user, &secret).await;
            Ok(kept.map_err(ImageError::from)?)
        })
        .await
    })?;
    if let Kept::File(path) = kept {
        warn(&format!(
            "\nWARNING! Your credentials are stored unencrypted in '{}'.\n\
             Configure a credential helper to remove this warning: `credsStore` in that file.\n",
            path.display()
        ));
    }
    super::print("Login Succeeded\n")
}

/// Whether the registry takes what is kept for it already. What it refuses is asked for anew.
fn is_kept(server: &Server, settings: &Settings) -> Result<bool, BuildError> {
    super::with_signals(async |cancel| {
        super::unless_canceled(&cancel, async {
            match Client::new(settings.registry.clone())?.verify_kept(server).await {
                Err(error @ RegistryError::Unauthorized { .. }) => {
                    warn(&format!("What is kept for {server} is refused: {error}"));
                    Ok(false)
                }
                kept => Ok(kept.map_err(|source| ImageError::Login {
                    server: server.to_string(),
                    source: Box::new(source),
                })?),
            }
        })
        .await
    })
    .and_then(|is_kept| match is_kept {
        true => super::print("Authenticating with existing credentials...\n").map(|()| true),
        false => Ok(false),
    })
}

/// Forgets the credentials. Nothing kept is no failure.
pub(super) fn out(text: Option<&str>, settings: &Settings) -> Result<(), BuildError> {
    let server = server(text)?;
    super::print(&format!("Removing login credentials for {server}\n"))?;
    super::with_signals(async |cancel| {
        super::unless_canceled(&cancel, async {
            Ok(erase_credentials(&settings.registry, &server).await.map_err(ImageError::from)?)
        })
        .await
    })
}

/// A closed standard error is nobody to warn.
fn warn(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn server(text: Option<&str>) -> Result<Server, ImageError> {
    match text.filter(|text| !text.is_empty()) {
        Some(text) => Ok(text.parse()?),
        None => Ok(Server::hub()),
    }
}
