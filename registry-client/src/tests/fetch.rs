//! Files of web servers, and what tells one from the next at an address.

use std::time::SystemTime;

use super::fake::{Fake, reply};
use super::*;
use crate::{FetchRequest, FetchStream, Fetched};

fn ago(seconds: u64) -> String {
    httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(seconds))
}

async fn fetched(headers: &[(&str, String)]) -> Box<FetchStream> {
    let headers: Vec<(String, String)> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let fake = Fake::start(move |_| {
        headers.iter().fold(reply(200).body("text"), |reply, (name, value)| reply.header(name, value))
    })
    .await;
    let request = FetchRequest { url: format!("http://{}/f", fake.host), ..FetchRequest::default() };
    match client().fetch(&request).await.unwrap() {
        Fetched::Body(stream) => stream,
        Fetched::NotModified => panic!("nothing was known"),
    }
}

#[tokio::test]
async fn a_time_is_a_validator_when_nothing_else_can_have_it_any_more() {
    let date = |seconds| ("Date", ago(seconds));
    let modified = |seconds| ("Last-Modified", ago(seconds));
    let etag = |text: &str| ("ETag", text.to_owned());
    for (headers, expected) in [
        (vec![modified(1000), date(0)], true),
        (vec![modified(1000), date(940)], true),
        (vec![modified(1000), date(941)], false),
        (vec![modified(1000), date(1000)], false),
        (vec![modified(1000), date(2000)], false),
        // Without a date, or with none that is one, our own clock stands for the server's.
        (vec![modified(1000)], true),
        (vec![modified(30)], false),
        (vec![modified(1000), ("Date", "now".to_owned())], true),
        // What has a tag is known by that.
        (vec![modified(0), date(0), etag("\"1\"")], true),
        (vec![modified(0), date(0), etag("W/\"1\"")], true),
        (vec![("Last-Modified", "yesterday".to_owned()), date(0)], false),
        (vec![date(0)], false),
    ] {
        let stream = fetched(&headers).await;
        assert_eq!(stream.modified().is_some(), expected, "{headers:?}");
        let sent = headers.iter().find(|(name, _)| *name == "Last-Modified").map(|(_, value)| value);
        let sent = sent.and_then(|value| httpdate::parse_http_date(value).ok());
        let sent = sent.map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
        assert_eq!(stream.modified_unix().map(i64::cast_unsigned), sent, "the file's time in any case");
    }
}
