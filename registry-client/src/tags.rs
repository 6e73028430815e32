//! The tags of a repository, page by page.

use std::collections::HashSet;

use rbuild_oci::Reference;
use reqwest::header::{HeaderMap, LINK};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;

use crate::auth::Scope;
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Target, Violation, escape};
use crate::limits::{LIST_ENTRIES_MAX, PAGE_BYTES_MAX, PAGES_MAX};
use crate::transport::retry::Patience;
use crate::transport::{Address, Call, Transport, exchange};

/// Entries asked for at a time. Registries give fewer as they like.
const PAGE_ENTRIES: usize = 1000;

/// Tags shown in place of one that does not exist.
const SHOWN_TAGS: usize = 5;

#[derive(Deserialize)]
struct Page {
    /// `null` in an empty repository.
    #[serde(default)]
    tags: Option<Vec<String>>,
}

/// All tags, in the registry's order, each once.
pub(crate) async fn list(
    transport: &Transport,
    endpoint: &Endpoint,
    patience: Patience,
) -> Result<Vec<String>, RegistryError> {
    let target = Target {
        host: endpoint.host.clone(),
        repository: endpoint.repository.clone(),
        action: "list tags".to_owned(),
    };
    let mut tags: Vec<String> = Vec::new();
    let path = format!("/v2/{}/tags/list?n={PAGE_ENTRIES}", endpoint.repository);
    pages(transport, endpoint, path, &target, patience, |body| {
        let page: Page = serde_json::from_slice(body).ok()?;
        // What is no tag cannot be asked for, and is not to be printed.
        let valid = |tag: &String| format!("localhost/name:{tag}").parse::<Reference>().is_ok();
        tags.extend(page.tags.unwrap_or_default().into_iter().filter(valid));
        Some(tags.len())
    })
    .await?;
    let mut seen = HashSet::new();
    tags.retain(|tag| seen.insert(tag.clone()));
    Ok(tags)
}

/// The tags most like the one that is not there: those that begin as it does, else the last ones.
pub(crate) fn nearest(mut tags: Vec<String>, wanted: &str) -> Vec<String> {
    let alike = |tag: &String| tag.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
    // Registries list in lexical order: the end holds the newest versions, more often than not.
    tags.reverse();
    tags.sort_by_key(|tag| std::cmp::Reverse(alike(tag)));
    tags.truncate(SHOWN_TAGS);
    tags
}

/// Follows `Link: <…>; rel="next"` from `path` on, at the same origin only, and gives each body to `take`, which says
/// how much it has by now, or `None` for a body that is none.
pub(crate) async fn pages(
    transport: &Transport,
    endpoint: &Endpoint,
    path: String,
    target: &Target,
    patience: Patience,
    mut take: impl FnMut(&[u8]) -> Option<usize>,
) -> Result<HeaderMap, RegistryError> {
    let host = transport.host(endpoint);
    let base = transport.base(&host, target, &patience).await?;
    let mut next = exchange::join(&base, &path, target)?;
    let endless = |at: &str| RegistryError::Protocol {
        target: Box::new(target.clone()),
        violation: Violation::Pages(escape(at)),
    };
    let mut visited = HashSet::new();
    for _ in 0..PAGES_MAX {
        let call = Call {
            method: Method::GET,
            address: Address::Url(next.clone()),
            scopes: vec![Scope::pull(&endpoint.repository)],
            headers: HeaderMap::new(),
            body: None,
            target: target.clone(),
            patience,
        };
        let (answer, authorization) = transport.send(&host, &call).await?;
        let answer = transport.expect(answer, &[StatusCode::OK], target, &authorization).await?;
        let (link, headers) = (next_link(&answer), answer.headers().clone());
        let body = transport.body(answer, PAGE_BYTES_MAX, target).await?;
        let count = take(&body).ok_or_else(|| RegistryError::Protocol {
            target: Box::new(target.clone()),
            violation: Violation::List,
        })?;
        let Some(link) = link else { return Ok(headers) };
        let following = exchange::join(&next, &link, target)?;
        let elsewhere = exchange::origin(&following) != exchange::origin(&base);
        if elsewhere || count > LIST_ENTRIES_MAX || following == next || visited.contains(&following) {
            return Err(endless(&link));
        }
        visited.insert(std::mem::replace(&mut next, following));
    }
    Err(endless(next.path()))
}

/// The address of `Link: </v2/…>; rel="next"`.
fn next_link(answer: &Response) -> Option<String> {
    answer.headers().get_all(LINK).iter().find_map(|value| {
        let (address, parameters) = value.to_str().ok()?.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split(';').any(|parameter| {
            let parameter = parameter.trim().to_ascii_lowercase();
            parameter == "rel=next" || parameter == "rel=\"next\""
        });
        is_next.then(|| address.to_owned())
    })
}
