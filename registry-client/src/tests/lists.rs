//! Tags, referrers, and what becomes of manifests.

use super::fake::{Fake, reply};
use super::*;
use crate::{ErrorKind, RegistryError, Violation};

#[tokio::test]
async fn tags_come_from_all_pages() {
    let fake = Fake::start(|request| match request.path.as_str() {
        "/v2/app/tags/list?n=1000" => reply(200)
            .header("Link", r#"</v2/app/tags/list?n=1000&last=b>; rel="next""#)
            .body(r#"{"name":"app","tags":["a","b"]}"#),
        "/v2/app/tags/list?n=1000&last=b" => {
            reply(200).body("{\"name\":\"app\",\"tags\":[\"c\",\"b\",\"\\u001b[31m\",\"../x\"]}")
        }
        _ => reply(200).body(r#"{"name":"app","tags":null}"#),
    })
    .await;
    let tags = client().tags(&reference(&fake.host, "app")).await.unwrap();
    assert_eq!(tags, ["a", "b", "c"], "each once, and none that is no tag");
    assert!(client().tags(&reference(&fake.host, "empty")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_tag_that_is_not_there_is_answered_with_those_that_are() {
    let fake = Fake::start(|request| match request.path.as_str() {
        "/v2/" => reply(200),
        path if path.contains("/tags/list") => {
            reply(200).body(r#"{"tags":["1.0","1.1","1.10","1.2","2.0","3.0","latest"]}"#)
        }
        _ => reply(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}"#),
    })
    .await;
    let error = client().resolve(&reference(&fake.host, "app:1.11"), &amd64()).await.unwrap_err();
    assert_eq!(error.hint().unwrap(), "tags that exist: 1.10, 1.1, 1.2, 1.0, latest");
}

#[tokio::test]
async fn referrers_come_from_the_api_or_the_fallback_tag() {
    let subject = Digest::of(b"subject");
    let entry = |kind: &str, name: &str| {
        json!({"mediaType": media_type::OCI_MANIFEST, "artifactType": kind, "digest": Digest::of(name.as_bytes()),
            "size": 7})
    };
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
        "manifests": [entry("application/sig", "a"), entry("application/sbom", "b")]})
    .to_string();
    let body = index.clone();
    let api = Fake::start(move |request| match request.path.contains("/referrers/") {
        true => reply(200).header("Content-Type", media_type::OCI_INDEX).body(body.clone()),
        false => reply(200),
    })
    .await;
    let tag = format!("/manifests/sha256-{}", subject.hex());
    let old = Fake::start(move |request| match request.path.as_str() {
        "/v2/" => reply(200),
        path if path.ends_with(&tag) => {
            reply(200).header("Content-Type", media_type::OCI_INDEX).body(index.clone())
        }
        _ => reply(404),
    })
    .await;
    for fake in [api, old] {
        let repository = reference(&fake.host, "app");
        let all = client().referrers(&repository, subject, None).await.unwrap();
        assert_eq!(all.len(), 2);
        let some = client().referrers(&repository, subject, Some("application/sig")).await.unwrap();
        assert_eq!(some.len(), 1);
        assert_eq!(some[0].digest().to_string(), Digest::of(b"a").to_string());
    }
    let none = Fake::start(|request| reply(if request.path == "/v2/" { 200 } else { 404 })).await;
    assert!(client().referrers(&reference(&none.host, "app"), subject, None).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_pushed_referrer_is_listed_whether_the_registry_knows_subjects_or_not() {
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": "application/sig",
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"), "layers": [],
        "subject": descriptor(media_type::OCI_MANIFEST, b"subject"), "annotations": {"k": "v"}})
        .to_string();
    for knows in [true, false] {
        let fake = Fake::start(move |request| match request.method.as_str() {
            "PUT" if knows => reply(201).header("OCI-Subject", Digest::of(b"subject").to_string()),
            "PUT" => reply(201),
            _ => reply(if request.path == "/v2/" { 200 } else { 404 }),
        })
        .await;
        let to = reference(&fake.host, "app");
        let digest = client()
            .push_referrer(&to, media_type::OCI_MANIFEST, manifest.clone().into_bytes())
            .await
            .unwrap();
        let puts: Vec<_> = fake.seen().into_iter().filter(|request| request.method == "PUT").collect();
        assert!(puts[0].path.ends_with(&digest.to_string()));
        assert_eq!(puts.len(), if knows { 1 } else { 2 });
        if let Some(index) = puts.get(1) {
            assert!(index.path.ends_with(&format!("sha256-{}", Digest::of(b"subject").hex())));
            let index: Value = serde_json::from_slice(&index.body).unwrap();
            let entry = &index["manifests"][0];
            assert_eq!(entry["digest"], json!(digest));
            assert_eq!(
                (&entry["artifactType"], &entry["annotations"]["k"]),
                (&json!("application/sig"), &json!("v"))
            );
        }
    }
}

#[tokio::test]
async fn manifests_can_be_looked_for_and_deleted() {
    let image = Image::new("amd64");
    let digest = Digest::of(&image.manifest);
    let fake = Fake::start(move |request| match (request.method.as_str(), request.path.as_str()) {
        ("DELETE", "/v2/app/manifests/1") => reply(202),
        ("DELETE", _) => reply(405).body(r#"{"errors":[{"code":"UNSUPPORTED","message":"not enabled"}]}"#),
        (_, "/v2/app/manifests/1") => reply(200).header("Docker-Content-Digest", digest.to_string()),
        ("GET", "/v2/") => reply(200),
        _ => reply(404),
    })
    .await;
    let client = client();
    assert_eq!(client.manifest_digest(&reference(&fake.host, "app:1")).await.unwrap(), Some(digest));
    assert_eq!(client.manifest_digest(&reference(&fake.host, "app:2")).await.unwrap(), None);
    client.delete_manifest(&reference(&fake.host, "app:1")).await.unwrap();
    let error = client.delete_manifest(&reference(&fake.host, "app:2")).await.unwrap_err();
    assert!(error.to_string().contains("UNSUPPORTED: not enabled"), "{error}");
}

#[tokio::test]
async fn the_quota_is_remembered() {
    let image = Image::new("amd64");
    let fake = Fake::start(move |request| {
        image
            .serve(request, "1")
            .header("ratelimit-limit", "100;w=21600")
            .header("ratelimit-remaining", "9;w=21600")
    })
    .await;
    let (client, name) = (client(), reference(&fake.host, "app:1"));
    assert!(client.low_quotas().is_empty());
    client.resolve(&name, &amd64()).await.unwrap();
    let [(host, quota)] = &client.low_quotas()[..] else { panic!("one host") };
    assert_eq!((host, quota.remaining, quota.limit), (&fake.host, 9, 100));
}

/// R19: other origins and loops.
#[tokio::test]
async fn lists_that_leave_the_registry_or_never_end_are_refused() {
    for link in ["<http://127.0.0.2:1/v2/x>; rel=\"next\"", "</v2/app/tags/list?n=1000>; rel=next"] {
        let fake = Fake::start(move |_| reply(200).header("Link", link).body(r#"{"tags":["a"]}"#)).await;
        let error = client().tags(&reference(&fake.host, "app")).await.unwrap_err();
        let RegistryError::Protocol { violation, .. } = &error else { panic!("{error:?}") };
        assert!(matches!(violation, Violation::Pages(_)), "{violation:?}");
        assert_eq!(error.kind(), ErrorKind::Protocol);
    }
}
